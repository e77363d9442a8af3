//! A real node that is to carry no agent: its pods carry their own, as their owner's pipeline rendered it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use anyhow::Result;
use serde_json::Value;
use std::time::Duration;
use tasuki_e2e::attack;
use tasuki_e2e::config::THREATS;
use tasuki_e2e::process::until;
use tasuki_e2e::world::AgentImage;
use tasuki_e2e_kubernetes::kubectl;
use tasuki_e2e_kubernetes::world::{self, NAMESPACE, World};

const LIMIT: Duration = Duration::from_secs(180);
const JOB: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: { name: beside, namespace: shop }
---
apiVersion: batch/v1
kind: Job
metadata: { name: once, namespace: shop }
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{ name: once, image: 'registry.example.test/shop:1', command: [/bin/busybox, 'true'] }]
";

/// `tasuki render` where the controller runs, with the manifests as its input.
async fn render(world: &World, manifests: &str) -> Result<String> {
    let namespace = format!("--namespace={NAMESPACE}");
    let command = ["exec", "--stdin", &namespace, "deploy/tasuki", "--", "tasuki", "render"];
    kubectl(&world.plane, &command, manifests).await
}

/// The row of `tasuki coverage` of a workload's one pod.
async fn row(world: &World, workload: &str) -> Result<Option<Value>> {
    let coverage = world.json(&["coverage"]).await?;
    let tasks = coverage["tasks"].as_array().cloned().unwrap_or_default();
    Ok(tasks.into_iter().find(|task| task["workload"] == workload))
}

