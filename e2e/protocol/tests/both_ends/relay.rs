//! The protocol as it should go: enrolment, heartbeats, findings, policy, and the gateway's absence.

use crate::world::{World, arn, finding, known, until, with_task};
use serde_json::json;
use std::time::Duration;
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
