//! Actions over a wire that can be cut between any two calls.

use super::{Executor, OwnedKind, Verdict};
use crate::store::Store;
use crate::testing::{Ecs, Wire, agent, arn, scope_id, scopes, service};
use serde_json::{Value, json};
use tasuki_api::coverage::Reason;
use tasuki_core::action::{Action, ActionKind, DAEMON_SERVICE, FAMILY_SUFFIX, HOLD, OWNER_TAG, SIDECAR, SidecarSpec};
use tasuki_core::fleet::{Change, LaunchType};

fn sidecar(version: &str) -> SidecarSpec {
    SidecarSpec { agent: agent(version), share_processes: true, fail_closed: false, grow: false }
}

fn action(kind: ActionKind) -> Action {
    let cluster = arn("cluster/shop").into();
    Action { scope: scope_id(), cluster, monitor: "prod".into(), why: "test".to_owned(), kind }
}

fn inject(from: &str, version: &str) -> Action {
    let service = arn("service/shop/web").into();
    action(ActionKind::Inject { service, from: from.into(), sidecar: sidecar(version) })
}

/// A cluster with one service that runs a definition with a secret and an empty value.
fn shop() -> (Ecs, String) {
    let ecs = Ecs::default();
    ecs.fill("shop", 0, 0, 1);
    let definition = ecs.define(json!({"family": "web", "networkMode": "awsvpc", "cpu": "512", "memory": "1024",
        "requiresCompatibilities": ["FARGATE"], "executionRoleArn": "arn:aws:iam::111122223333:role/x",
        "containerDefinitions": [{"name": "app", "image": "web:1", "essential": true, "command": [],
            "environment": [{"name": "PASSWORD", "value": "hunter2"}], "fieldOfTomorrow": {"kept": ""}}],
        "tags": [{"key": "team", "value": "shop"}, {"key": "aws:cloudformation:stack-name", "value": "s"}]}));
    ecs.state().services.push(service("shop", "web", "web:1"));
    (ecs, definition)
}

async fn executor(wire: &Wire, store: &Store) -> Executor {
    Executor::new(scopes(wire).await.0, store.clone())
}

async fn store() -> Store {
    Store::open("sqlite::memory:").await.unwrap()
}

