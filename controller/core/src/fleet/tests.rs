//! Order, repetition, sweeps, and who may speak for whom.

use crate::fixtures::*;
use crate::fleet::*;
use proptest::prelude::*;

const STATES: [(TaskStatus, i64); 7] = [
    (TaskStatus::Provisioning, 1),
    (TaskStatus::Pending, 2),
    (TaskStatus::Activating, 2),
    (TaskStatus::Running, 3),
    (TaskStatus::Stopping, 4),
    (TaskStatus::Deprovisioning, 5),
    (TaskStatus::Stopped, 6),
];

fn event((status, version): (TaskStatus, i64)) -> Change {
    let mut task = task("a", "shop");
    (task.status, task.version) = (status, version);
    of_task(task)
}

/// What of a fleet is observable of task `a`.
fn outcome(fleet: &Fleet) -> (Option<(TaskStatus, i64)>, bool) {
    let live = fleet.task(&task_arn("a")).map(|s| (s.task.status, s.task.version));
    (live, fleet.has_stopped(&task_arn("a")))
}

proptest! {
    #[test]
    fn any_order_and_number_of_a_tasks_events_end_in_the_same_state(
        events in prop::collection::vec(prop::sample::select(STATES.to_vec()), 1..12),
        order in prop::collection::vec(any::<prop::sample::Index>(), 24),
    ) {
        let mut straight = fleet(events.iter().copied().map(event).collect());
        // Every event at least once, some twice, in a random order.
        let mut shuffled: Vec<_> = events.clone();
        shuffled.extend(order.iter().map(|i| events[i.index(events.len())]));
        for (to, from) in order.iter().enumerate() {
            let (to, from) = (to % shuffled.len(), from.index(shuffled.len()));
            shuffled.swap(to, from);
        }
        let other = fleet(shuffled.into_iter().map(event).collect());
        prop_assert_eq!(outcome(&straight), outcome(&other));
        let stopped = events.iter().any(|(status, _)| *status == TaskStatus::Stopped);
        prop_assert_eq!(outcome(&other).1, stopped);
        // And whatever comes later: a stopped task does not resurrect.
        if stopped {
            straight.apply(event((TaskStatus::Running, 99)), at(60));
            prop_assert_eq!(outcome(&straight).0, None);
        }
    }

    #[test]
    fn a_nodes_older_version_never_replaces_a_newer_one(versions in prop::collection::vec(1_i64..6, 1..8)) {
        let mut fleet = fleet(vec![]);
        for version in &versions {
            let mut node = node("n");
            node.version = *version;
            fleet.apply(of_node(node), at(0));
        }
        prop_assert_eq!(fleet.node(&node_arn("n")).map(|n| n.version), versions.iter().copied().max());
    }
}

#[test]
fn a_stop_ends_a_task_once_and_says_whether_any_agent_saw_it() {
    let mut fleet = fleet(vec![of_task(task("a", "shop")), of_task(task("b", "shop"))]);
    fleet.apply(of_agent(sidecar_report("b", at(5))), at(5));
    let mut ended = Vec::new();
    for id in ["a", "b", "a", "never-seen"] {
        let mut task = task(id, "shop");
        (task.status, task.version) = (TaskStatus::Stopped, 6);
        ended.extend(fleet.apply(of_task(task), at(10)).ended);
    }
    let told: Vec<_> = ended.iter().map(|e| (e.task.id(), e.reported)).collect();
    assert_eq!(told, [("a", false), ("b", true), ("never-seen", false)]);
    assert_eq!((fleet.task_count(), fleet.agent_count()), (0, 0), "a sidecar goes with its task");
}

#[test]
fn a_tombstone_holds_for_an_hour() {
    let mut fleet = fleet(vec![event((TaskStatus::Stopped, 6))]);
    fleet.apply(event((TaskStatus::Running, 3)), at(3599));
    assert_eq!(fleet.task_count(), 0);
    fleet.expire(at(3600));
    assert!(!fleet.has_stopped(&task_arn("a")));
}

