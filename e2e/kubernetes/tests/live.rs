//! `delivery: Live`: the API server itself adds the sidecar to new pods where no node agent can be, and to no others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod webhook;

use k8s_openapi::api::batch::v1::Job;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::release::{Release, digest_of, monitor};
use tasuki_e2e_kubernetes::{Agents, Kwok, helm, kubectl, plane};

/// Long enough for a loaded machine.
const LONG: Duration = Duration::from_secs(120);

/// A workload that a Fargate profile of its namespace would take.
fn web(namespace: &str, name: &str, more: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  selector: \
         {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}{more}}}}}\n    spec:\n      \
         nodeSelector: {{eks.amazonaws.com/compute-type: fargate}}\n      securityContext: {{runAsNonRoot: true, runAsUser: 1000, \
         seccompProfile: {{type: RuntimeDefault}}}}\n      containers:\n        - name: web\n          image: registry.example.test/web\n          \
         resources: {{requests: {{cpu: 1m, memory: 1Mi}}, limits: {{cpu: 1m, memory: 1Mi}}}}\n          \
         securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}\n"
    )
}

const QUOTA: &str = "{apiVersion: v1, kind: ResourceQuota, metadata: {name: small, namespace: strict}, spec: {hard: {limits.memory: 1Gi}}}";

async fn json_of(release: &Release, arguments: &[&str]) -> Value {
    serde_json::from_str(&release.kubectl(&[arguments, &["--output=json"]].concat()).await.unwrap()).unwrap()
}

/// The one pod of a workload.
async fn pod(release: &Release, namespace: &str, app: &str) -> Value {
    let (namespace, selector) = (format!("--namespace={namespace}"), format!("--selector=app={app}"));
    let found = until("one pod is left", LONG, || async {
        let pods = json_of(release, &["get", "pods", &namespace, &selector]).await;
        let pods: Vec<_> = pods["items"].as_array().unwrap().clone();
        let alive: Vec<_> = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).cloned().collect();
        Ok((alive.len() == 1).then(|| alive[0].clone()))
    });
    found.await.unwrap()
}

/// Makes a workload's pods anew and waits until that is done.
async fn restart(release: &Release, namespace: &str, name: &str) {
    let (namespace, name) = (format!("--namespace={namespace}"), format!("deployment/{name}"));
    release.kubectl(&["rollout", "restart", &name, &namespace]).await.unwrap();
    release.kubectl(&["rollout", "status", &name, &namespace, "--timeout=90s"]).await.unwrap();
}

/// The row of `tasuki coverage` of a workload, once its reason is this.
async fn reason(release: &Release, workload: &str, reason: &str) -> Value {
    let what = format!("{workload} is {reason}");
    let found = until(&what, LONG, || async {
        let coverage = release.json(&["coverage"])?;
        let row = coverage["tasks"].as_array().into_iter().flatten().find(|task| task["workload"] == workload).cloned();
        let row = row.unwrap_or_default();
        if row["reason"] != reason {
            anyhow::bail!("{row:#}; {:?}; {:#}", offered(release).await, release.json(&["actions"])?);
        }
        Ok(Some(row))
    });
    found.await.unwrap()
}

fn sidecars(pod: &Value) -> usize {
    let all = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    all.filter(|container| container["name"] == "tasuki-agent").count()
}