async fn is(world: &World, workload: &str, verdict: &str) -> Value {
    let what = format!("{workload} is {verdict}");
    let found = until(&what, LIMIT, || async {
        let row = row(world, workload).await?;
        Ok(row.filter(|row| row["verdict"] == verdict))
    });
    match found.await {
        Ok(row) => row,
        Err(error) => {
            panic!("{error:#}; it is {:#}; {}", row(world, workload).await.unwrap().unwrap(), world.logs().await)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rendered_sidecar_watches_its_pod_lets_jobs_finish_and_blocks_nothing() {
    let world = World::start(1, |text| println!("{text}")).await.unwrap();
    world.kubectl(&["label", "node", "node-1", "type=virtual-kubelet"]).await.unwrap();
    world.shop("node-1").await.unwrap();
    world.install(&["enforce=true", "defaultMonitor=false", "sidecars.live=true"]).await.unwrap();
    world.answers().await.unwrap();
    world.apply(THREATS).await.unwrap();
    world.apply(&world.monitor(&world.agent)).await.unwrap();

    let web = "Deployment/shop/web-node-1";
    let without = is(&world, web, "Uncovered").await;
    assert_eq!(without["reason"], "UnsupportedPlatform");
    assert!(without["nextStep"].as_str().unwrap().contains("`tasuki render`"), "{without:#}");

    let manifests = world::shop_manifests("node-1");
    let rendered = render(&world, &manifests).await.unwrap();
    assert_eq!(render(&world, &rendered).await.unwrap(), rendered, "rendering again changes nothing");
    let address = world.deploy(&rendered, "node-1").await.unwrap();
    let covered = is(&world, web, "Covered").await;
    assert_eq!((&covered["placement"], &covered["depth"]), (&"Sidecar".into(), &"Network".into()), "{covered:#}");

    attack::miner(address).await.unwrap();
    let finding = until("the miner's question is found", Duration::from_secs(60), || async {
        let found = world.json(&["findings"]).await?;
        let mut found = found.as_array().cloned().unwrap_or_default().into_iter();
        Ok(found.find(|finding| finding["type"] == "CryptoCurrency:Runtime/BitcoinTool.B!DNS"))
    });
    let finding = finding.await.unwrap();
    assert_eq!(
        (&finding["resource"]["namespace"], &finding["resource"]["workload"]),
        (&"shop".into(), &"Deployment/web-node-1".into()),
        "{finding:#}"
    );

    // A Job ends although its sidecar would go on for ever.
    let job = render(&world, JOB).await.unwrap();
    assert!(job.starts_with("apiVersion: v1\nkind: ConfigMap") && job.contains("initContainers"), "{job}");
    world.apply(&job).await.unwrap();
    let ended = ["wait", "--for=condition=Complete", "job/once", "--namespace=shop", "--timeout=120s"];
    if let Err(error) = world.kubectl(&ended).await {
        panic!("{error:#}; {}", world.kubectl(&["describe", "pods", "--namespace=shop"]).await.unwrap());
    }

    // A sidecar whose program ends at once keeps no application from starting.
    let broken = rendered.replace(&world.agent.digest, &world.broken.digest).replace("web-node-1", "brave");
    world.apply(&broken).await.unwrap();
    let path = "-o=jsonpath={.items[0].status.containerStatuses[0].state.running.startedAt}";
    until("the application runs beside a broken sidecar", LIMIT, || async {
        let started = world.kubectl(&["get", "pods", "--namespace=shop", "-l", "app=brave", path]).await?;
        Ok((!started.trim().is_empty()).then_some(()))
    })
    .await
    .unwrap();
    let brave = is(&world, "Deployment/shop/brave", "Unhealthy").await;
    assert_eq!(brave["reason"], "AgentExited", "{brave:#}");
    Box::pin(the_api_server_adds_it_by_itself(&world)).await;
}

/// A namespace of its own with one workload, as EKS would run it on Fargate.
fn on_fargate(namespace: &str) -> String {
    world::shop_manifests("node-1")
        .replace("shop}", &format!("{namespace}}}"))
        .replace("kubernetes.io/hostname: node-1", "eks.amazonaws.com/compute-type: fargate")
}

/// Nobody renders anything: `delivery: Live` on what looks like a node of EKS Fargate.
async fn the_api_server_adds_it_by_itself(world: &World) {
    let fargate = ["label", "node", "node-1", "type-", "eks.amazonaws.com/compute-type=fargate"];
    world.kubectl(&fargate).await.unwrap();
    world.apply(&on_fargate("live")).await.unwrap();
    let live = |agent| format!("{}  kubernetes: {{delivery: Live}}\n", world.monitor(agent));
    world.apply(&live(&world.agent)).await.unwrap();
    let web = "Deployment/live/web-node-1";
    let offered = |namespace: &'static str| async move {
        let path = format!("-o=jsonpath={{.data.{namespace}}}");
        let get = ["get", "configmap", "tasuki-sidecar", "--namespace=tasuki-agents", "--ignore-not-found", &path];
        world.kubectl(&get).await
    };
    until("the image was tried in the namespace, and pods there are offered the sidecar", LIMIT, || async {
        Ok(offered("live").await?.contains(&world.agent.digest).then_some(()))
    })
    .await
    .unwrap();
    let before = until("the pod that was there before stays as it is", LIMIT, || async {
        Ok(row(world, web).await?.filter(|row| row["reason"] == "StartedBeforeMonitoring"))
    });
    before.await.unwrap();

    let restart = ["rollout", "restart", "deployment/web-node-1", "--namespace=live"];
    until("a new pod carries the sidecar", LIMIT, || async {
        world.kubectl(&restart).await?;
        world.kubectl(&["rollout", "status", "deployment/web-node-1", "--namespace=live", "--timeout=120s"]).await?;
        let path = "-o=jsonpath={.items[*].spec.initContainers[*].name}";
        let names = world.kubectl(&["get", "pods", "--namespace=live", path]).await?;
        Ok(names.contains("tasuki-agent").then_some(()))
    })
    .await
    .unwrap();
    let covered = is(world, web, "Covered").await;
    assert_eq!((&covered["placement"], &covered["depth"]), (&"Sidecar".into(), &"Network".into()), "{covered:#}");

    // A version that does not run, and one that nobody can pull, is offered to nobody: applications start as before.
    let absent = AgentImage { version: "9.9.9".to_owned(), digest: format!("sha256:{}", "0".repeat(64)) };
    for (namespace, agent, words) in [("late", &world.broken, "exit code 1"), ("later", &absent, "CannotPull")] {
        world.apply(&live(agent)).await.unwrap();
        world.apply(&on_fargate(namespace)).await.unwrap();
        let late = format!("Deployment/{namespace}/web-node-1");
        let failed = until("the trial has failed", LIMIT, || async {
            Ok(row(world, &late).await?.filter(|row| row["reason"] == "ImageNotPullable"))
        });
        let failed = failed.await.unwrap();
        assert!(failed["detail"].as_str().unwrap().contains(words), "{failed:#}");
        let status = ["rollout", "status", "deployment/web-node-1", "--timeout=120s"];
        let of = format!("--namespace={namespace}");
        world.kubectl(&[&status[..], &[&of]].concat()).await.unwrap();
        assert_eq!(offered(namespace).await.unwrap(), "");
        assert!(offered("live").await.unwrap().contains(&world.agent.digest), "what works is still offered");
    }
}
