//! A registry that fails in the middle of a rollout: the first node has pulled the new agent, the second one cannot.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use anyhow::Result;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;
use tasuki_e2e::coverage::{rows, settled};
use tasuki_e2e::process::until;
use tasuki_e2e::world::AgentImage;
use tasuki_e2e_kubernetes::registry::Manner;
use tasuki_e2e_kubernetes::world::{AGENT, World};

const LIMIT: Duration = Duration::from_secs(180);

/// Two waves of a node each, and time between them in which the registry can fail.
fn monitor(world: &World, agent: &AgentImage) -> String {
    let soaks = world.monitor(agent).replace("name: canary, take: 50%, soak: 5s", "name: canary, take: 50%, soak: 20s");
    soaks.replace("deadline: 60s", "deadline: 30s")
}

async fn covered_by(world: &World, version: &str) {
    let what = format!("both nodes are covered by {version}, and no rollout is left");
    let covered = until(&what, LIMIT, || async {
        let coverage = world.json(&["coverage"]).await?;
        let rows = rows(&coverage);
        let shop = rows.iter().filter(|row| row.0.contains("/shop/") && row.1 == "Covered" && row.2 == version);
        let sets = world.kubectl(&["get", "daemonsets", "--namespace=tasuki-agents", "-o=name"]).await?;
        let done = shop.count() == 2 && sets.lines().count() == 1 && settled(&coverage, "self");
        Ok(done.then_some(()))
    });
    or_logs(world, covered.await).await;
}

async fn or_logs<T>(world: &World, result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error:#}; {}", world.logs().await),
    }
}

/// Nodes with an agent that runs.
async fn watched(world: &World) -> Result<BTreeSet<String>> {
    let list = world.kubectl(&["get", "pods", "--namespace=tasuki-agents", "-o=json"]).await?;
    let list: Value = serde_json::from_str(&list)?;
    let ready = |pod: &&Value| pod["status"]["containerStatuses"][0]["ready"] == true;
    let node = |pod: &Value| pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    Ok(list["items"].as_array().into_iter().flatten().filter(ready).map(node).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_between_two_waves_leaves_no_node_without_an_agent() {
    let world = Box::pin(World::start(2, |text| println!("{text}"))).await.unwrap();
    world.shop("node-1").await.unwrap();
    world.shop("node-2").await.unwrap();
    world.install(&["enforce=true", "defaultMonitor=false"]).await.unwrap();
    world.answers().await.unwrap();
    world.apply(&monitor(&world, &world.agent)).await.unwrap();
    covered_by(&world, "0.1.0").await;

    // The first node has the new agent when the registry begins to refuse.
    world.apply(&monitor(&world, &world.next)).await.unwrap();
    let moved = until("the first node has the new agent alone", LIMIT, || async {
        let label = "tasuki.dev/agent-next=only";
        Ok((world.kubectl(&["get", "nodes", "-l", label, "-o=name"]).await?.lines().count() == 1).then_some(()))
    });
    or_logs(&world, moved.await).await;
    world.registry.set_manner(Manner { refuses: true, ..Manner::default() });

    let failed = until("the version is given up, and never is a node without an agent", LIMIT, || async {
        let watched = watched(&world).await?;
        assert_eq!(watched.len(), 2, "a node is without an agent: only {watched:?} have one");
        let path = "-o=jsonpath={.status.conditions[?(@.type==\"Stalled\")].message}";
        let said = world.kubectl(&["get", "runtimemonitor", "prod", path]).await?;
        Ok(said.contains("failed").then_some(said))
    });
    let said = or_logs(&world, failed.await).await;
    println!("{said}");
    assert!(said.starts_with("0.1.1 failed: "), "{said}");
    assert!(said.contains("ImagePullBackOff") || said.contains("ErrImagePull"), "the cause is quoted: {said}");
    // The old image is on every node still.
    covered_by(&world, "0.1.0").await;

    // The registry is well again, and another version is wanted.
    world.registry.set_manner(Manner::default());
    let image = tasuki_e2e::world::agent("0.1.3").unwrap().pack(&format!("{AGENT}:0.1.3")).unwrap();
    world.registry.push(&image);
    let after = AgentImage { version: "0.1.3".to_owned(), digest: image.digest };
    world.apply(&monitor(&world, &after)).await.unwrap();
    covered_by(&world, "0.1.3").await;
}
