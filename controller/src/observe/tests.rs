//! Sweeps and hints over a wire: how many calls, and what becomes of refusals.

use super::Observer;
use super::event::Follow;
use super::follow::{Known, follow};
use super::sweep::sweep;
use crate::scope::Scopes;
use crate::testing::{ACCOUNT, Answer, Ecs, REGION, Sqs, Wire, arn, config, document, scopes};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tasuki_core::fleet::Change;
use tokio::sync::mpsc;

async fn swept(wire: &Wire) -> (Vec<Change>, Option<super::sweep::Totals>) {
    let (_scopes, scope) = scopes(wire).await;
    let (sender, mut receiver) = mpsc::channel(100_000);
    let totals = sweep(&scope, &Known::default(), &sender).await.ok();
    drop(sender);
    let mut changes = Vec::new();
    while let Some(change) = receiver.recv().await {
        changes.push(change);
    }
    (changes, totals)
}

#[tokio::test(start_paused = true)]
async fn a_sweep_makes_exactly_the_calls_of_the_formula() {
    let ecs = Ecs::default();
    let shape = [(0, 0, 0), (1, 1, 1), (10, 100, 100), (11, 101, 101), (130, 250, 0), (0, 7, 3)];
    for (index, (services, tasks, nodes)) in shape.into_iter().enumerate() {
        ecs.fill(&format!("c{index}"), services, tasks, nodes);
    }
    let wire = ecs.wire();
    let (changes, totals) = swept(&wire).await;
    let calls = |list: usize, page: usize, batch: usize| list.div_ceil(page).max(1) + list.div_ceil(batch);
    let formula: usize =
        shape.iter().map(|&(s, n, i)| calls(s, 100, 10) + calls(n, 100, 100) + calls(i, 100, 100)).sum();
    assert_eq!(wire.calls().len(), formula + 2, "{:?}", wire.counts());
    let totals = totals.unwrap();
    assert_eq!((totals.clusters, totals.services, totals.tasks, totals.nodes), (6, 152, 459, 205));
    let count = |what: fn(&Change) -> bool| changes.iter().filter(|change| what(change)).count();
    assert_eq!(count(|change| matches!(change, Change::TaskRead { .. })), 459);
    assert_eq!(count(|change| matches!(change, Change::Swept { .. })), 6);
    assert!(matches!(changes.last(), Some(Change::ScopeSwept { clusters, .. }) if clusters.len() == 6));
    // The list that Swept carries is complete even where it took several pages.
    let tasks = changes.iter().find_map(|change| match change {
        Change::Swept { cluster, tasks, .. } if cluster.ends_with("/c4") => Some(tasks.len()),
        _ => None,
    });
    assert_eq!(tasks, Some(250));
}

#[tokio::test(start_paused = true)]
async fn the_formula_of_core_counts_the_same() {
    let ecs = Ecs::default();
    for index in 0..3 {
        ecs.fill(&format!("c{index}"), 40, 110, 2);
    }
    let wire = ecs.wire();
    swept(&wire).await;
    assert_eq!(wire.calls().len() as u64, tasuki_core::sweep::sweep_calls(330, 120, 6, 3));
}

#[tokio::test(start_paused = true)]
async fn a_denied_call_is_told_once_and_its_clusters_are_not_called_swept() {
    let ecs = Ecs::default();
    for index in 0..3 {
        ecs.fill(&format!("c{index}"), 1, 1, 0);
    }
    let inner = ecs.wire();
    let wire = Wire::new(move |operation, body| match operation {
        "ListTasks" if body["cluster"] != arn("cluster/c1").as_str() => Answer::denied("ecs:ListTasks"),
        _ => inner.pass(operation, body),
    });
    let (changes, totals) = swept(&wire).await;
    assert_eq!(totals.unwrap().failed, 2);
    let swept: Vec<_> = changes.iter().filter(|change| matches!(change, Change::Swept { .. })).collect();
    assert_eq!(swept.len(), 1);
    let denied: Vec<_> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Denied { api, detail, .. } => Some((api.as_str(), detail.as_str())),
            _ => None,
        })
        .collect();
    assert_eq!(denied.len(), 1);
    assert_eq!(denied[0].0, "ecs:ListTasks");
    assert!(denied[0].1.contains("assumed-role/tasuki-read") && denied[0].1.contains("\"Action\":\"ecs:ListTasks\""));
    assert!(matches!(changes.last(), Some(Change::Denied { .. })), "told after the scope counts as read");
}

