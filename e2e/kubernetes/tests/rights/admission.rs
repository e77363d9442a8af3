//! What holds pods and the controller where RBAC does not: Pod Security, and the policy on nodes.

use crate::LONG;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::release::Release;
use tasuki_e2e_kubernetes::world::NAMESPACE as SYSTEM;
use tasuki_e2e_kubernetes::{helm, kubectl, plane};

const AGENTS: &str = "tasuki-agents";

/// A client with a token of the controller's ServiceAccount.
pub async fn as_controller(release: &Release) -> Client {
    plane::client(&release.service_account().await.unwrap()).await.unwrap()
}

/// The words with which the API server refuses.
pub fn refused<T: std::fmt::Debug>(what: &str, answer: kube::Result<T>) -> String {
    match answer {
        Err(kube::Error::Api(status)) => status.message.clone(),
        other => panic!("{what} is not refused: {other:?}"),
    }
}

/// Both namespaces are as the chart and its notes have them; nothing is made.
pub async fn pod_security_takes_the_pods_where_they_belong(release: &Release) {
    let enforced = |namespace: &'static str| async move {
        let path = r"--output=jsonpath={.metadata.labels.pod-security\.kubernetes\.io/enforce}";
        release.kubectl(&["get", "namespace", namespace, path]).await.unwrap()
    };
    assert_eq!(enforced(AGENTS).await, "privileged");
    for namespace in [SYSTEM, "default"] {
        let label = "pod-security.kubernetes.io/enforce=restricted";
        release.kubectl(&["label", "namespace", namespace, label]).await.unwrap();
    }
    let template = |kind: &'static str, namespace: &'static str| async move {
        let of = format!("--namespace={namespace}");
        let path = "--output=jsonpath={.items[0].spec.template}";
        let text = release.kubectl(&["get", kind, &of, path]).await.unwrap();
        let mut template: Value = serde_json::from_str(&text).unwrap();
        template["metadata"]["generateName"] = json!("tried-");
        template
    };
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let client = release.plane.client().await.unwrap();
    let try_in = |namespace: &'static str, pod: &Value| {
        let (pods, mut pod, dry) = (Api::<Pod>::namespaced(client.clone(), namespace), pod.clone(), dry.clone());
        // The accounts of a pod must exist; which they are is nothing to Pod Security.
        if namespace == "default" {
            pod["spec"]["serviceAccountName"] = json!("default");
        }
        async move { pods.create(&dry, &serde_json::from_value(pod).unwrap()).await }
    };
    let controller = template("deployments", SYSTEM).await;
    let agent = template("daemonsets", AGENTS).await;
    try_in(SYSTEM, &controller).await.expect("`restricted` takes the controller's pod");
    try_in(AGENTS, &agent).await.expect("`privileged` takes the agent's pod");
    let said = refused("the agent's pod in a restricted namespace", try_in("default", &agent).await);
    for words in ["violates PodSecurity \"restricted:latest\"", "hostPID=true", "hostPath", "SYS_ADMIN"] {
        assert!(said.contains(words), "{said}");
    }
    // The pod of `helm test` is one of the release's own namespace too.
    let hooks = helm(&release.plane, &["get", "hooks", "tasuki", "--namespace", SYSTEM]).await.unwrap();
    kubectl(&release.plane, &["create", "--dry-run=server", "--filename=-"], &hooks).await.unwrap();
    release.kubectl(&["label", "namespace", "default", "pod-security.kubernetes.io/enforce-"]).await.unwrap();

    // RBAC keeps the agent where it belongs before Pod Security is asked.
    let elsewhere = Api::<DaemonSet>::namespaced(as_controller(release).await, "shop");
    let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "a"}, "spec":
        {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": agent["spec"]}}});
    let made = elsewhere.create(&dry, &serde_json::from_value(set).unwrap()).await;
    assert!(refused("a DaemonSet elsewhere", made).contains("cannot create"));
}