/// The namespaces that are offered an agent.
async fn offered(release: &Release) -> BTreeMap<String, String> {
    let get = ["get", "configmap", "tasuki-sidecar", "--namespace=tasuki-agents", "--ignore-not-found"];
    let text = release.kubectl(&[&get[..], &["--output=json"]].concat()).await.unwrap();
    let map: Value = serde_json::from_str(&text).unwrap_or_default();
    let data: BTreeMap<String, String> = serde_json::from_value(map["data"].clone()).unwrap_or_default();
    data.into_iter().filter(|(key, _)| !key.contains('.')).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_pods_on_fargate_get_the_sidecar_and_nothing_else_changes() {
    let values = ["enforce=true", "defaultMonitor=false", "sidecars.live=true"];
    let mut release = Box::pin(Release::start(&values)).await.unwrap();
    let mut kwok = Kwok::start(&release.plane).await.unwrap();
    kwok.nodes("node", 1, &BTreeMap::new()).await.unwrap();
    let fargate = BTreeMap::from([("eks.amazonaws.com/compute-type".to_owned(), "fargate".to_owned())]);
    kwok.nodes("fargate", 1, &fargate).await.unwrap();
    let namespaces = ["shop", "strict", "guarded"];
    for namespace in namespaces {
        release.kubectl(&["create", "namespace", namespace]).await.unwrap();
        release.apply(&web(namespace, "web", "")).await.unwrap();
    }
    release.apply(QUOTA).await.unwrap();
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    release.kubectl(&["label", "namespace", "guarded", restricted]).await.unwrap();
    let before = pod(&release, "shop", "web").await;

    release.start_controller(&["--live-sidecars"]).await.unwrap();
    // On the ordinary node: what is not proved there is offered to nobody.
    let _agents = Agents::start(&release.plane, &release.gateway).await.unwrap();
    release.apply(&monitor("1.0.0")).await.unwrap();
    let render = reason(&release, "Deployment/shop/web", "AwaitingRender").await;
    assert!(render["nextStep"].as_str().unwrap().contains("delivery: Live"), "{render:#}");
    let live = |version: &str| format!("{}  kubernetes: {{delivery: Live}}\n", monitor(version));
    release.apply(&live("1.0.0")).await.unwrap();

    Box::pin(pods_that_exist_stay(&release, &before)).await;
    Box::pin(a_new_pod_is_as_rendered(&mut release)).await;
    Box::pin(what_only_a_webhook_sends_to_fargate_gets_it_too(&release)).await;
    Box::pin(what_is_left_out(&release)).await;
    Box::pin(a_namespace_that_a_sidecar_would_harm_is_left_alone(&release)).await;
    Box::pin(the_controllers_jobs_are_held_to_their_form(&release)).await;
    Box::pin(another_version_is_tried_before_it_is_offered(&release, &live("1.0.1"))).await;
    Box::pin(everything_goes(&mut release)).await;
}

async fn pods_that_exist_stay(release: &Release, before: &Value) {
    let row = reason(release, "Deployment/shop/web", "StartedBeforeMonitoring").await;
    assert!(row["nextStep"].as_str().unwrap().contains("kubectl rollout restart"), "{row:#}");
    let found = until("the namespace is offered an agent", LONG, || async {
        let found = offered(release).await.remove("shop");
        if found.is_none() {
            anyhow::bail!("{:#}", release.json(&["actions"])?);
        }
        Ok(found)
    });
    assert!(found.await.unwrap().starts_with("1.0.0 registry.example.test/agent@sha256:"));
    let after = pod(release, "shop", "web").await;
    assert_eq!((&after["metadata"]["uid"], sidecars(&after)), (&before["metadata"]["uid"], 0));
    // What tried the image is nobody's task: while it is there it is left out, and then it is gone.
    until("the Jobs are gone from coverage", LONG, || async {
        let coverage = release.json(&["coverage"])?;
        let tasks = coverage["tasks"].as_array().unwrap();
        let jobs: Vec<_> = tasks.iter().filter(|row| row["workload"].as_str().unwrap().starts_with("Job/")).collect();
        assert!(jobs.iter().all(|row| row["verdict"] == "Excluded"), "{jobs:#?}");
        Ok(jobs.is_empty().then_some(()))
    })
    .await
    .unwrap();
}

/// The pod that the API server makes has what `tasuki render` prints, and nothing more.
async fn a_new_pod_is_as_rendered(release: &mut Release) {
    let plain = pod(release, "shop", "web").await;
    // The API server follows the ConfigMap, it does not ask for it.
    let live = until("the API server knows what is offered", LONG, || async {
        restart(release, "shop", "web").await;
        let pod = pod(release, "shop", "web").await;
        Ok((sidecars(&pod) == 1).then_some(pod))
    });
    let live = live.await.unwrap();

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), web("shop", "rendered", "")).unwrap();
    let (code, text) = release.controller().unwrap().tasuki(&["render", &file.path().display().to_string()]).unwrap();
    assert_eq!(code, 0, "{text}");
    let rendered: Value = serde_yaml::from_str(&text).unwrap();
    let template = &rendered["spec"]["template"];
    let defaults = |mut container: Value| {
        // What the API server fills in, and the mount of the ServiceAccount's token.
        for field in ["terminationMessagePath", "terminationMessagePolicy", "imagePullPolicy"] {
            container.as_object_mut().unwrap().remove(field);
        }
        let mounts = container["volumeMounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["name"] == "tasuki-token");
        for variable in container["env"].as_array_mut().unwrap() {
            if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
                field.as_object_mut().unwrap().remove("apiVersion");
            }
        }
        container
    };
    let sidecar = defaults(live["spec"]["initContainers"][0].clone());
    assert_eq!(sidecar, template["spec"]["initContainers"][0], "{sidecar:#}");
    let token = |spec: &Value| {
        let volumes = spec["volumes"].as_array().unwrap().iter();
        let mut found: Vec<Value> = volumes.filter(|volume| volume["name"] == "tasuki-token").cloned().collect();
        assert_eq!(found.len(), 1);
        found[0]["projected"]["sources"].take()
    };
    assert_eq!(token(&live["spec"]), token(&template["spec"]));
    let version = "/metadata/annotations/tasuki.dev~1version";
    assert_eq!(live.pointer(version), template.pointer(version));
    assert_eq!(live["spec"]["containers"][0]["securityContext"], plain["spec"]["containers"][0]["securityContext"]);
    // One that has init containers of its own starts behind the sidecar; one that was rendered gets no second.
    let with_init = "apiVersion: v1\nkind: Pod\nmetadata: {name: init, namespace: shop, labels: {app: init}, annotations: {a: b}}\nspec:\n  nodeSelector: \
        {eks.amazonaws.com/compute-type: fargate}\n  initContainers: [{name: first, image: i}]\n  containers: [{name: c, image: i}]\n  \
        volumes: [{name: v, emptyDir: {}}]\n";
    release.apply(with_init).await.unwrap();
    let init = pod(release, "shop", "init").await;
    let names: Vec<_> = init["spec"]["initContainers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["tasuki-agent", "first"]);
    assert_eq!(
        (&init["metadata"]["annotations"]["a"], &init["spec"]["volumes"][0]["name"]),
        (&json!("b"), &json!("v"))
    );
    release.apply(&text).await.unwrap();
    assert_eq!(sidecars(&pod(release, "shop", "rendered").await), 1);
}

