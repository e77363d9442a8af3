//! Agents that only send heartbeats, on nodes that only claim to run their pods: what a cluster of thousands of nodes is
//! tested with has to do what real agents on real nodes do.
#![allow(clippy::unwrap_used, clippy::panic)] // a test's failure is a panic

use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tasuki_e2e::coverage::{rows, settled};
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::release::digest_of;
use tasuki_e2e_kubernetes::{Agents, Kwok, Release};

/// Long enough for a loaded machine with two cores.
const LIMIT: Duration = Duration::from_secs(120);
const PODS: usize = 6;
const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 6
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: web}]}
";

/// A monitor that wants this version; each version has an image of its own.
fn monitor(version: &str) -> String {
    let digest = digest_of(version);
    format!(
        "apiVersion: tasuki.dev/v1alpha1\nkind: RuntimeMonitor\nmetadata: {{name: prod}}\nspec:\n  mode: Enforce\n  \
         targets: {{kubernetes: {{namespaces: {{exclude: [kube-system, tasuki-system]}}}}}}\n  \
         agent:\n    version: {version}\n    image: {{repository: registry.test/tasuki-agent, digest: \"{digest}\"}}\n  grace: 1s\n  \
         rollout:\n    deadline: 10s\n    waves:\n      - {{name: canary, take: 20%, soak: 1s}}\n      \
         - {{name: rest, take: 100%, soak: 1s, maxUnavailable: 50%}}\n"
    )
}

/// Waits until the shop's pods have this verdict, all by this version, and no rollout is under way.
async fn shop(release: &Release, verdict: &str, version: &str) {
    let mut seen = Value::Null;
    let what = format!("every pod is {verdict} by {version}");
    let all = until(&what, LIMIT, || {
        let coverage = release.json(&["coverage"]);
        seen = coverage.as_ref().ok().cloned().unwrap_or_default();
        async move {
            let coverage = coverage?;
            let rows = rows(&coverage);
            let shop: Vec<_> = rows.iter().filter(|(workload, ..)| workload == "Deployment/shop/web").collect();
            let all = shop.iter().all(|(_, _, by, what)| what == verdict && by == version);
            Ok((shop.len() == PODS && all && settled(&coverage, "self")).then_some(()))
        }
    });
    let all = all.await;
    all.unwrap_or_else(|error| panic!("{error:#}\n{seen:#}"));
}

/// The versions of the agent's DaemonSets, and the nodes that carry the label of the hand-over.
async fn placed(release: &Release) -> (String, String) {
    let version = "-o=jsonpath={.items[*].metadata.annotations.tasuki\\.dev/version}";
    let sets = release.kubectl(&["get", "daemonsets", "--namespace=tasuki-agents", version]).await.unwrap();
    let nodes = release.kubectl(&["get", "nodes", "-l", "tasuki.dev/agent-next", "-o=name"]).await.unwrap();
    (sets, nodes)
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_cover_and_roll_and_silence_is_seen() {
    let mut release = Release::start(&["enforce=true", "defaultMonitor=false"]).await.unwrap();
    release.start_controller(&Agents::LIMITS).await.unwrap();
    let mut kwok = Kwok::start(&release.plane).await.unwrap();
    kwok.nodes("node", 3, &BTreeMap::new()).await.unwrap();
    release.apply(SHOP).await.unwrap();
    release.apply(&monitor("0.1.0")).await.unwrap();
    let agents = Agents::start(&release.plane, &release.gateway).await.unwrap();
    shop(&release, "Covered", "0.1.0").await;
    assert_eq!((agents.speaking("0.1.0"), agents.speaking("0.1.1")), (3, 0));

    release.apply(&monitor("0.1.1")).await.unwrap();
    shop(&release, "Covered", "0.1.1").await;
    assert_eq!(placed(&release).await, ("0.1.1".to_owned(), String::new()), "one DaemonSet, no label");
    assert_eq!(agents.gaps(), Vec::<String>::new(), "each node had an agent all the time");

    agents.mute("0.1.2");
    release.apply(&monitor("0.1.2")).await.unwrap();
    let memory = until("the silent version is given up", LIMIT, || async {
        let path = "-o=jsonpath={.data.memory}";
        let memory =
            release.kubectl(&["get", "configmap", "tasuki-rollout", "--namespace=tasuki-system", path]).await?;
        Ok(memory.contains("did not report").then_some(memory))
    });
    let memory = memory.await.unwrap();
    assert!(memory.contains("the new agent did not report within 10s"), "{memory}");
    shop(&release, "Covered", "0.1.1").await;
    assert_eq!(placed(&release).await, ("0.1.1".to_owned(), String::new()), "rolled back by itself");
    assert_eq!((agents.gaps(), agents.speaking("0.1.1")), (Vec::new(), 3), "the old agents never went");

    // Only a hand-over waits for another agent.
    let pod = release.kubectl(&[
        "get",
        "pods",
        "--namespace=tasuki-agents",
        "--field-selector=spec.nodeName=node-1",
        "-o=name",
    ]);
    let pod = pod.await.unwrap();
    release.kubectl(&["delete", "--namespace=tasuki-agents", pod.trim()]).await.unwrap();
    until("the node's next agent speaks", LIMIT, || async { Ok((agents.speaking("0.1.1") == 3).then_some(())) })
        .await
        .unwrap();
    assert_eq!(agents.gaps(), ["node-1"], "a node that loses its only agent is seen");

    agents.mute("0.1.1");
    shop(&release, "Unhealthy AgentNotReporting", "0.1.1").await;
    agents.unmute("0.1.1");
    shop(&release, "Covered", "0.1.1").await;
}
