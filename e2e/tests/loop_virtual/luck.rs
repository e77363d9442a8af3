//! Bad luck: what fails, is away, comes twice or late, or dies.

use crate::world::{World, image, quick};
use serde_json::{Value, json};
use std::time::Duration;
use tasuki::store::FindingFilter;
use tasuki_api::coverage::Verdict;
use tasuki_api::finding::Finding;
use tasuki_cloud::faults::{Denial, Faults};
use tasuki_cloud::runtime::Script;
use tasuki_cloud::world::Service;
use ulid::Ulid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_no_agent_saw_is_missed_and_counted() {
    let mut world = World::new().await;
    world.cluster("shop", 0);
    world.definition("job", true, |definition| definition["containerDefinitions"][0]["image"] = json!("job:1"));
    world.runtime.script("job:1", Script { exit_after: Some((Duration::from_secs(2), 0)), ..quick() });
    world.monitor("prod", "Observe", "1.0.0", |_| {});
    world.start().await;
    let task = world.run_task("shop", "job");
    let missed = world.verdict("job", Verdict::Missed, "").await;
    assert_eq!((&missed.task, world.view().counts.missed), (&task, 1));
    // It is still known after a restart, and still once.
    world.kill();
    world.start().await;
    world.verdict("job", Verdict::Missed, "").await;
    assert_eq!(world.view().counts.missed, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_cannot_be_pulled_is_said_and_the_service_is_unharmed() {
    let mut world = World::web_on_fargate().await;
    world.cluster("nodes", 1);
    world.definition("batch", false, |_| {});
    world.service("nodes", "batch", "EC2", 1);
    let broken = Script { pull_failure: Some("manifest unknown".to_owned()), ..quick() };
    world.runtime.script(image("1.0.0"), broken);
    world.start().await;
    let web = world.verdict("web", Verdict::Uncovered, "RolledBack").await;
    assert!(web.detail.as_deref().unwrap_or_default().contains("manifest unknown"), "{web:?}");
    world
        .until("the service runs its own definition", |world| (world.runs("shop", "web") == "web:1").then_some(()))
        .await;
    assert_eq!(world.describe("shop", "web")["runningCount"], 1);
    world
        .until("the node's agent is said to fail", |world| {
            let view = world.view();
            let batch = view.tasks.iter().find(|task| task.workload == "batch")?;
            let detail = batch.detail.as_deref().unwrap_or_default();
            (batch.reason.map(|reason| reason.name()) == Some("ImagePullFailed"))
                .then(|| assert!(detail.contains("manifest unknown"), "{detail}"))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_definition_lacks_is_named_and_nothing_is_registered() {
    let mut world = World::new().await;
    world.cluster("shop", 0);
    world.definition("roleless", true, |definition| {
        drop(definition.as_object_mut().unwrap().remove("executionRoleArn"))
    });
    world.definition("full", true, |definition| {
        definition["containerDefinitions"][0]["memoryReservation"] = json!(1000)
    });
    for service in ["roleless", "full"] {
        world.service("shop", service, "FARGATE", 1);
    }
    world.monitor("prod", "Enforce", "1.0.0", |_| {});
    world.start().await;
    for (service, reason) in [("roleless", "MissingExecutionRole"), ("full", "NoRoom")] {
        let task = world.verdict(service, Verdict::Uncovered, reason).await;
        assert!(task.detail.is_some_and(|detail| !detail.is_empty()) && task.next_step.is_some());
    }
    assert_eq!(world.wire.changes(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_duplicates_and_late_events_change_nothing_but_counters() {
    let mut world = World::web_on_fargate().await;
    world.faults(Faults { duplicate: 0.5, reorder: 0.4, delay_seconds: Some(1.5), ..Faults::default() });
    let send = |world: &World, body: &str| {
        world.call(Service::Sqs, "SendMessage", json!({"QueueUrl": world.queue, "MessageBody": body}));
    };
    for body in ["garbage", "{\"detail-type\":\"ECS Task State Change\"}", "[1,2,3]"] {
        send(&world, body);
    }
    world.start().await;
    world.verdict("web", Verdict::Covered, "").await;
    let wanted = "tasuki_queue_total{what=\"Unusable\"} 3";
    let mut metrics = String::new();
    for _ in 0..100 {
        metrics = world.metrics().await;
        if metrics.contains(wanted) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(metrics.contains(wanted), "{metrics}");
    assert_eq!(world.revisions("web-tasuki"), 1, "nothing was done twice");
    let view = world.view();
    assert_eq!(
        view.tasks.iter().filter(|t| t.workload == "web" && t.verdict != Verdict::Missed).count(),
        1,
        "{:#?}",
        view.tasks
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_event_is_put_right_by_the_next_sweep() {
    let mut world = World::new().await;
    let node = world.cluster("shop", 1).remove(0);
    world.definition("web", false, |_| {});
    world.service("shop", "web", "EC2", 1);
    world.definition("job", true, |_| {});
    let job = world.run_task("shop", "job");
    world.monitor("prod", "Observe", "1.0.0", |_| {});
    world.start().await;
    world.verdict("web", Verdict::Uncovered, "ObserveOnly").await;
    world.verdict("job", Verdict::Uncovered, "StandaloneTask").await;
    let forge = |kind: &str, mut detail: Value, claims: Value| {
        let fields = detail.as_object_mut().unwrap();
        fields.append(&mut claims.as_object().unwrap().clone());
        fields.insert("version".to_owned(), json!(i64::MAX));
        let body = json!({"source": "aws.ecs", "detail-type": kind, "account": "111122223333", "region": "eu-west-1", "detail": detail});
        world.call(Service::Sqs, "SendMessage", json!({"QueueUrl": world.queue, "MessageBody": body.to_string()}));
    };
    let tasks = world.ecs("DescribeTasks", json!({"cluster": "shop", "tasks": [job]}));
    forge(
        "ECS Task State Change",
        tasks["tasks"][0].clone(),
        json!({"lastStatus": "STOPPED", "desiredStatus": "STOPPED"}),
    );
    let nodes = world.ecs("DescribeContainerInstances", json!({"cluster": "shop", "containerInstances": [node]}));
    let claims = json!({"agentConnected": false, "status": "DRAINING"});
    forge("ECS Container Instance State Change", nodes["containerInstances"][0].clone(), claims);
    world
        .until("the task is taken for ended", |world| {
            world
                .view()
                .tasks
                .iter()
                .all(|task| task.workload != "job" || task.verdict == Verdict::Missed)
                .then_some(())
        })
        .await;
    world
        .until("it is known to run", |world| {
            let view = world.view();
            let mut jobs = view.tasks.iter().filter(|task| task.workload == "job");
            (jobs.next()?.verdict == Verdict::Uncovered).then(|| assert_eq!(jobs.next(), None, "and missed no more"))
        })
        .await;
    // The node can be worked with again: whatever its forged version was, the agent is placed there.
    world.monitor("prod", "Enforce", "1.0.0", |_| {});
    world.verdict("web", Verdict::Covered, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_throttles_only_costs_time() {
    let mut world = World::web_on_fargate().await;
    world.faults(Faults { throttle: 0.25, ..Faults::default() });
    world.start().await;
    world.verdict("web", Verdict::Covered, "").await;
    assert_eq!(world.revisions("web-tasuki"), 1);
    world
        .until("throttled calls are counted", |world| {
            world.view().scopes.iter().any(|scope| scope.throttled > 0).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_call_names_api_and_principal() {
    let mut world = World::web_on_fargate().await;
    let deny = vec![Denial { principal: "*".to_owned(), action: "ecs:UpdateService".to_owned() }];
    world.faults(Faults { deny, ..Faults::default() });
    world.start().await;
    let web = world.verdict("web", Verdict::Uncovered, "PermissionDenied").await;
    let detail = web.detail.unwrap_or_default();
    assert!(detail.contains("ecs:UpdateService") && detail.contains("arn:aws:iam::111122223333:root"), "{detail}");
    assert_eq!(world.runs("shop", "web"), "web:1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scope_that_cannot_be_read_says_so_and_another_one_goes_on() {
    let mut world = World::web_on_fargate().await;
    let scope = json!({"apiVersion": "tasuki.dev/v1alpha1", "kind": "AwsScope", "metadata": {"name": "other"},
                       "spec": {"accounts": ["444455556666"], "regions": ["eu-west-1"], "readRoleName": "absent"}});
    world.write("other.yaml", &scope.to_string());
    world.start().await;
    world.verdict("web", Verdict::Covered, "").await;
    let view = world.view();
    let other = view.scopes.iter().find(|scope| scope.scope.starts_with("4444")).unwrap();
    assert!(other.swept_at.is_none() && other.denied.iter().any(|text| text.contains("sts:AssumeRole")), "{other:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_yaml_keeps_the_last_good_version_in_force() {
    let mut world = World::web_on_fargate().await;
    world.start().await;
    world.verdict("web", Verdict::Covered, "").await;
    let before = world.view().desired.clone();
    world.monitor("prod", "Enforce", "1.0.0", |spec| spec["rollout"]["deadlin"] = json!("1m"));
    let problem = world.until("the problem is shown", |world| world.problems().first().cloned()).await;
    assert!(problem.message.contains("deadlin") && problem.message.contains("deadline"), "{problem:?}");
    assert_eq!(world.verdict("web", Verdict::Covered, "").await.monitor.as_deref(), Some("prod"));
    assert_eq!(world.view().desired, before, "what is in force is what was");
    world.monitor("prod", "Enforce", "1.0.0", |_| {});
    world.until("the problem is gone", |world| world.problems().is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_monitors_of_one_priority_are_a_problem_of_both() {
    let mut world = World::web_on_fargate().await;
    world.monitor("twin", "Observe", "1.0.0", |_| {});
    world.start().await;
    let problems = world.until("both have it", |world| {
        let problems = world.problems();
        let has = |name: &str| problems.iter().any(|problem| problem.subject == format!("RuntimeMonitor/{name}"));
        (has("prod") && has("twin")).then_some(problems)
    });
    let problems = problems.await;
    assert!(problems.iter().all(|problem| problem.message.contains("priority")), "{problems:?}");
}

/// A finding with nothing but its number.
pub fn finding(number: u128) -> Finding {
    let now = jiff::Timestamp::now().to_string();
    serde_json::from_value(json!({
        "id": Ulid(number).to_string(), "type": "Execution:Runtime/NewBinaryExecuted", "severity": "Medium", "title": "t",
        "firstSeen": now, "lastSeen": now, "count": 1, "resource": {}, "rule": {},
        "agent": {"version": "1", "depth": "Full", "sensor": "ebpf"}
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_is_away_for_a_minute_and_nothing_is_lost() {
    let mut world = World::web_on_nodes(1).await;
    world.start().await;
    world.verdict("web", Verdict::Covered, "").await;
    world.agents.shut(true);
    let sender = world.agents.running.lock().unwrap().values().next().unwrap().findings.clone();
    for number in 1..=50 {
        sender.send(finding(number)).await.unwrap();
    }
    let web = world.verdict("web", Verdict::Unhealthy, "AgentNotReporting").await;
    assert!(web.detail.is_some_and(|detail| detail.contains("silent")));
    world.agents.shut(false);
    world.verdict("web", Verdict::Covered, "").await;
    let settled = |world: &World| {
        let running = world.agents.running.lock().unwrap();
        running.values().all(|agent| agent.handle.status().waiting == 0).then_some(())
    };
    world.until("nothing waits any more", settled).await;
    let all = world.controller().store().findings(&FindingFilter { limit: 1000, ..Default::default() }).await.unwrap();
    assert_eq!(all.len(), 50, "each once");
    let at_the_node = |finding: &Value| finding["resource"]["node"].is_string();
    assert!(all.iter().all(|stored| at_the_node(&serde_json::to_value(&stored.finding).unwrap())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_any_two_calls_of_an_injection_it_makes_one_revision() {
    // Described to be judged, as it is, the family's latest before and after; the service before and right before.
    let points = [
        ("DescribeTaskDefinition", 0, true),
        ("DescribeServices", 0, true),
        ("DescribeTaskDefinition", 1, true),
        ("DescribeTaskDefinition", 2, true),
        ("RegisterTaskDefinition", 0, false),
        ("RegisterTaskDefinition", 0, true),
        ("DescribeTaskDefinition", 3, true),
        ("ListTasks", 0, true),
        ("GetTaskProtection", 0, false),
        ("DescribeServices", 1, true),
        ("UpdateService", 0, false),
        ("UpdateService", 0, true),
    ];
    let one = |(operation, after, carried_out): (&'static str, usize, bool)| async move {
        let mut world = World::web_on_fargate().await;
        let reached = world.wire.hold("DescribeTaskDefinition", operation, after, carried_out);
        world.start().await;
        let at = format!("{operation} after {after} others, carried out: {carried_out}");
        let reached = tokio::time::timeout(Duration::from_secs(60), reached).await;
        reached.unwrap_or_else(|_| panic!("never called: {at}")).unwrap();
        world.kill();
        world.start().await;
        world.verdict("web", Verdict::Covered, "").await;
        assert_eq!((world.revisions("web-tasuki"), world.revisions("web")), (1, 1), "killed at {at}");
        assert_eq!(world.runs("shop", "web"), "web-tasuki:1", "killed at {at}");
        assert!(world.controller().store().open_intents().await.unwrap().is_empty(), "an intent stays open: {at}");
    };
    // Side by side: each is mostly waiting.
    for some in points.chunks(6) {
        let some: Vec<_> = some.iter().map(|point| tokio::spawn(one(*point))).collect();
        for each in some {
            each.await.unwrap();
        }
    }
}