/// On EKS nothing in a pod says Fargate until EKS's own webhook, which is asked after the policy, has said so.
async fn what_only_a_webhook_sends_to_fargate_gets_it_too(release: &Release) {
    release.apply(&webhook::start()).await.unwrap();
    release.kubectl(&["label", "namespace", "shop", "profile=fargate"]).await.unwrap();
    let found = until("a pod that the webhook changed has the sidecar", LONG, || async {
        release.kubectl(&["delete", "pod", "hooked", "--namespace=shop", "--ignore-not-found", "--now"]).await?;
        release.kubectl(&["run", "hooked", "--namespace=shop", "--image=i", "--labels=app=hooked"]).await?;
        let pod = pod(release, "shop", "hooked").await;
        // The API server follows webhooks and labels too, and does not ask for them.
        Ok((pod["spec"]["schedulerName"] == "fargate-scheduler").then_some(pod))
    });
    let found = found.await.unwrap();
    assert_eq!(sidecars(&found), 1, "{:#}", found["spec"]);
    release.kubectl(&["label", "namespace", "shop", "profile-"]).await.unwrap();
    release.kubectl(&["delete", "mutatingwebhookconfiguration", "fargate"]).await.unwrap();
    until("nothing sends pods to Fargate any more", LONG, || async {
        release.kubectl(&["delete", "pod", "hooked", "--namespace=shop", "--now"]).await?;
        release.kubectl(&["run", "hooked", "--namespace=shop", "--image=i", "--labels=app=hooked"]).await?;
        Ok((pod(release, "shop", "hooked").await["spec"]["schedulerName"] == "default-scheduler").then_some(()))
    })
    .await
    .unwrap();
}

