//! The protocol as it should go: enrolment, heartbeats, findings, policy, and the gateway's absence.

use crate::world::{World, arn, finding, known, until, with_task};
use serde_json::json;
use tasuki::gateway::evidence::Address;
use tasuki::store::FindingFilter;
use tasuki_api::agent::AgentKind;
use tasuki_api::desired::{Document, Metadata, Object};
use ulid::Ulid;

#[tokio::test]
async fn an_agent_enrols_reports_and_its_findings_are_stamped() {
    let mut world = World::new().await;
    world.add("one", known("one"));
    let agent = world.agent(world.agent_config("one", AgentKind::Sidecar, None), &[arn("one"), arn("foreign")]);
    let report = world.report(|_| true).await;
    assert_eq!((&*report.task, report.kind, report.node.as_deref()), (arn("one").as_str(), AgentKind::Sidecar, None));
    assert_eq!(report.heartbeat.tasks, [arn("one")], "what a sidecar says of other tasks is dropped");
    assert_eq!(report.image_digest.as_deref(), Some("sha256:aaaa"));
    assert_eq!(world.gateway().tally().get("ForeignTask"), 1);
    assert_eq!(world.aws.asked.lock().unwrap().len(), 1, "STS was asked once");
    assert_eq!(world.gateway().identity(&arn("one")), Some((Address::Verified, true)));

    let claim = json!({"account": "999999999999", "cluster": "lie", "service": "lie", "container": {"name": "lie", "id": "one-app-runtime"}});
    agent.findings.send(finding(1, claim)).await.unwrap();
    until("the finding is stored", async || world.store.finding(Ulid(1)).await.unwrap().is_some()).await;
    let resource = world.store.finding(Ulid(1)).await.unwrap().unwrap().finding.resource;
    let container = resource.container.clone().unwrap();
    assert_eq!((&*container.name, container.image_digest.as_deref()), ("app", Some("sha256:app")));
    assert_eq!((resource.account.as_deref(), resource.service.as_deref()), (Some("111122223333"), Some("web")));
    assert_eq!(resource.task, Some(arn("one")));
    until("the receipt arrived", async || agent.handle.status().waiting == 0).await;

    // A finding of somewhere else is refused for good, and does not hold up the next one.
    agent.findings.send(finding(2, json!({"task": arn("foreign")}))).await.unwrap();
    agent.findings.send(finding(3, json!({}))).await.unwrap();
    until("both are settled", async || agent.handle.status().sent == 2 && agent.handle.status().refused == 1).await;
    assert_eq!(world.store.finding(Ulid(2)).await.unwrap(), None);
    agent.handle.stop().await;
    world.down().await;
}

#[tokio::test]
async fn the_gateway_is_away_and_nothing_is_lost_or_doubled() {
    let mut world = World::new().await;
    world.add("one", known("one"));
    let state = world.dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let agent = world.agent(world.agent_config("one", AgentKind::Sidecar, Some(state)), &[]);
    world.report(|_| true).await;
    world.down().await;
    for number in 1..=250 {
        agent.findings.send(finding(number, json!({}))).await.unwrap();
    }
    until("the agent noticed", async || agent.handle.status().failures >= 3).await;
    assert_eq!(agent.handle.status().waiting, 250);
    world.up().await;
    until("all are settled", async || agent.handle.status().waiting == 0).await;
    let all = world.store.findings(&FindingFilter { limit: 1000, ..Default::default() }).await.unwrap();
    assert_eq!(all.len(), 250);
    assert_eq!(agent.handle.status().sent, 250);
    agent.handle.stop().await;
    world.down().await;
}

#[tokio::test]
async fn an_agent_with_nothing_to_say_is_heard_as_soon_as_its_gateway_is_back() {
    // Its next heartbeat would be in five minutes.
    let mut world = World::with(|config| config.sidecar_heartbeat_seconds = 300).await;
    world.add("one", known("one"));
    let agent = world.agent(world.agent_config("one", AgentKind::Sidecar, None), &[]);
    world.report(|_| true).await;
    world.down().await;
    until("the agent noticed", async || agent.handle.status().failures >= 3).await;
    world.up().await;
    world.report(|_| true).await;
    // The same where it has nobody to miss: the gateway is back before it asks.
    world.down().await;
    world.up().await;
    world.report(|_| true).await;
    agent.handle.stop().await;
}