#[test]
fn a_reading_overrules_what_an_event_claimed_before_it_began() {
    let mut fleet = fleet(vec![of_task(task("a", "shop")), of_node(node("n"))]);
    let mut claimed = task("a", "shop");
    (claimed.status, claimed.version) = (TaskStatus::Stopping, i64::MAX);
    fleet.apply(of_task(claimed), at(10));
    let mut claimed = node("n");
    (claimed.connected, claimed.version) = (false, i64::MAX);
    fleet.apply(of_node(claimed), at(10));
    let state = |fleet: &Fleet| {
        (fleet.task(&task_arn("a")).unwrap().task.status, fleet.node(&node_arn("n")).unwrap().connected)
    };
    // Begun before, or so soon after that ECS may still give its older answer: the event may be right.
    for read_at in [0, 10, 14] {
        fleet.apply(read_task(task("a", "shop"), read_at), at(20));
        fleet.apply(read_node(node("n"), read_at), at(20));
        assert_eq!(state(&fleet), (TaskStatus::Stopping, false), "read at {read_at}");
    }
    assert_eq!(fleet.apply(read_task(task("a", "shop"), 15), at(20)).tasks, [task_arn("a")]);
    assert!(!fleet.apply(read_node(node("n"), 15), at(20)).is_empty());
    assert_eq!(state(&fleet), (TaskStatus::Running, true));
    // The next real event is newer again.
    fleet.apply(event((TaskStatus::Stopping, 4)), at(30));
    assert_eq!(state(&fleet).0, TaskStatus::Stopping);
    assert!(fleet.apply(read_task(task("a", "shop"), 25), at(40)).is_empty(), "a late reading is not news");
}

#[test]
fn a_tombstone_is_lifted_by_a_later_reading_and_by_nothing_else() {
    let mut fleet = fleet(vec![of_task(task("a", "shop"))]);
    fleet.apply(event((TaskStatus::Stopped, 6)), at(10));
    fleet.apply(event((TaskStatus::Running, 99)), at(100));
    fleet.apply(read_task(task("a", "shop"), 9), at(100));
    let mut stopped = task("a", "shop");
    stopped.status = TaskStatus::Stopped;
    assert!(fleet.apply(read_task(stopped, 50), at(100)).is_empty());
    assert_eq!(outcome(&fleet), (None, true));
    let applied = fleet.apply(read_task(task("a", "shop"), 60), at(100));
    assert_eq!((applied.revived, applied.tasks), (vec![task_arn("a")], vec![task_arn("a")]));
    assert_eq!(outcome(&fleet), (Some((TaskStatus::Running, 3)), false));
    // Once more, and this time it is true: it lasts its own hour.
    fleet.apply(event((TaskStatus::Stopped, 7)), at(200));
    fleet.expire(at(10 + 3600));
    assert_eq!(outcome(&fleet), (None, true));
    fleet.expire(at(200 + 3600));
    assert_eq!(outcome(&fleet), (None, false));
}

#[test]
fn only_a_reading_says_that_something_stands_elsewhere() {
    let elsewhere: Str = format!("{CLUSTER}-2").into();
    let (mut lost, mut strayed) = (task("a", "shop"), node("n"));
    (lost.cluster, strayed.cluster) = (elsewhere.clone(), elsewhere.clone());
    let mut fleet = fleet(vec![of_task(lost), of_node(strayed)]);
    fleet.apply(of_task(task("a", "shop")), at(10));
    fleet.apply(of_node(node("n")), at(10));
    assert_eq!(fleet.place_of_task(&task_arn("a")).unwrap().0, &elsewhere);
    assert_eq!(fleet.node(&node_arn("n")).unwrap().cluster, elsewhere);
    let moved = fleet.apply(read_task(task("a", "shop"), 10), at(10));
    assert_eq!(moved.clusters, [elsewhere.clone(), CLUSTER.into()]);
    fleet.apply(read_node(node("n"), 10), at(10));
    assert_eq!(&**fleet.place_of_task(&task_arn("a")).unwrap().0, CLUSTER);
    assert_eq!((&*fleet.node(&node_arn("n")).unwrap().cluster, fleet.task_count()), (CLUSTER, 1));
}