async fn what_is_left_out(release: &Release) {
    // A pod that is made right after an offer may have been too early for it.
    until("the offer is some seconds old", LONG, || async {
        let offer = offered(release).await.remove("shop").unwrap();
        let at: jiff::Timestamp = offer.rsplit(' ').next().unwrap().parse()?;
        Ok((jiff::Timestamp::now().duration_since(at).as_secs() > 6).then_some(()))
    })
    .await
    .unwrap();
    release.apply(&web("shop", "alone", ", tasuki.dev/sidecar: 'false'")).await.unwrap();
    assert_eq!(sidecars(&pod(release, "shop", "alone").await), 0);
    let row = reason(release, "Deployment/shop/alone", "AwaitingRender").await;
    assert!(row["detail"].as_str().unwrap().contains("tasuki.dev/sidecar=false"), "{row:#}");
    // Bounds of the pod as a whole would count the sidecar.
    let bounded = "apiVersion: v1\nkind: Pod\nmetadata: {name: bounded, namespace: shop, labels: {app: bounded}}\nspec:\n  nodeSelector: \
        {eks.amazonaws.com/compute-type: fargate}\n  resources: {limits: {memory: 1Gi}}\n  containers: [{name: c, image: i}]\n";
    release.apply(bounded).await.unwrap();
    assert_eq!(sidecars(&pod(release, "shop", "bounded").await), 0);
    // Whoever holds the namespace to `restricted` after it was offered one gets his pods as he wrote them.
    let level = "pod-security.kubernetes.io/enforce";
    release.kubectl(&["label", "namespace", "shop", &format!("{level}=restricted")]).await.unwrap();
    until("pods that Pod Security would refuse are left as they are", LONG, || async {
        restart(release, "shop", "web").await;
        Ok((sidecars(&pod(release, "shop", "web").await) == 0).then_some(()))
    })
    .await
    .unwrap();
    release.kubectl(&["label", "namespace", "shop", &format!("{level}-")]).await.unwrap();
    // A pod of an ordinary node is the node agent's.
    release.kubectl(&["run", "plain", "--namespace=shop", "--image=i", "--labels=app=plain"]).await.unwrap();
    assert_eq!(sidecars(&pod(release, "shop", "plain").await), 0);
}

async fn a_namespace_that_a_sidecar_would_harm_is_left_alone(release: &Release) {
    let row = reason(release, "Deployment/strict/web", "NoRoom").await;
    assert!(row["detail"].as_str().unwrap().contains("ResourceQuota small"), "{row:#}");
    assert!(!offered(release).await.contains_key("strict"));
    // Pod Security keeps the trial out, as it would keep out every pod with the sidecar.
    let row = reason(release, "Deployment/guarded/web", "ImageNotPullable").await;
    assert!(row["detail"].as_str().unwrap().contains("kubectl describe job tasuki-probe-"), "{row:#}");
    assert!(!offered(release).await.contains_key("guarded"));
    restart(release, "guarded", "web").await;
    assert_eq!(sidecars(&pod(release, "guarded", "web").await), 0);

    release.kubectl(&["delete", "resourcequota", "small", "--namespace=strict"]).await.unwrap();
    until("without its quota the namespace is offered an agent", LONG, || async {
        Ok(offered(release).await.remove("strict"))
    })
    .await
    .unwrap();
    release.apply(QUOTA).await.unwrap();
    until("with a quota it is offered none", LONG, || async {
        Ok((!offered(release).await.contains_key("strict")).then_some(()))
    })
    .await
    .unwrap();
}