#[tokio::test(start_paused = true)]
async fn a_throttled_call_is_made_again_and_the_budget_is_told() {
    let ecs = Ecs::default();
    ecs.fill("c0", 1, 1, 1);
    let (inner, refusals) = (ecs.wire(), AtomicUsize::new(2));
    let wire = Wire::new(move |operation, body| {
        let refuse = operation == "DescribeTasks"
            && refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if refuse { Answer::throttled() } else { inner.pass(operation, body) }
    });
    let (_scopes, scope) = scopes(&wire).await;
    let (sender, _receiver) = mpsc::channel(100);
    assert_eq!(sweep(&scope, &Known::default(), &sender).await.unwrap().tasks, 1);
    assert_eq!(wire.counts()["DescribeTasks"], 3);
    let throttled: u64 = scope.budget.counters().iter().map(|(_, counters)| counters.throttled).sum();
    let taken: u64 = scope.budget.counters().iter().map(|(_, counters)| counters.taken).sum();
    assert_eq!((throttled, taken), (2, wire.calls().len() as u64), "every attempt takes a token");
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_hints_about_one_service_costs_one_call() {
    let ecs = Ecs::default();
    ecs.fill("c0", 2, 0, 1);
    let wire = ecs.wire();
    let (_scopes, scope) = scopes(&wire).await;
    let (hints, requests) = mpsc::channel(100);
    let (sender, mut receiver) = mpsc::channel(100);
    let (cluster, service) = (arn("cluster/c0").into(), arn("service/c0/s1").into());
    for _ in 0..20 {
        hints.send(Follow::Service { cluster: Arc::clone(&cluster), service: Arc::clone(&service) }).await.unwrap();
        hints.send(Follow::UnknownCluster { cluster: cluster.clone() }).await.unwrap();
        hints
            .send(Follow::UnknownService { cluster: cluster.clone(), service: arn("service/c0/gone").into() })
            .await
            .unwrap();
    }
    drop(hints);
    follow(scope, Arc::default(), requests, sender).await;
    assert_eq!(wire.calls(), ["DescribeClusters", "DescribeServices"]);
    let mut seen = Vec::new();
    while let Some(change) = receiver.recv().await {
        seen.push(match change {
            Change::Cluster(_) => "cluster",
            Change::Service(_) => "service",
            Change::ServiceGone(arn) if arn.ends_with("/gone") => "gone",
            _ => "other",
        });
    }
    assert_eq!(seen, ["cluster", "gone", "service"]);
}

/// An observer of one scope with a queue.
async fn observed(sqs: &Sqs, ecs: &Ecs, room: usize) -> (Observer, mpsc::Receiver<Change>, Wire) {
    let wire = sqs.wire(ecs.wire());
    let registry = Arc::new(Scopes::new(config(&wire).await));
    let mut spec = document();
    spec.event_queue = Some("https://sqs.eu-west-1.amazonaws.com/111122223333/tasuki".to_owned());
    registry.sync(&BTreeMap::from([("org".into(), spec)])).await;
    let (sender, receiver) = mpsc::channel(room);
    let mut observer = Observer::new(registry, sender);
    observer.sync();
    (observer, receiver, wire)
}

fn task_event(id: &str, version: i64, status: &str) -> String {
    json!({"detail-type": "ECS Task State Change", "source": "aws.ecs", "account": ACCOUNT, "region": REGION, "detail": {
        "taskArn": arn(&format!("task/c0/{id}")), "clusterArn": arn("cluster/c0"), "lastStatus": status,
        "taskDefinitionArn": arn("task-definition/web:1"), "group": "service:s0", "version": version}})
    .to_string()
}

#[tokio::test]
async fn garbage_duplicates_and_strangers_never_block_the_queue() {
    let (sqs, ecs) = (Sqs::default(), Ecs::default());
    ecs.fill("c0", 1, 0, 0);
    for _ in 0..12 {
        sqs.send("no json at all");
        sqs.send("{\"detail-type\":\"ECS Task State Change\"}");
    }
    sqs.send(&task_event("a", 4, "RUNNING"));
    sqs.send(&task_event("a", 4, "RUNNING"));
    sqs.send(&task_event("a", 2, "PENDING"));
    sqs.send(&task_event("a", 5, "STOPPED").replace(ACCOUNT, "999999999999"));
    sqs.send(
        &json!({"detail-type": "Tomorrow", "source": "aws.ecs", "account": ACCOUNT, "region": REGION, "detail": {}})
            .to_string(),
    );
    let (observer, mut changes, _wire) = observed(&sqs, &ecs, 1000).await;
    sqs.deleted(29).await;
    assert_eq!(sqs.left(), 0);
    let (_, counters) = observer.queues().next().unwrap();
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!((read(&counters.received), read(&counters.unusable)), (29, 24));
    assert_eq!((read(&counters.used), read(&counters.foreign), read(&counters.ignored)), (3, 1, 1));
    assert!(observer.status()[0].event_at.is_some());
    // Duplicates and late ones are handed on as they come: the fleet compares versions.
    let mut versions = Vec::new();
    while versions.len() < 3 {
        if let Change::Task(task) = changes.recv().await.unwrap() {
            versions.push(task.version);
        }
    }
    assert_eq!(versions, [4, 4, 2]);
}

#[tokio::test]
async fn a_message_is_deleted_only_after_its_change_was_taken() {
    let (sqs, ecs) = (Sqs::default(), Ecs::default());
    for id in ["a", "b", "c"] {
        sqs.send(&task_event(id, 1, "RUNNING"));
    }
    // Room for one change: the sweep of an empty account fills it, so the queue has to wait.
    let (observer, mut changes, wire) = observed(&sqs, &ecs, 1).await;
    let mut tasks = 0;
    while tasks < 2 {
        tasks += usize::from(matches!(changes.recv().await.unwrap(), Change::Task(_)));
        if tasks == 1 {
            assert_eq!(wire.counts().get("DeleteMessageBatch"), None, "two of three are not taken yet");
        }
    }
    changes.recv().await.unwrap();
    sqs.deleted(3).await;
    drop(observer);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_refuses_is_polled_again_and_the_refusal_is_told() {
    let (sqs, ecs) = (Sqs::default(), Ecs::default());
    sqs.refuse(
        "AccessDenied",
        "User: arn:aws:sts::111122223333:assumed-role/tasuki/x is not authorized to perform: sqs:ReceiveMessage",
    );
    sqs.send(&task_event("a", 1, "RUNNING"));
    let (observer, mut changes, _wire) = observed(&sqs, &ecs, 100).await;
    sqs.deleted(1).await;
    let (_, counters) = observer.queues().next().unwrap();
    assert_eq!(counters.failed_polls.load(Ordering::Relaxed), 1);
    loop {
        if let Change::Denied { api, detail, .. } = changes.recv().await.unwrap() {
            assert_eq!(api, "sqs:ReceiveMessage");
            assert!(detail.contains("assumed-role/tasuki/x"), "{detail}");
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_did_not_change_is_not_disturbed_and_what_went_is_not_watched() {
    let (sqs, ecs) = (Sqs::default(), Ecs::default());
    let (mut observer, mut changes, wire) = observed(&sqs, &ecs, 100).await;
    assert!(matches!(changes.recv().await, Some(Change::ScopeSwept { .. })));
    observer.sync();
    observer.sweep_now();
    assert!(matches!(changes.recv().await, Some(Change::ScopeSwept { .. })));
    assert_eq!(wire.counts()["ListClusters"], 2, "one sweep at the start, one asked for, none by sync");
    observer.scopes().sync(&BTreeMap::new()).await;
    observer.sync();
    assert!(observer.status().is_empty() && observer.queues().next().is_none());
}