#[test]
fn a_sweep_removes_what_it_does_not_list_but_nothing_newer_than_its_reading() {
    let mut fleet = fleet(vec![
        of_task(task("old", "shop")),
        of_task(task("kept", "shop")),
        of_service(service("gone")),
        of_node(node("gone")),
    ]);
    fleet.apply(of_task(task("new", "shop")), at(100));
    let swept = Change::Swept {
        cluster: CLUSTER.into(),
        read_at: at(50),
        tasks: vec![task_arn("kept")],
        services: vec![],
        nodes: vec![],
    };
    let applied = fleet.apply(swept, at(110));
    assert_eq!(applied.ended.iter().map(|e| e.task.id()).collect::<Vec<_>>(), ["old"]);
    assert!(fleet.task(&task_arn("kept")).is_some() && fleet.task(&task_arn("new")).is_some());
    assert!(fleet.service(&service_arn("gone")).is_none() && fleet.node(&node_arn("gone")).is_none());
    fleet.apply(of_task(task("old", "shop")), at(120));
    assert!(fleet.task(&task_arn("old")).is_none(), "what a sweep ended stays ended");
}

#[test]
fn a_scopes_sweep_removes_clusters_and_forgets_older_refusals() {
    let mut fleet = fleet(vec![of_task(task("a", "shop"))]);
    let denied = Change::Denied { scope: scope(), api: "ecs:UpdateService".into(), detail: "SCP".into() };
    fleet.apply(denied, at(10));
    let swept = |read_at, clusters| Change::ScopeSwept { scope: scope(), read_at, clusters };
    assert!(fleet.apply(swept(at(5), vec![CLUSTER.into()]), at(6)).clusters.is_empty());
    assert_eq!(fleet.denied(&scope()).count(), 1, "the refusal is newer than the reading");
    let applied = fleet.apply(swept(at(20), vec![CLUSTER.into()]), at(21));
    assert_eq!((fleet.denied(&scope()).count(), applied.clusters.len()), (0, 1));
    let applied = fleet.apply(swept(at(30), vec![]), at(31));
    assert_eq!((applied.ended.len(), fleet.clusters().count()), (1, 0));
}

#[test]
fn a_sidecar_speaks_only_for_its_own_task_and_a_node_agent_only_for_its_node() {
    let mut liar = sidecar_report("a", at(5));
    liar.heartbeat.tasks.push(task_arn("b").to_string());
    let fleet = fleet(vec![
        of_task(task("a", "shop")),
        of_task(task("b", "shop")),
        of_task(on_node(task("c", "web"), "n1")),
        of_task(on_node(task("d", "web"), "n2")),
        of_agent(liar),
        of_agent(node_report("agent", "n1", &["c", "d", "b"], at(5))),
    ]);
    let reported = |id: &str| fleet.task(&task_arn(id)).unwrap().reported_at.is_some();
    assert_eq!(["a", "b", "c", "d"].map(reported), [true, false, true, false]);
}

#[test]
fn an_agent_heard_before_its_task_counts_once_the_task_is_known() {
    let mut fleet = fleet(vec![of_agent(node_report("agent", "n1", &["c"], at(5)))]);
    assert!(fleet.apply(of_task(on_node(task("c", "web"), "n1")), at(6)).tasks.contains(&task_arn("c")));
    assert!(fleet.task(&task_arn("c")).unwrap().reported_at.is_some());
}

#[test]
fn an_unchanged_heartbeat_asks_for_no_new_judgement() {
    let report = |now, tasks: &[&str]| of_agent(node_report("agent", "n1", tasks, now));
    let mut fleet = fleet(vec![of_task(on_node(task("c", "web"), "n1")), of_task(on_node(task("d", "web"), "n1"))]);
    assert_eq!(fleet.apply(report(at(1), &["c"]), at(1)).tasks, [task_arn("c")]);
    assert_eq!(fleet.apply(report(at(16), &["c"]), at(16)).tasks, []);
    assert_eq!(fleet.apply(report(at(31), &["c", "d"]), at(31)).tasks, [task_arn("d")]);
    assert_eq!(fleet.apply(report(at(20), &[]), at(32)).tasks, [], "an older one is ignored");
    let late = fleet.apply(report(at(200), &["c", "d"]), at(200)).tasks;
    assert_eq!(late.len(), 2, "after a silence everything is judged anew");
}

