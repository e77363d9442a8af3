//! Sweeps and hints over a wire: how many calls, and what becomes of refusals.

use super::event::Follow;
use super::follow::{Known, follow};
use super::sweep::sweep;
use crate::testing::{Answer, Ecs, Wire, arn, scopes};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    assert_eq!(count(|change| matches!(change, Change::Task(_))), 459);
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
        hints
            .send(Follow::Service { cluster: std::sync::Arc::clone(&cluster), service: Arc::clone(&service) })
            .await
            .unwrap();
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