/// With the right to patch nodes, which RBAC cannot narrow, the controller changes one label on them.
pub async fn of_nodes_only_our_label_is_changed(release: &Release, node: &str) {
    // Something to take away.
    release.kubectl(&["label", "node", node, "team=shop"]).await.unwrap();
    release.kubectl(&["annotate", "node", node, "why=test"]).await.unwrap();
    release.kubectl(&["taint", "node", node, "gpu=true:PreferNoSchedule"]).await.unwrap();
    let client = as_controller(release).await;
    let nodes: Api<Node> = Api::all(client);
    // Nothing is kept: the hand-over of this node is not ours to begin.
    let dry = PatchParams { dry_run: true, ..PatchParams::default() };
    let merge = |change: Value| {
        let (nodes, dry) = (nodes.clone(), dry.clone());
        async move { nodes.patch(node, &dry, &Patch::Merge(change)).await }
    };
    let label = |value: Value| json!({"metadata": {"labels": {"tasuki.dev/agent-next": value}}});
    // A policy is watched by the API server, not read: it holds a moment after it was made.
    until("the policy holds", LONG, || async {
        Ok(merge(json!({"metadata": {"labels": {"probe": "x"}}})).await.is_err().then_some(()))
    })
    .await
    .unwrap();
    for value in [json!("both"), json!("only"), Value::Null] {
        merge(label(value.clone())).await.unwrap_or_else(|error| panic!("our label as {value}: {error}"));
    }
    let apply = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": {"tasuki.dev/agent-next": "both"}}});
    let params = PatchParams { dry_run: true, ..PatchParams::apply("tasuki").force() };
    nodes.patch(node, &params, &Patch::Apply(apply)).await.expect("our label by server-side apply");

    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "x", "uid": "x"});
    for (what, change) in [
        ("another value of our label", label(json!("x"))),
        ("another label", json!({"metadata": {"labels": {"role": "x"}}})),
        ("a change of another label", json!({"metadata": {"labels": {"team": "x"}}})),
        ("another label's removal", json!({"metadata": {"labels": {"team": null}}})),
        ("ours beside another one", json!({"metadata": {"labels": {"tasuki.dev/agent-next": "only", "role": "x"}}})),
        ("an annotation", json!({"metadata": {"annotations": {"x": "y"}}})),
        ("an annotation's removal", json!({"metadata": {"annotations": {"why": null}}})),
        ("a finalizer", json!({"metadata": {"finalizers": ["example.com/x"]}})),
        ("an owner", json!({"metadata": {"ownerReferences": [owner]}})),
        ("a cordon", json!({"spec": {"unschedulable": true}})),
        ("a taint", json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}})),
        ("a taint's removal", json!({"spec": {"taints": null}})),
        ("a provider", json!({"spec": {"providerID": "x://y"}})),
    ] {
        let said = refused(what, merge(change).await);
        assert!(
            said.contains("ValidatingAdmissionPolicy 'tasuki-node-label'") && said.contains("denied request"),
            "{said}"
        );
    }

    // Even where somebody grants more than the chart does.
    let account = "--serviceaccount=tasuki-system:tasuki";
    let more = ["clusterrolebinding", "more", "--clusterrole=cluster-admin", account];
    release.kubectl(&[&["create"], &more[..]].concat()).await.unwrap();
    let condition = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let said = until("the new right is known", LONG, || async {
        let answer = nodes.patch_status(node, &dry, &Patch::Merge(condition.clone())).await;
        let said = refused("the status of a node", answer);
        Ok((!said.contains("cannot patch")).then_some(said))
    })
    .await
    .unwrap();
    assert!(said.contains("tasuki-node-label"), "{said}");
    release.kubectl(&["delete", "clusterrolebinding", "more"]).await.unwrap();
    // Nobody else is held.
    release.kubectl(&["label", "node", node, "team-"]).await.unwrap();
    release.kubectl(&["taint", "node", node, "gpu-"]).await.unwrap();
}