fn runs(ecs: &Ecs) -> String {
    ecs.state().services[0]["taskDefinition"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_injection_keeps_everything_of_the_owners_and_sends_three_fields() {
    let (ecs, from) = shop();
    let (wire, store) = (ecs.wire(), store().await);
    let outcome = executor(&wire, &store).await.execute(&inject(&from, "1"), "commit").await;
    assert_eq!(outcome.verdict, Verdict::Done);
    let to = arn("task-definition/web-tasuki:1");
    assert_eq!(runs(&ecs), to);
    assert_eq!(
        wire.bodies("UpdateService"),
        [json!({"cluster": arn("cluster/shop"), "service": arn("service/shop/web"), "taskDefinition": to})]
    );
    let sent = &wire.bodies("RegisterTaskDefinition")[0];
    let app = &sent["containerDefinitions"][0];
    assert_eq!((&app["command"], &app["fieldOfTomorrow"]), (&json!([]), &json!({"kept": ""})));
    assert_eq!(sent["containerDefinitions"][1]["name"], SIDECAR);
    assert!(sent.get("registeredAt").is_none() && sent.get("taskDefinitionArn").is_none());
    let keys: Vec<_> = sent["tags"].as_array().unwrap().iter().map(|tag| tag["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["team", OWNER_TAG, "tasuki.dev/content"]);
    // The fleet hears at once, the log keeps the trace, the journal is empty, no secret is stored.
    assert!(outcome.changes.iter().any(|c| matches!(c, Change::Service(s) if *s.definition == *to)));
    assert!(outcome.changes.iter().any(|c| matches!(c, Change::Definition(d) if *d.arn == *to && d.sidecar.is_some())));
    let log = store.actions(10).await.unwrap();
    assert_eq!((log[0].before.as_deref(), log[0].after.as_deref()), (Some(&*from), Some(&*to)));
    assert_eq!((log[0].desired.as_str(), log[0].request_ids.len()), ("commit", 2));
    assert!(!serde_json::to_string(&log).unwrap().contains("hunter2"));
    assert!(store.open_intents().await.unwrap().is_empty());
}

/// kill -9 between any two calls of an action, and in any of them; then a new process: it looks
/// into the intents, and decide wants the action again unless it sees it done.
async fn killed_everywhere(
    start: impl Fn() -> (Ecs, Action),
    done: impl Fn(&Ecs) -> bool,
    check: impl Fn(&Ecs, &Wire),
) {
    let mut cuts = 0;
    for heard in [false, true] {
        for calls in 0.. {
            let (ecs, action) = start();
            let (wire, store) = (ecs.wire(), store().await);
            wire.cut_after(calls, heard);
            let dying = executor(&wire, &store).await;
            if let Some(outcome) = wire.until_cut(dying.execute(&action, "commit")).await {
                assert_eq!(outcome.verdict, Verdict::Done, "the whole of it takes {calls} calls");
                break;
            }
            cuts += 1;
            let fresh = executor(&wire, &store).await;
            fresh.resolve_intents().await.unwrap();
            assert!(store.open_intents().await.unwrap().is_empty());
            if !done(&ecs) {
                let outcome = fresh.execute(&action, "commit").await;
                assert_eq!(outcome.verdict, Verdict::Done, "cut after {calls}, heard {heard}");
            }
            assert!(done(&ecs), "cut after {calls}, heard {heard}");
            check(&ecs, &wire);
        }
    }
    assert!(cuts >= 8, "{cuts} cuts were tried");
}

/// The one that matters.
#[tokio::test]
async fn a_process_killed_between_any_two_calls_of_an_injection_leaves_at_most_one_revision() {
    let start = || {
        let (ecs, from) = shop();
        (ecs, inject(&from, "1"))
    };
    killed_everywhere(
        start,
        |ecs| runs(ecs) == arn("task-definition/web-tasuki:1"),
        |ecs, wire| {
            assert_eq!((ecs.revisions("web-tasuki"), ecs.revisions("web")), (1, 1));
            assert_eq!(wire.bodies("UpdateService").len(), 1, "one deployment");
        },
    )
    .await;
}

#[tokio::test]
async fn a_process_killed_while_it_takes_the_sidecar_out_leaves_at_most_one_revision() {
    let start = || {
        let (ecs, _) = shop();
        let injected =
            tasuki_core::transform::inject(&ecs.state().definitions[0], &sidecar("1"), &arn("task-definition/web:1"));
        let injected = ecs.define(injected.unwrap());
        // The source is gone, so that a fresh revision must be made.
        ecs.state().definitions[0]["status"] = "INACTIVE".into();
        ecs.state().services[0]["taskDefinition"] = injected.as_str().into();
        (ecs, action(ActionKind::Uninject { service: arn("service/shop/web").into(), from: injected.into() }))
    };
    killed_everywhere(
        start,
        |ecs| runs(ecs) == arn("task-definition/web:2"),
        |ecs, wire| {
            assert_eq!(ecs.revisions("web"), 1);
            assert_eq!(wire.bodies("UpdateService").len(), 1, "one deployment");
        },
    )
    .await;
}

#[tokio::test]
async fn a_process_killed_while_it_creates_a_daemon_leaves_one_service_and_one_revision() {
    let start = || {
        let ecs = Ecs::default();
        ecs.fill("shop", 0, 0, 1);
        let create =
            ActionKind::CreateDaemon { service: DAEMON_SERVICE.into(), launch: LaunchType::Ec2, agent: agent("1") };
        (ecs, action(create))
    };
    killed_everywhere(
        start,
        |ecs| ecs.state().services.len() == 1,
        |ecs, _| {
            assert_eq!(ecs.state().services.len(), 1);
            assert_eq!(ecs.revisions(DAEMON_SERVICE), 1);
        },
    )
    .await;
}

#[tokio::test]
async fn a_registration_whose_answer_was_lost_is_found_instead_of_repeated() {
    use crate::testing::Answer;
    let (ecs, from) = shop();
    let inner = ecs.wire();
    let wire = Wire::new(move |op, body| match (op, inner.pass(op, body)) {
        ("RegisterTaskDefinition", _) => Answer::Error("ServerException", "Service Unavailable".to_owned()),
        (_, answer) => answer,
    });
    let store = store().await;
    assert_eq!(executor(&wire, &store).await.execute(&inject(&from, "1"), "c").await.verdict, Verdict::Done);
    assert_eq!((ecs.revisions("web-tasuki"), wire.bodies("RegisterTaskDefinition").len()), (1, 1));
    assert_eq!(runs(&ecs), arn("task-definition/web-tasuki:1"));
}

#[tokio::test]
async fn an_intent_that_a_dead_process_left_is_resolved_by_looking() {
    let (ecs, from) = shop();
    let (wire, store) = (ecs.wire(), store().await);
    let executor = executor(&wire, &store).await;
    for (call, marker) in
        [("ecs:RegisterTaskDefinition", "web-tasuki abc".to_owned()), ("ecs:UpdateService", from.clone())]
    {
        let intent =
            crate::store::Intent { id: ulid::Ulid::new(), action: inject(&from, "1"), call: call.to_owned(), marker };
        store.open_intent(&intent, jiff::Timestamp::now()).await.unwrap();
    }
    assert_eq!(executor.resolve_intents().await.unwrap(), 2);
    let log = store.actions(10).await.unwrap();
    let after: Vec<_> = log.iter().map(|record| record.after.clone()).collect();
    assert!(after.contains(&None) && after.contains(&Some(from)), "{after:?}");
    assert!(wire.calls().iter().all(|call| call.starts_with("Describe")), "{:?}", wire.calls());
}

#[tokio::test]
async fn what_changed_since_the_decision_drops_the_action() {
    let (ecs, from) = shop();
    let (wire, store) = (ecs.wire(), store().await);
    let executor = executor(&wire, &store).await;
    ecs.state().services[0]["taskDefinition"] = arn("task-definition/web:2").into();
    let outcome = executor.execute(&inject(&from, "1"), "c").await;
    assert!(matches!(&outcome.verdict, Verdict::Dropped(why) if why.contains("web:2")), "{outcome:?}");
    assert!(outcome.changes.iter().any(|c| matches!(c, Change::Service(s) if s.definition.ends_with("web:2"))));
    ecs.state().services[0]["status"] = "DRAINING".into();
    assert!(matches!(executor.execute(&inject(&from, "1"), "c").await.verdict, Verdict::Dropped(_)));
    ecs.state().services.clear();
    let outcome = executor.execute(&inject(&from, "1"), "c").await;
    assert!(outcome.changes.iter().any(|c| matches!(c, Change::ServiceGone(_))));
    assert_eq!(wire.counts().get("RegisterTaskDefinition"), None);
    assert_eq!(store.actions(10).await.unwrap().len(), 3, "each with its reason in the log");
}

#[tokio::test]
async fn what_stands_in_the_way_becomes_its_coverage_reason() {
    type Edit = fn(&mut Value);
    let cases: [(Reason, Edit); 5] = [
        (Reason::DeploymentInProgress, |s| s["deployments"][0]["rolloutState"] = "IN_PROGRESS".into()),
        (Reason::UnsupportedController, |s| s["deploymentController"] = json!({"type": "CODE_DEPLOY"})),
        (Reason::WouldInterrupt, |s| s["deploymentConfiguration"]["minimumHealthyPercent"] = 0.into()),
        (Reason::HasLifecycleHooks, |s| {
            s["deploymentConfiguration"]["lifecycleHooks"] = json!([{"hookTargetArn": "arn:x", "roleArn": "arn:y"}]);
        }),
        (Reason::ManagedByExpress, |s| s["resourceManagementType"] = "ECS".into()),
    ];
    for (reason, change) in cases {
        let (ecs, from) = shop();
        change(&mut ecs.state().services[0]);
        let (wire, store) = (ecs.wire(), store().await);
        let outcome = executor(&wire, &store).await.execute(&inject(&from, "1"), "c").await;
        let Verdict::Blocked(blocked) = &outcome.verdict else { panic!("{reason:?}: {outcome:?}") };
        assert_eq!((blocked.reason, &*blocked.target), (reason, &*arn("service/shop/web")));
        assert!(
            outcome.changes.iter().any(|c| matches!(c, Change::Obstructed { reason: told, .. } if *told == reason))
        );
        assert_eq!(ecs.revisions("web-tasuki"), 0);
    }
}

#[tokio::test]
async fn a_protected_task_keeps_its_service_as_it_is() {
    let (ecs, from) = shop();
    let task = arn("task/shop/1");
    ecs.state().tasks.push(json!({"taskArn": task, "clusterArn": arn("cluster/shop")}));
    ecs.state().protected.push(task);
    let (wire, store) = (ecs.wire(), store().await);
    let outcome = executor(&wire, &store).await.execute(&inject(&from, "1"), "c").await;
    assert!(matches!(outcome.verdict, Verdict::Blocked(b) if b.reason == Reason::ProtectedTasks));
    assert_eq!(runs(&ecs), from);
}

#[tokio::test]
async fn denied_and_throttled_calls_become_reasons() {
    use crate::testing::Answer;
    type Refusal = fn() -> Answer;
    let cases: [(&str, Refusal, Reason); 3] = [
        ("RegisterTaskDefinition", || Answer::denied("ecs:RegisterTaskDefinition"), Reason::PermissionDenied),
        ("UpdateService", || Answer::denied("ecs:UpdateService"), Reason::PermissionDenied),
        ("UpdateService", Answer::throttled, Reason::BudgetExhausted),
    ];
    for (refused, answer, reason) in cases {
        let (ecs, from) = shop();
        let inner = ecs.wire();
        let wire = Wire::new(move |op, body| if op == refused { answer() } else { inner.pass(op, body) });
        let store = store().await;
        let outcome = executor(&wire, &store).await.execute(&inject(&from, "1"), "c").await;
        let Verdict::Blocked(blocked) = outcome.verdict else { panic!("{refused}: {outcome:?}") };
        assert_eq!(blocked.reason, reason);
        assert!(blocked.detail.contains(&format!("ecs:{refused}")), "{}", blocked.detail);
        assert!(store.open_intents().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_new_agent_replaces_the_old_one_and_goes_out_again() {
    let (ecs, from) = shop();
    let (wire, store) = (ecs.wire(), store().await);
    let executor = executor(&wire, &store).await;
    let settle = || ecs.state().services[0]["deployments"][0]["rolloutState"] = "COMPLETED".into();
    executor.execute(&inject(&from, "1"), "c").await;
    settle();
    let first = runs(&ecs);
    assert_eq!(executor.execute(&inject(&first, "2"), "c").await.verdict, Verdict::Done);
    settle();
    let second = runs(&ecs);
    assert_eq!(second, arn("task-definition/web-tasuki:2"));
    let sent = &wire.bodies("RegisterTaskDefinition")[1];
    assert_eq!(sent["containerDefinitions"].as_array().unwrap().len(), 2, "one sidecar, not two");
    assert_eq!(sent["containerDefinitions"][1]["dockerLabels"]["tasuki.dev/source"], from.as_str());
    let service = arn("service/shop/web");
    let out = |from: &str| action(ActionKind::Uninject { service: service.as_str().into(), from: from.into() });
    assert_eq!(executor.execute(&out(&second), "c").await.verdict, Verdict::Done);
    assert_eq!(runs(&ecs), from, "the very definition that it was made from");
    // The source is gone by the time it should be taken out: a fresh one is made of the rest.
    ecs.state().services[0]["taskDefinition"] = second.as_str().into();
    settle();
    ecs.state().definitions[0]["status"] = "INACTIVE".into();
    assert_eq!(executor.execute(&out(&second), "c").await.verdict, Verdict::Done);
    assert_eq!(runs(&ecs), arn("task-definition/web:2"));
    let state = ecs.state();
    let fresh = state.definitions.last().unwrap();
    assert_eq!(fresh["containerDefinitions"], state.definitions[0]["containerDefinitions"]);
    assert!(fresh.get("pidMode").is_none());
    let tags = wire.bodies("RegisterTaskDefinition").last().unwrap()["tags"].to_string();
    assert!(!tags.contains("tasuki.dev"), "what is the owner's carries nothing of ours: {tags}");
}

#[tokio::test]
async fn a_bad_deployment_is_rolled_back_by_ecs_or_by_the_former_definition() {
    let (ecs, from) = shop();
    let (wire, store) = (ecs.wire(), store().await);
    let executor = executor(&wire, &store).await;
    executor.execute(&inject(&from, "1"), "c").await;
    let injected = runs(&ecs);
    let deployment = ecs.state().services[0]["deployments"][0]["id"].as_str().unwrap().to_owned();
    let back = |deployment: &str| {
        let (service, definition) = (arn("service/shop/web").into(), injected.as_str().into());
        action(ActionKind::RollBack { service, deployment: deployment.into(), definition })
    };
    assert!(matches!(executor.execute(&back("ecs-svc/other"), "c").await.verdict, Verdict::Dropped(_)));
    let running = json!({"serviceDeploymentArn": arn("service-deployment/shop/web/1"), "status": "IN_PROGRESS"});
    ecs.state().running_deployments.push(running);
    assert_eq!(executor.execute(&back(&deployment), "c").await.verdict, Verdict::Done);
    assert_eq!(wire.bodies("StopServiceDeployment")[0]["stopType"], "ROLLBACK");
    ecs.state().running_deployments.clear();
    assert_eq!(executor.execute(&back(&deployment), "c").await.verdict, Verdict::Done);
    assert_eq!(runs(&ecs), from);
}

#[tokio::test]
async fn a_daemon_is_created_once_updated_and_found_again() {
    let (ecs, _) = shop();
    let (wire, store) = (ecs.wire(), store().await);
    let executor = executor(&wire, &store).await;
    let create =
        action(ActionKind::CreateDaemon { service: DAEMON_SERVICE.into(), launch: LaunchType::Ec2, agent: agent("1") });
    assert_eq!(executor.execute(&create, "c").await.verdict, Verdict::Done);
    assert!(matches!(executor.execute(&create, "c").await.verdict, Verdict::Dropped(_)));
    let sent = &wire.bodies("CreateService")[0];
    assert_eq!((&sent["schedulingStrategy"], &sent["launchType"]), (&json!("DAEMON"), &json!("EC2")));
    assert_eq!(sent["placementConstraints"].as_array().unwrap().len(), 2);
    assert!(sent.get("desiredCount").is_none() && sent["clientToken"].as_str().unwrap().len() <= 36);
    assert_eq!(ecs.revisions(DAEMON_SERVICE), 1);
    let (service, from) = (arn("service/shop/tasuki"), arn("task-definition/tasuki:1"));
    let update = |version: &str| ActionKind::UpdateDaemon {
        service: service.as_str().into(),
        from: from.as_str().into(),
        agent: agent(version),
    };
    assert!(matches!(executor.execute(&action(update("1")), "c").await.verdict, Verdict::Dropped(_)), "nothing to do");
    assert_eq!(executor.execute(&action(update("2")), "c").await.verdict, Verdict::Done);
    let node = ecs.state().nodes[0]["containerInstanceArn"].as_str().unwrap().to_owned();
    let put = action(ActionKind::PutAttribute { node: node.as_str().into(), name: HOLD.into() });
    let outcome = executor.execute(&put, "c").await;
    assert!(
        outcome
            .changes
            .iter()
            .any(|c| matches!(c, Change::NodeRead { node, .. } if node.attributes.contains_key(HOLD)))
    );

    let own = executor.own_definitions(&scope_id()).await.unwrap();
    assert!(
        own.len() == 2 && own.iter().all(|c| matches!(c, Change::Definition(d) if d.active && d.sidecar.is_some()))
    );
    let found = executor.inventory(&scope_id()).await.unwrap();
    let kinds: Vec<_> = found.iter().map(|owned| owned.to_string().split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["daemon", "attribute", "task", "task"], "{found:?}");
    for owned in &found {
        assert_eq!(executor.execute(&owned.removal("prod"), "c").await.verdict, Verdict::Done, "{owned}");
    }
    assert!(executor.inventory(&scope_id()).await.unwrap().is_empty());
    assert_eq!(ecs.revisions("web"), 1, "the owner's are untouched");
    ecs.state().services.retain(|service| service["serviceName"] != DAEMON_SERVICE);
    // Deleted and created again under the same name is another attempt, whatever the action looks like.
    assert_eq!(executor.execute(&create, "c").await.verdict, Verdict::Done);
    let sent = wire.bodies("CreateService");
    assert_eq!(sent.len(), 2);
    assert_ne!(sent[0]["clientToken"], sent[1]["clientToken"]);
}

#[tokio::test]
async fn what_tasuki_did_not_make_it_does_not_remove() {
    let (ecs, from) = shop();
    ecs.state().services.push(service("shop", DAEMON_SERVICE, "web:1"));
    let foreign = ecs.define(json!({"family": format!("theirs{FAMILY_SUFFIX}"), "containerDefinitions": []}));
    let (wire, store) = (ecs.wire(), store().await);
    let executor = executor(&wire, &store).await;
    let delete = action(ActionKind::DeleteDaemon { service: arn("service/shop/tasuki").into() });
    assert!(matches!(executor.execute(&delete, "c").await.verdict, Verdict::Blocked(_)));
    for definition in [foreign, from] {
        let deregister = action(ActionKind::Deregister { definition: definition.into() });
        assert!(matches!(executor.execute(&deregister, "c").await.verdict, Verdict::Dropped(_)));
    }
    let found = executor.inventory(&scope_id()).await.unwrap();
    assert!(!found.iter().any(|owned| matches!(owned.kind, OwnedKind::Definition { .. } | OwnedKind::Daemon { .. })));
}

#[tokio::test]
async fn a_definition_is_described_for_the_fleet_without_its_secrets() {
    let (ecs, from) = shop();
    let (wire, store) = (ecs.wire(), store().await);
    let describe = action(ActionKind::DescribeDefinition { definition: from.into(), sidecar: Some(sidecar("1")) });
    let outcome = executor(&wire, &store).await.execute(&describe, "c").await;
    let [Change::Definition(definition)] = &outcome.changes[..] else { panic!("{outcome:?}") };
    assert_eq!((definition.containers.len(), &definition.obstacle, definition.active), (1, &None, true));
    assert!(!format!("{outcome:?}").contains("hunter2"));
    assert!(store.actions(10).await.unwrap().is_empty(), "a read is no change");
}