#[tokio::test]
async fn a_node_agent_speaks_for_its_node_and_no_other() {
    let mut world = World::new().await;
    let on = |id: &str, node: &'static str| with_task(known(id), |task| task.node = Some(node.into()));
    let mut daemon = on("daemon", "node-a");
    daemon.kind = AgentKind::Node;
    world.add("daemon", daemon);
    world.add("near", on("near", "node-a"));
    world.add("far", on("far", "node-b"));
    let tasks = [arn("near"), arn("far"), arn("daemon")];
    let agent = world.agent(world.agent_config("daemon", AgentKind::Node, None), &tasks);
    let report = world.report(|_| true).await;
    assert_eq!((report.node.as_deref(), report.heartbeat.tasks), (Some("node-a"), vec![arn("near"), arn("daemon")]));

    let container = |id: &str| json!({"container": {"id": id, "name": "lie"}});
    for (number, claim) in [
        (1, container("near-app-runtime")),
        (2, container("far-app-runtime")),
        (3, json!({"task": arn("far")})),
        (4, json!({"task": arn("near"), "container": {"id": "daemon-app-runtime", "name": "x"}})),
        (5, json!({"node": "node-b", "account": "999999999999"})),
    ] {
        agent.findings.send(finding(number, claim)).await.unwrap();
    }
    until("all are settled", async || agent.handle.status().sent + agent.handle.status().refused == 5).await;
    let place = async |number: u128| {
        let stored = world.store.finding(Ulid(number)).await.unwrap();
        stored.map(|stored| (stored.finding.resource.task, stored.finding.resource.node))
    };
    assert_eq!(place(1).await, Some((Some(arn("near")), Some("node-a".to_owned()))));
    // Not a container of this node's tasks: the node's own, never the other task's.
    assert_eq!(place(2).await, Some((None, Some("node-a".to_owned()))));
    assert_eq!((place(3).await, place(4).await), (None, None));
    assert_eq!(place(5).await, Some((None, Some("node-a".to_owned()))));
    agent.handle.stop().await;
}

#[tokio::test]
async fn a_new_policy_reaches_the_agent_and_a_suppressed_finding_is_stored_unsent() {
    let mut world = World::new().await;
    world.add("one", known("one"));
    let mut agent = world.agent(world.agent_config("one", AgentKind::Sidecar, None), &[]);
    world.report(|report| !report.heartbeat.policy.is_empty()).await;
    let metadata = |name: &str| Metadata { name: name.to_owned(), ..Default::default() };
    let spec = serde_json::from_value(json!({"detection": {"rules": {"disable": ["T"]}}})).unwrap();
    let monitor = Document::RuntimeMonitor(Box::new(Object { metadata: metadata("m"), spec }));
    let spec = json!({"filter": {"resource.service": {"equals": ["web"]}}, "reason": "known"});
    let suppression =
        Document::Suppression(Object { metadata: metadata("quiet"), spec: serde_json::from_value(spec).unwrap() });
    world.policies.update(&[monitor]).await.unwrap();
    assert!(world.gateway().suppress(&[suppression]).is_empty());
    agent.policy.wait_for(|policy| policy.rules.disable == ["T"]).await.unwrap();
    let hash = world.policies.hash(Some("m"));
    world.report(|report| report.heartbeat.policy == hash).await;

    agent.findings.send(finding(1, json!({}))).await.unwrap();
    until("the finding is stored", async || world.store.finding(Ulid(1)).await.unwrap().is_some()).await;
    assert_eq!(world.store.finding(Ulid(1)).await.unwrap().unwrap().suppressed.as_deref(), Some("quiet"));
    assert_eq!(world.store.unsent_findings(9).await.unwrap(), []);
    agent.handle.stop().await;
}

#[tokio::test]
async fn a_container_that_ecs_learns_of_late_is_found_by_one_refresh() {
    let mut world = World::new().await;
    let now = known("one");
    let early = with_task(now.clone(), |task| task.containers[0].runtime_id = None);
    world.add("one", early);
    world.describe("one", &now);
    world.fleet.ecs.lock().unwrap().insert(arn("one"), now);
    let agent = world.agent(world.agent_config("one", AgentKind::Sidecar, None), &[]);
    world.report(|_| true).await;
    assert_eq!(*world.fleet.refreshes.lock().unwrap(), 1);
    agent.handle.stop().await;
}