#[test]
fn what_others_can_make_grow_is_bounded_and_counted() {
    let limits = Limits { agents: 2, names_per_agent: 3, tombstones: 2, definitions: 2 };
    let mut fleet = Fleet::with_limits(at(0), limits);
    for i in 0..5 {
        fleet.apply(of_agent(node_report(&format!("g{i}"), "n", &["1", "2", "3", "4", "5"], at(1))), at(1));
    }
    assert_eq!(fleet.agent_count(), 2);
    for i in 0..5 {
        let mut task = task(&format!("t{i}"), "shop");
        task.status = TaskStatus::Stopped;
        fleet.apply(of_task(task), at(2));
        let definition = crate::transform::project(
            &serde_json::json!({"taskDefinitionArn": format!("arn:d/f:{i}"), "family": "f"}),
            None,
        );
        fleet.apply(Change::Definition(Box::new(definition.unwrap())), at(2));
    }
    assert!(!fleet.has_stopped(&task_arn("t0")) && fleet.has_stopped(&task_arn("t4")));
    assert!(fleet.definitions().count() <= 2);
    let lost = fleet.losses();
    assert_eq!((lost.agents_refused, lost.names_dropped, lost.tombstones_evicted), (3, 4, 3));
    assert!(lost.definitions_evicted >= 3);
}

#[test]
fn a_silent_agent_without_a_task_is_forgotten() {
    let mut fleet = fleet(vec![of_agent(node_report("agent", "n1", &["c"], at(5)))]);
    fleet.expire(at(3_000));
    assert_eq!(fleet.agent_count(), 1);
    fleet.expire(at(4_000));
    assert_eq!(fleet.agent_count(), 0);
}

#[test]
fn loss_and_cpu_are_those_between_two_heartbeats() {
    use tasuki_api::agent::{Counters, FamilyState};
    let report = |now, seen, ring_full, cpu_ms| {
        let mut report = sidecar_report("a", now);
        let counters = Counters { seen, ring_full, ..Counters::default() };
        report.heartbeat.families =
            vec![FamilyState { name: "process".into(), hook: "h".into(), tier: Some(0), problem: None, counters }];
        report.heartbeat.usage.cpu_ms = cpu_ms;
        of_agent(report)
    };
    let mut fleet = fleet(vec![of_task(task("a", "shop"))]);
    fleet.apply(report(at(0), 1_000, 500, 5_000), at(0));
    fleet.apply(report(at(10), 2_000, 510, 6_000), at(10));
    let agent = fleet.agent_of_task(&task_arn("a")).unwrap();
    assert_eq!((agent.loss, agent.cpu), (0.01, 0.1));
}

#[test]
fn what_stands_in_the_way_is_believed_for_minutes_on_ecs_and_for_one_on_kubernetes() {
    let mut fleet = Fleet::new(at(-3600));
    for target in [CLUSTER, "k8s/self"] {
        let (reason, detail) = (tasuki_api::coverage::Reason::PermissionDenied, "no".to_owned());
        fleet.apply(Change::Obstructed { target: target.into(), reason, detail }, at(0));
        assert!(fleet.obstruction(target, at(59)).is_some());
    }
    assert!(fleet.obstruction(CLUSTER, at(599)).is_some() && fleet.obstruction(CLUSTER, at(600)).is_none());
    assert!(fleet.obstruction("k8s/self", at(60)).is_none());
}

#[test]
fn a_nodes_tasks_are_those_that_live_there_now() {
    let mut fleet = fleet(vec![of_task(on_node(task("a", "shop"), "n1")), of_task(on_node(task("b", "web"), "n1"))]);
    let on = |fleet: &Fleet, node: &str| {
        let node = node_arn(node);
        fleet.tasks_on(&node).map(|state| state.task.id().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((on(&fleet, "n1"), on(&fleet, "n2")), (vec!["a".to_owned(), "b".to_owned()], vec![]));
    // A pod has no node until it is scheduled.
    let mut pending = task("c", "web");
    (pending.status, pending.node) = (TaskStatus::Pending, None);
    fleet.apply(of_task(pending), at(1));
    fleet.apply(of_task(on_node(task("c", "web"), "n2")), at(2));
    let mut stopped = on_node(task("a", "shop"), "n1");
    (stopped.status, stopped.version) = (TaskStatus::Stopped, 9);
    fleet.apply(of_task(stopped), at(3));
    assert_eq!((on(&fleet, "n1"), on(&fleet, "n2")), (vec!["b".to_owned()], vec!["c".to_owned()]));
}
