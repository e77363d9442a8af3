//! Where agents go, and how everything is taken out again.

use crate::world::World;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tasuki::engine::Request;
use tasuki_api::coverage::{Currency, Verdict};

/// A cluster with a node and one on Fargate: `web` on the node, `checkout` and `billing` beside, and the
/// standalone task `report`.
fn shop(world: &World) {
    world.cluster("shop-ec2", 1);
    world.cluster("shop-fargate", 0);
    for family in ["web", "checkout", "billing", "report"] {
        world.definition(family, family != "web", |_| {});
    }
    world.service("shop-ec2", "web", "EC2", 1);
    world.service("shop-fargate", "checkout", "FARGATE", 2);
    world.service("shop-fargate", "billing", "FARGATE", 1);
    world.run_task("shop-fargate", "report");
}

/// Only `checkout` gets its sidecar live.
fn render_the_rest(spec: &mut Value) {
    spec["ecs"]["fargate"] = json!({"deliveryFor": {"shop-fargate/checkout": "Live"}, "preflight": "Static"});
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn observe_changes_nothing() {
    let mut world = World::new().await;
    shop(&world);
    world.monitor("prod", "Observe", "1.0.0", render_the_rest);
    world.start().await;
    world.verdict("web", Verdict::Uncovered, "ObserveOnly").await;
    world.verdict("checkout", Verdict::Uncovered, "ObserveOnly").await;
    world.verdict("billing", Verdict::Uncovered, "AwaitingRender").await;
    world.verdict("report", Verdict::Uncovered, "StandaloneTask").await;
    let plan = world.ask(Request::Plan).await;
    let signs: BTreeSet<(String, String)> =
        plan.iter().map(|item| (item.target.clone(), format!("{:?}", item.change))).collect();
    for (target, change) in
        [("tasuki", "Create"), ("checkout", "Replace"), ("billing", "Blocked"), ("report", "Blocked")]
    {
        assert!(signs.contains(&(target.to_owned(), change.to_owned())), "{target} {change} in {plan:#?}");
    }
    assert_eq!(world.wire.changes(), Vec::<String>::new(), "no call that changes anything was made");
    assert_eq!(world.controller().store().actions(10).await.unwrap(), [], "and none is in the action log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enforce_converges_and_uninstall_leaves_nothing() {
    let mut world = World::new().await;
    shop(&world);
    world.monitor("prod", "Enforce", "1.0.0", render_the_rest);
    world.start().await;
    let web = world.verdict("web", Verdict::Covered, "").await;
    assert_eq!((web.agent_version.as_deref(), web.monitor.as_deref()), (Some("1.0.0"), Some("prod")));
    world.verdict("checkout", Verdict::Covered, "").await;
    world.verdict("billing", Verdict::Uncovered, "AwaitingRender").await;
    world.verdict("report", Verdict::Uncovered, "StandaloneTask").await;
    world
        .until("its policy is current", |world| {
            let view = world.view();
            view.tasks.iter().any(|t| t.workload == "checkout" && t.currency == Some(Currency::Current)).then_some(())
        })
        .await;
    assert_eq!((world.revisions("checkout-tasuki"), world.revisions("tasuki")), (1, 1), "one revision of each");
    let owned = world.ask(Request::Inventory).await.unwrap();
    assert_eq!(owned.len(), 4, "daemon, sidecar and their definitions: {owned:#?}");

    // A controller that has just started takes out what it does not remember having made.
    world.kill();
    world.start().await;
    // Whoever asks a second time hears the same.
    let (left, again) = tokio::join!(world.ask(Request::Uninstall), world.ask(Request::Uninstall));
    assert_eq!(left, again);
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(world.ask(Request::Inventory).await.unwrap(), []);
    for (cluster, service) in [("shop-ec2", "web"), ("shop-fargate", "checkout"), ("shop-fargate", "billing")] {
        assert_eq!(world.runs(cluster, service), format!("{service}:1"), "the service's own definition");
    }
    world.verdict("checkout", Verdict::Uncovered, "Frozen").await;
    assert!(world.view().frozen, "what was taken out does not come back by itself");
    assert_eq!(world.ask(Request::Inventory).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_rolls_and_no_node_is_ever_without_an_agent() {
    let mut world = World::web_on_nodes(3).await;
    world.start().await;
    world.verdict("web", Verdict::Covered, "").await;
    world.until("every node has its agent", |world| (world.agents.nodes().len() == 3).then_some(())).await;
    world.monitor("prod", "Enforce", "1.0.1", |_| {});
    world
        .until("the roll is done", |world| {
            let nodes = world.agents.nodes();
            assert_eq!(nodes.len(), 3, "a node is without an agent: {nodes:?}");
            let view = world.view();
            assert!(
                view.tasks.iter().all(|t| t.workload != "web" || t.verdict == Verdict::Covered),
                "{:#?}",
                view.tasks
            );
            let done = nodes.values().all(|versions| versions.iter().eq(["1.0.1"]));
            (done && view.clusters.iter().all(|cluster| cluster.rollout.is_none())).then_some(())
        })
        .await;
    let owned = world.ask(Request::Inventory).await.unwrap();
    let left: Vec<String> = owned.iter().map(ToString::to_string).filter(|text| !text.contains("definition")).collect();
    assert_eq!(left.len(), 1, "one daemon service and no attribute is left: {left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freeze_stops_everything_until_it_is_taken_off() {
    let mut world = World::new().await;
    world.cluster("shop", 0);
    world.definition("web", true, |_| {});
    world.service("shop", "web", "FARGATE", 1);
    world.monitor("prod", "Observe", "1.0.0", |_| {});
    world.start().await;
    world.ask(|done| Request::Freeze(true, done)).await.unwrap();
    world.monitor("prod", "Enforce", "1.0.0", |_| {});
    world.verdict("web", Verdict::Uncovered, "Frozen").await;
    // It outlives the process.
    world.kill();
    world.start().await;
    world.verdict("web", Verdict::Uncovered, "Frozen").await;
    assert_eq!(world.wire.changes(), Vec::<String>::new());
    world.ask(|done| Request::Freeze(false, done)).await.unwrap();
    world.verdict("web", Verdict::Covered, "").await;
}
