use super::project::{Roles, daemon, meddlers, node, outline, platform_of, pod_task, role_of};
use crate::scope::kubernetes::Kubernetes;
use crate::testing::ApiServer;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use tasuki_core::fleet::{LaunchType, Task, TaskStatus};

fn scope() -> Kubernetes {
    // Nothing is asked of it.
    ApiServer::new().cluster()
}

fn pod(edit: impl FnOnce(&mut Value)) -> Task {
    let mut pod = json!({
        "metadata": {
            "name": "web-6f9-x", "namespace": "shop", "uid": "u-1", "resourceVersion": "41",
            "labels": {"pod-template-hash": "6f9"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6f9", "uid": "r", "controller": true}],
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "web", "image": "shop/web:1"}]},
        "status": {"phase": "Running", "startTime": "2026-11-24T12:00:00Z", "podIP": "10.0.0.7", "containerStatuses": [{
            "name": "web", "image": "shop/web:1", "imageID": "shop/web@sha256:abc", "ready": true, "restartCount": 0,
            "containerID": "containerd://c1", "state": {"running": {}},
        }]},
    });
    edit(&mut pod);
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let roles = Roles::from([("tasuki-agent-1".to_owned(), "tasuki")]);
    let task = |pod: &Pod| pod_task(&scope(), pod, &roles, |_| (LaunchType::Kubernetes, "linux".into())).unwrap();
    // What is kept of a pod says all that the pod says.
    let text = serde_json::to_string(&outline(&pod)).unwrap();
    assert_eq!(task(&serde_json::from_str(&text).unwrap()), task(&pod));
    task(&pod)
}

#[tokio::test]
async fn a_pod_is_a_task_of_its_deployment() {
    let task = pod(|_| {});
    assert_eq!(&*task.arn, "k8s/self/pod/shop/u-1/web-6f9-x");
    assert_eq!((&*task.group, task.node.as_deref()), ("Deployment/shop/web", Some("k8s/self/node/n1")));
    assert_eq!((task.status, task.version, task.address), (TaskStatus::Running, 41, "10.0.0.7".parse().ok()));
    let container = &task.containers[0];
    assert_eq!((container.runtime_id.as_deref(), container.image_digest.as_deref()), (Some("c1"), Some("sha256:abc")));
    assert_eq!(&*container.status, "RUNNING");
}

#[tokio::test]
async fn owners_are_named_as_people_name_them() {
    let owner = |kind: &str, name: &str| {
        let owner = json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": "r", "controller": true}]);
        pod(|pod| pod["metadata"]["ownerReferences"] = owner).group.to_string()
    };
    assert_eq!(owner("Job", "backup-29"), "Job/shop/backup-29");
    assert_eq!(owner("StatefulSet", "db"), "StatefulSet/shop/db");
    assert_eq!(owner("ReplicaSet", "bare"), "ReplicaSet/shop/bare");
    assert_eq!(&*pod(|pod| pod["metadata"]["ownerReferences"] = json!([])).group, "Pod/shop/web-6f9-x");
    // The agent's own pods are those of its DaemonSets in its own namespace, and no others.
    let own = |namespace: &str| {
        let owner = json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "tasuki-agent-1", "uid": "r", "controller": true}]);
        pod(|pod| (pod["metadata"]["ownerReferences"], pod["metadata"]["namespace"]) = (owner, json!(namespace)))
            .group
            .to_string()
    };
    assert_eq!(own("tasuki-agents"), "service:tasuki");
    assert_eq!(own("shop"), "DaemonSet/shop/tasuki-agent-1");
}

#[tokio::test]
async fn a_static_pod_has_the_uid_that_its_cgroup_has() {
    let task = pod(|pod| pod["metadata"]["annotations"] = json!({"kubernetes.io/config.hash": "h-9"}));
    assert_eq!(&*task.arn, "k8s/self/pod/shop/h-9/web-6f9-x");
}

#[tokio::test]
async fn why_a_container_does_not_run_is_told_in_the_fleets_words() {
    let state = |state: Value, last: Value| {
        let task = pod(|pod| {
            pod["status"]["containerStatuses"][0]["state"] = state;
            pod["status"]["containerStatuses"][0]["lastState"] = last;
        });
        let container = task.containers.into_iter().next().unwrap();
        (container.status.to_string(), container.exit_code, container.reason.map(|r| r.to_string()).unwrap_or_default())
    };
    let pull = state(json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling"}}), json!({}));
    assert_eq!(pull, ("PENDING".into(), None, "CannotPull: ImagePullBackOff: Back-off pulling".into()));
    let killed = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
    let loops = state(json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}), killed);
    assert_eq!(loops, ("STOPPED".into(), Some(137), "OutOfMemory: CrashLoopBackOff: back-off 10s".into()));
    let ended = state(json!({"terminated": {"exitCode": 1, "reason": "Error"}}), json!({}));
    assert_eq!(ended, ("STOPPED".into(), Some(1), "Error".into()));
    assert_eq!(state(json!({"waiting": {"reason": "ContainerCreating"}}), json!({})).2, "");
}

#[tokio::test]
async fn a_pod_without_room_says_so_and_one_that_is_done_has_ended() {
    let waits = pod(|pod| {
        pod["status"] = json!({"phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: Insufficient memory",
        }]});
    });
    assert_eq!(waits.status, TaskStatus::Pending);
    assert_eq!(waits.containers[0].reason.as_deref(), Some("Unschedulable: 0/1 nodes: Insufficient memory"));
    let done = pod(|pod| {
        pod["status"]["phase"] = json!("Succeeded");
        pod["status"]["containerStatuses"][0]["state"] =
            json!({"terminated": {"exitCode": 0, "finishedAt": "2026-11-24T12:01:00Z"}});
    });
    assert_eq!((done.status, done.stop_code.as_deref()), (TaskStatus::Stopped, Some("Succeeded")));
    assert_eq!(done.stopped_at, Some("2026-11-24T12:01:00Z".parse().unwrap()), "not when it was listed");
}