async fn the_controllers_jobs_are_held_to_their_form(release: &Release) {
    let client = plane::client(&release.service_account().await.unwrap()).await.unwrap();
    let jobs: Api<Job> = Api::namespaced(client, "shop");
    let real = json_of(release, &["get", "jobs", "--namespace=shop"]).await["items"][0].clone();
    let mut good = json!({"metadata": {"name": "tasuki-probe-other"}, "spec": real["spec"].clone()});
    let spec = good["spec"].as_object_mut().unwrap();
    for field in ["selector", "manualSelector", "podReplacementPolicy"] {
        spec.remove(field);
    }
    good["spec"]["template"]["metadata"] = json!({});
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let tried = |job: Value| {
        let (jobs, dry) = (jobs.clone(), dry.clone());
        async move { jobs.create(&dry, &serde_json::from_value(job).unwrap()).await }
    };
    tried(good.clone()).await.expect("a trial is let in");
    let pod = "/spec/template/spec";
    for (what, path, value) in [
        ("another name", "/metadata/name".to_owned(), json!("x")),
        ("no end", "/spec/activeDeadlineSeconds".to_owned(), json!(100_000)),
        ("many pods", "/spec/completions".to_owned(), json!(5)),
        ("a command", format!("{pod}/containers/0/command"), json!(["sh"])),
        ("other arguments", format!("{pod}/containers/0/args"), json!(["run"])),
        ("environment", format!("{pod}/containers/0/env"), json!([{"name": "A", "value": "b"}])),
        ("privilege", format!("{pod}/containers/0/securityContext"), json!({"privileged": true})),
        ("a capability", format!("{pod}/containers/0/securityContext/capabilities"), json!({"add": ["SYS_ADMIN"]})),
        ("a volume", format!("{pod}/volumes"), json!([{"name": "h", "hostPath": {"path": "/"}}])),
        ("the node's processes", format!("{pod}/hostPID"), json!(true)),
        ("another account", format!("{pod}/serviceAccountName"), json!("admin")),
        ("a token", format!("{pod}/automountServiceAccountToken"), json!(true)),
        ("a node", format!("{pod}/nodeName"), json!("node-0")),
        ("days to live", "/spec/ttlSecondsAfterFinished".to_owned(), json!(1_000_000)),
        ("a label", "/spec/template/metadata/labels".to_owned(), json!({"app": "web"})),
        ("priority", format!("{pod}/priorityClassName"), json!("system-node-critical")),
        ("restarts", format!("{pod}/restartPolicy"), json!("OnFailure")),
        ("a port of the node", format!("{pod}/containers/0/ports"), json!([{"containerPort": 1, "hostPort": 1}])),
        ("a command as a probe", format!("{pod}/containers/0/livenessProbe"), json!({"exec": {"command": ["sh"]}})),
        ("an image by tag", format!("{pod}/containers/0/image"), json!("registry.example.test/agent:1")),
        ("a kernel setting", format!("{pod}/securityContext"), json!({"sysctls": [{"name": "a", "value": "b"}]})),
    ] {
        let mut job = good.clone();
        let (parent, last) = path.rsplit_once('/').unwrap();
        job.pointer_mut(parent).unwrap()[last] = value;
        match tried(job).await {
            Err(kube::Error::Api(status)) => {
                assert!(
                    status.message.contains("ValidatingAdmissionPolicy 'tasuki-probe'"),
                    "{what}: {}",
                    status.message
                );
            }
            other => panic!("{what} is not refused: {other:?}"),
        }
    }
}

async fn another_version_is_tried_before_it_is_offered(release: &Release, monitor: &str) {
    let held = pod(release, "shop", "web").await;
    release.apply(monitor).await.unwrap();
    let digest = digest_of("1.0.1");
    until("the new version is offered", LONG, || async {
        Ok(offered(release).await.remove("shop").filter(|offer| offer.starts_with("1.0.1 ") && offer.contains(&digest)))
    })
    .await
    .unwrap();
    let jobs = json_of(release, &["get", "jobs", "--namespace=shop"]).await;
    assert_eq!(jobs["items"].as_array().unwrap().len(), 2, "each version was tried: {jobs:#}");
    // Its owner makes it anew when it suits him.
    assert_eq!(pod(release, "shop", "web").await["metadata"]["uid"], held["metadata"]["uid"]);
}

async fn everything_goes(release: &mut Release) {
    let (code, said) = release.controller().unwrap().tasuki(&["uninstall", "--yes"]).unwrap();
    assert_eq!(code, 0, "{said}");
    assert_eq!(offered(release).await, BTreeMap::new());
    release.stop_controller();
    helm(&release.plane, &["uninstall", "tasuki", "--namespace=tasuki-system", "--wait"]).await.unwrap();
    until("nothing of Tasuki's is left", LONG, || async {
        let kinds =
            "jobs,configmaps,mutatingadmissionpolicies,mutatingadmissionpolicybindings,validatingadmissionpolicies";
        let left = kubectl(&release.plane, &["get", kinds, "--all-namespaces", "--output=name"], "").await?;
        let left: Vec<_> = left.lines().filter(|line| line.contains("tasuki")).collect();
        if !left.is_empty() {
            anyhow::bail!("{left:?}");
        }
        Ok(Some(()))
    })
    .await
    .unwrap();
}