#[tokio::test]
async fn a_node_is_what_its_labels_say() {
    let made = |labels: Value| -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n1", "uid": "nu", "labels": labels},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap()
    };
    let launch = |labels: Value| platform_of(&made(labels));
    assert_eq!(launch(json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"})).0, LaunchType::Kubernetes);
    assert_eq!(launch(json!({"kubernetes.io/os": "windows"})), (LaunchType::KubernetesVirtual, "windows".into()));
    assert_eq!(
        launch(json!({"eks.amazonaws.com/compute-type": "fargate"})),
        (LaunchType::KubernetesVirtual, "fargate".into())
    );
    assert_eq!(launch(json!({"type": "virtual-kubelet"})).0, LaunchType::KubernetesVirtual);
    let attributes = |value: &str| {
        let node = node(&scope(), &made(json!({"tasuki.dev/agent-next": value}))).unwrap();
        let has = |name: &str| node.attributes.contains_key(name);
        (has("tasuki.next"), has("tasuki.hold"), node.active)
    };
    assert_eq!(attributes("both"), (true, false, true));
    assert_eq!(attributes("only"), (true, true, true));
    assert_eq!(attributes("nonsense"), (false, false, true));
}

#[tokio::test]
async fn a_daemon_set_of_anybody_elses_is_no_daemon() {
    let made = |name: &str, annotations: Value| -> DaemonSet {
        serde_json::from_value(json!({"metadata": {
            "name": "tasuki-agent-1", "namespace": "tasuki-agents", "annotations": annotations,
            "labels": {"app.kubernetes.io/name": name, "tasuki.dev/role": "serving"},
        }}))
        .unwrap()
    };
    let ours = made(
        "tasuki-agent",
        json!({"tasuki.dev/spec": "f", "tasuki.dev/version": "1.4.2", "tasuki.dev/promoting": "true"}),
    );
    assert_eq!(role_of(&ours), Some("tasuki"));
    assert_eq!(role_of(&made("other", json!({"tasuki.dev/spec": "f"}))), None);
    assert_eq!(role_of(&made("tasuki-agent", json!({}))), None, "somebody made it by hand");
    let (service, definition) = daemon(&scope(), &ours, "tasuki", vec![]).unwrap();
    assert!(service.daemon && service.tags.contains_key("tasuki.dev/promoting"));
    assert_eq!(service.definition, definition.arn);
    let mark = definition.sidecar.unwrap();
    assert_eq!((&*mark.version, mark.spec.as_deref()), ("1.4.2", Some("f")));
}

#[tokio::test]
async fn a_nodes_taints_are_those_that_keep_pods_away() {
    let tainted: Node = serde_json::from_value(json!({
        "metadata": {"name": "n1", "uid": "nu"},
        "spec": {"taints": [
            {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
            {"key": "spot", "effect": "NoExecute"},
            {"key": "slow", "effect": "PreferNoSchedule"},
        ]},
    }))
    .unwrap();
    let taints = node(&scope(), &tainted).unwrap().taints;
    let taints: Vec<_> = taints.iter().map(|taint| (&*taint.key, &*taint.value, &*taint.effect)).collect();
    assert_eq!(taints, [("gpu", "yes", "NoSchedule"), ("spot", "", "NoExecute")]);
}

#[tokio::test]
async fn whoever_else_owns_a_part_of_a_daemon_sets_spec_is_named() {
    let entry = |manager: &str, subresource: Option<&str>, fields: Value| json!({"manager": manager, "operation": "Update", "subresource": subresource, "fieldsType": "FieldsV1", "fieldsV1": fields});
    let set: DaemonSet = serde_json::from_value(json!({"metadata": {"name": "tasuki-agent-1", "managedFields": [
        entry("tasuki", None, json!({"f:spec": {"f:template": {}}})),
        entry("kube-controller-manager", Some("status"), json!({"f:status": {}})),
        entry("kubectl-label", None, json!({"f:metadata": {"f:labels": {"f:team": {}}}})),
        entry("kubectl-edit", None, json!({"f:spec": {"f:template": {}}})),
    ]}}))
    .unwrap();
    assert_eq!(meddlers(&set, "tasuki"), ["kubectl-edit"]);
}

#[tokio::test]
async fn an_agents_pod_that_finds_no_room_is_on_the_node_that_it_was_made_for() {
    let owned = |kind: &str, name: &str| {
        pod(|pod| {
            let meta = &mut pod["metadata"];
            meta["namespace"] = json!("tasuki-agents");
            meta["ownerReferences"] =
                json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "r", "controller": true}]);
            let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n7"]}]});
            pod["spec"] = json!({
                "containers": [{"name": "tasuki-agent", "image": "a"}],
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}},
            });
            pod["status"] = json!({"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1: Too many pods"},
            ]});
        })
    };
    let agent = owned("DaemonSet", "tasuki-agent-1");
    assert_eq!((agent.node.as_deref(), agent.status), (Some("k8s/self/node/n7"), TaskStatus::Pending));
    assert_eq!(agent.containers[0].reason.as_deref(), Some("Unschedulable: 0/1: Too many pods"));
    assert_eq!(owned("DaemonSet", "somebody-elses").node, None, "only the scheduler says where others run");
}
