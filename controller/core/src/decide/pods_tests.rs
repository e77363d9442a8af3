//! Rollouts on Kubernetes, played to their end in a small cluster.

use super::pods_simulation::Cluster;
use super::*;
use crate::action::{ActionKind, HOLD, NEXT};
use crate::desired::Desired;
use crate::fixtures::*;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

fn wanted(version: &str, edit: impl FnOnce(&mut serde_json::Value)) -> Arc<Desired> {
    desired(&[monitor("prod", |spec| {
        spec["targets"] = json!({"kubernetes": {}});
        spec["agent"]["version"] = json!(version);
        let digit = version.bytes().last().unwrap() as char;
        spec["agent"]["image"] =
            json!({"repository": "r/agent", "digest": format!("sha256:{}", digit.to_string().repeat(64))});
        edit(spec);
    })])
}

/// A cluster on version 1.0.1 whose monitor now wants 1.0.2.
fn about_to_roll(nodes: usize) -> Cluster {
    let mut cluster = Cluster::new(wanted("1.0.1", |_| {}), nodes);
    cluster.run(60);
    assert_eq!((cluster.sets(), cluster.log.len()), (vec![("tasuki", "1.0.1", true)], 1));
    cluster.decider.set_desired(wanted("1.0.2", |_| {}));
    (cluster.most_uncovered, cluster.most_in_handover) = (0, 0);
    cluster
}

fn is_settled(cluster: &Cluster, version: &str) -> bool {
    cluster.sets() == [("tasuki", version, true)]
        && cluster.labelled() == 0
        && cluster.decider.memory().rollouts.is_empty()
}

#[test]
fn a_rollout_hands_each_node_over_once_and_what_was_next_serves() {
    let mut cluster = about_to_roll(10);
    cluster.run(120);
    let status = cluster.decider.rollouts(&cluster.fleet, at(cluster.now));
    assert_eq!((status[0].phase, status[0].done, status[0].of), (Phase::Soaking, 1, 10));
    cluster.run(900);
    assert!(is_settled(&cluster, "1.0.2"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
    assert_eq!(cluster.most_uncovered, 0);
    assert!(cluster.most_in_handover <= 5, "half of them at once: {}", cluster.most_in_handover);
    let put = |name: &str| cluster.count(|a| matches!(a, ActionKind::PutAttribute { name: n, .. } if **n == *name));
    let taken = cluster.count(|a| matches!(a, ActionKind::DeleteAttribute { .. }));
    assert_eq!((put(NEXT), put(HOLD), taken), (10, 10, 10), "each node changes hands once");
    assert_eq!(cluster.decider.decide_all(&cluster.fleet, at(cluster.now)).actions, [], "steady");
}

#[test]
fn a_broken_version_is_taken_back_and_not_tried_again() {
    let mut cluster = about_to_roll(10);
    cluster.broken.push("1.0.2".into());
    cluster.run(900);
    assert!(is_settled(&cluster, "1.0.1"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
    assert_eq!(cluster.most_uncovered, 0);
    let tried = cluster.log.len();
    cluster.run(3_600);
    assert_eq!(cluster.log.len(), tried, "not retried");
    assert_eq!(cluster.decider.retry(CLUSTER), 1);
    cluster.broken.clear();
    cluster.run(1_500);
    assert!(is_settled(&cluster, "1.0.2"), "tried again when it is told to");
}

#[test]
fn a_version_that_dies_while_it_soaks_is_taken_back() {
    let mut cluster = about_to_roll(10);
    cluster.run(300);
    cluster.broken.push("1.0.2".into());
    cluster.run(900);
    assert!(is_settled(&cluster, "1.0.1"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
    assert!(cluster.most_uncovered <= 1, "the canary alone");
}

#[test]
fn a_full_node_lets_the_old_agent_go_first_and_no_other_does() {
    let mut cluster = about_to_roll(10);
    cluster.full.insert("n004".into());
    cluster.run(1_800);
    assert!(is_settled(&cluster, "1.0.2"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
    assert!(cluster.most_uncovered <= 1);
    let alone = cluster
        .count(|a| matches!(a, ActionKind::PutAttribute { node, name } if node.ends_with("n004") && **name == *HOLD));
    assert_eq!(alone, 1, "the full node was handed over too");

    let mut cluster = about_to_roll(4);
    cluster.decider.set_desired(wanted("1.0.2", |spec| spec["kubernetes"] = json!({"handover": "DeleteFirst"})));
    cluster.run(1_800);
    assert!(is_settled(&cluster, "1.0.2"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
}

#[test]
fn a_full_node_gets_its_old_agent_back_from_a_broken_version() {
    let mut cluster = about_to_roll(3);
    cluster.full.extend(["n000", "n001", "n002"].map(str::to_owned));
    cluster.broken.push("1.0.2".into());
    cluster.run(900);
    assert!(is_settled(&cluster, "1.0.1"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
    assert_eq!(cluster.most_uncovered, 1, "the canary alone, while it was tried");
    let steady = cluster.most_uncovered;
    cluster.most_uncovered = 0;
    cluster.run(60);
    assert_eq!((steady, cluster.most_uncovered), (1, 0), "every node has its agent again");
}

#[test]
fn nodes_that_can_have_no_agent_are_passed_by() {
    let tolerations = json!({"tolerations": [{"key": "other", "operator": "Exists"}]});
    let wanted = |version| wanted(version, |spec| spec["kubernetes"] = tolerations.clone());
    let mut cluster = Cluster::new(wanted("1.0.1"), 5);
    cluster.packed.insert("n000".into());
    cluster.taint("n003");
    cluster.run(60);
    cluster.decider.set_desired(wanted("1.0.2"));
    cluster.most_uncovered = 0;
    cluster.run(900);
    assert!(is_settled(&cluster, "1.0.2"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
    assert_eq!(cluster.most_uncovered, 2, "the two, and no other");
    let touched = cluster.count(
        |a| matches!(a, ActionKind::PutAttribute { node, .. } if node.ends_with("n000") || node.ends_with("n003")),
    );
    assert_eq!(touched, 0);
    // Room is made: what serves comes, without another rollout.
    cluster.packed.clear();
    let acted = cluster.log.len();
    cluster.run(60);
    assert_eq!((cluster.uncovered(), cluster.log.len()), (1, acted));
}

#[test]
fn a_node_that_fills_up_in_its_hand_over_is_let_go() {
    let mut cluster = Cluster::new(wanted("1.0.1", |_| {}), 4);
    cluster.packed.extend(["n000", "n001", "n002", "n003"].map(str::to_owned));
    cluster.run(60);
    // Room for the canary's old agent comes and goes: its pod was made anew on a node that is full now.
    cluster.packed.clear();
    cluster.run(60);
    cluster.decider.set_desired(wanted("1.0.2", |_| {}));
    cluster.run(20);
    let canary = cluster.handed_over().expect("a node is in hand-over");
    cluster.packed.insert(canary.clone());
    cluster.replace_pods(&canary);
    cluster.run(900);
    assert!(is_settled(&cluster, "1.0.2"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
    assert!(cluster.decider.memory().failed.is_empty(), "no version is to blame");
}

#[test]
fn a_version_that_sees_less_is_taken_back_and_an_old_kernel_is_no_versions_fault() {
    let mut cluster = about_to_roll(4);
    cluster.blind.push("1.0.2".into());
    cluster.run(900);
    assert!(is_settled(&cluster, "1.0.1"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
    let failed = cluster.decider.memory().failed.values().next().unwrap().values().next().unwrap().why.clone();
    assert!(
        failed.ends_with("did not report within 5m: it sees no processes, which the agent before it does"),
        "{failed}"
    );

    let mut cluster = about_to_roll(4);
    cluster.old.insert("n001".into());
    cluster.run(900);
    assert!(is_settled(&cluster, "1.0.2"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());

    // Where no version sees more, a broken one goes back all the same.
    let mut cluster = about_to_roll(4);
    cluster.blind.extend(["1.0.1", "1.0.2"].map(str::to_owned));
    cluster.broken.push("1.0.2".into());
    cluster.run(900);
    assert!(is_settled(&cluster, "1.0.1"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
    cluster.decider.set_desired(wanted("1.0.3", |_| {}));
    cluster.blind.push("1.0.3".into());
    cluster.run(900);
    assert!(is_settled(&cluster, "1.0.3"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
}

#[test]
fn a_version_that_is_named_while_another_one_is_promoted_waits_for_the_end_of_that() {
    let mut cluster = about_to_roll(6);
    for _ in 0..200 {
        cluster.step(|| true);
        if cluster.sets().iter().any(|(_, _, heeds)| !heeds) {
            break;
        }
    }
    assert!(cluster.labelled() > 0 && cluster.sets().iter().any(|(_, version, heeds)| *version == "1.0.2" && !heeds));
    cluster.broken.push("1.0.3".into());
    cluster.decider.set_desired(wanted("1.0.3", |_| {}));
    cluster.most_uncovered = 0;
    cluster.run(1_800);
    assert!(is_settled(&cluster, "1.0.2"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
    assert_eq!(cluster.most_uncovered, 0);
}

#[test]
fn a_cut_network_is_no_versions_fault() {
    let mut cluster = about_to_roll(6);
    cluster.run(100);
    assert_eq!(cluster.rollout().unwrap().phase, Phase::Soaking);
    let all: BTreeSet<String> = (0..6).map(|i| format!("n{i:03}")).collect();
    // Agents fall silent before their nodes are known to be away, and speak after they are back.
    cluster.silent.clone_from(&all);
    cluster.run(60);
    cluster.away.clone_from(&all);
    cluster.run(300);
    cluster.away.clear();
    cluster.run(30);
    cluster.silent.clear();
    cluster.run(1_800);
    assert!(cluster.decider.memory().failed.is_empty(), "{:?}", cluster.decider.memory());
    assert!(is_settled(&cluster, "1.0.2"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
}

#[test]
fn a_version_that_takes_nodes_down_comes_to_few() {
    let mut cluster = about_to_roll(10);
    cluster.deadly = Some("1.0.2".into());
    cluster.run(7_200);
    assert_eq!(cluster.away.len(), 2, "{:?}", cluster.away);
    let why = cluster.rollout().unwrap().why.unwrap();
    assert!(why.starts_with("more nodes are away of those with the new agent"), "{why}");
    cluster.decider.set_desired(wanted("1.0.1", |_| {}));
    cluster.run(60);
    assert!(is_settled(&cluster, "1.0.1"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
}

#[test]
fn what_the_cluster_refuses_is_why_a_version_was_given_up() {
    let mut cluster = about_to_roll(2);
    cluster.refused = Some(("1.0.2".into(), "pods \"a\" is forbidden: violates PodSecurity".into()));
    cluster.run(20);
    assert_eq!(cluster.rollout().unwrap().why, None, "any hand-over takes a while");
    cluster.run(60);
    let waits = cluster.rollout().unwrap().why.unwrap();
    assert!(waits.ends_with(": pods \"a\" is forbidden: violates PodSecurity") && waits.contains("node"), "{waits}");
    cluster.run(820);
    assert!(is_settled(&cluster, "1.0.1"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
    let failed = cluster.decider.memory().failed.values().next().unwrap().values().next().unwrap().why.clone();
    assert!(failed.ends_with("did not report within 5m: pods \"a\" is forbidden: violates PodSecurity"), "{failed}");
    assert_eq!(cluster.most_uncovered, 0);
}

#[test]
fn an_outage_that_is_longer_than_the_deadline_fails_no_version() {
    let mut cluster = about_to_roll(3);
    // The new agent of the canary cannot be heard before the controller goes, nor a while after it is back.
    cluster.broken.push("1.0.2".into());
    cluster.run(60);
    assert!(cluster.handed_over().is_some());
    cluster.outage(3_600);
    cluster.run(60);
    cluster.broken.clear();
    cluster.run(900);
    assert!(is_settled(&cluster, "1.0.2"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
    assert!(cluster.decider.memory().failed.is_empty());
}

#[test]
fn nodes_join_and_vanish_in_the_middle_of_a_wave() {
    let mut cluster = about_to_roll(10);
    cluster.run(100);
    cluster.vanish("n000");
    cluster.join("n100");
    cluster.run(620);
    cluster.vanish("n005");
    cluster.join("n101");
    cluster.run(1_800);
    assert!(is_settled(&cluster, "1.0.2"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
}

#[test]
fn nodes_that_are_away_for_a_while_are_waited_for_and_handed_over_as_any() {
    for away in [9, 10] {
        let mut cluster = about_to_roll(10);
        cluster.run(60);
        assert!(cluster.labelled() > 0);
        cluster.away.extend((10 - away..10).map(|i| format!("n{i:03}")));
        cluster.run(540);
        assert!(cluster.sets().iter().any(|(_, version, _)| *version == "1.0.1"), "{away}: {:?}", cluster.sets());
        cluster.away.clear();
        cluster.run(1_200);
        assert!(is_settled(&cluster, "1.0.2"), "{away}: {:?} {:?}", cluster.sets(), cluster.decider.memory());
        assert_eq!(cluster.most_uncovered, 0);
        let put = |name: &str| cluster.count(|a| matches!(a, ActionKind::PutAttribute { name: n, .. } if **n == *name));
        assert_eq!((put(NEXT), put(HOLD)), (10, 10), "{away}: each node changes hands once");
        assert!(cluster.decider.memory().failed.is_empty());
    }
}

#[test]
fn nodes_that_do_not_come_back_hold_nothing_up() {
    let mut cluster = about_to_roll(10);
    let wave = json!([{"name": "all", "take": "100%", "soak": "0s", "maxUnavailable": "20%"}]);
    cluster.decider.set_desired(wanted("1.0.2", |spec| spec["rollout"] = json!({"waves": wave})));
    cluster.away.extend(["n008", "n009"].map(str::to_owned));
    cluster.silent.clone_from(&cluster.away);
    cluster.run(590);
    let rollout = cluster.rollout().unwrap();
    assert_eq!((rollout.done, rollout.of, rollout.phase), (8, 10, Phase::RollingOut));
    cluster.run(120);
    assert!(is_settled(&cluster, "1.0.2"), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
}

#[test]
fn what_a_monitor_leaves_out_is_not_waited_for() {
    let only = json!({"nodes": {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["web"]}]}});
    let mut cluster = Cluster::new(wanted("1.0.1", |spec| spec["kubernetes"] = only), 3);
    cluster.run(60);
    assert_eq!(cluster.log.len(), 0, "no node is to carry it: {:?}", cluster.log);
}

#[test]
fn a_deleted_monitor_takes_its_agents_along_after_a_while_and_not_if_it_comes_back() {
    let mut cluster = about_to_roll(4);
    cluster.run(900);
    cluster.decider.set_desired(desired(&[]));
    cluster.run(500);
    cluster.crash();
    assert_eq!(cluster.sets().len(), 1, "it may come back");
    cluster.decider.set_desired(wanted("1.0.2", |_| {}));
    cluster.run(20);
    cluster.decider.set_desired(desired(&[]));
    cluster.run(500);
    assert_eq!((cluster.sets().len(), cluster.most_uncovered), (1, 0), "counted from its last deletion");
    cluster.run(200);
    assert_eq!(cluster.sets().len(), 0);
}

#[test]
fn uninstall_takes_out_both_and_every_label() {
    let mut cluster = about_to_roll(4);
    cluster.run(60);
    let actions = uninstall(&cluster.fleet);
    assert_eq!(actions.iter().filter(|a| matches!(a.kind, ActionKind::DeleteDaemon { .. })).count(), 2);
    assert!(actions.iter().any(|a| matches!(a.kind, ActionKind::DeleteAttribute { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// A crash between any two calls, those of a promotion too, and calls that are dropped, only cost time.
    #[test]
    fn a_crash_between_any_two_calls_resumes(
        taken in prop::collection::vec(any::<bool>(), 64..300), crashes in prop::collection::vec(any::<bool>(), 16..150), broken: bool,
    ) {
        let mut cluster = about_to_roll(5);
        if broken {
            cluster.broken.push("1.0.2".into());
        }
        let mut lots = taken.into_iter();
        for crash in crashes {
            cluster.step(|| lots.next().unwrap_or(true));
            if crash {
                cluster.crash();
            }
        }
        cluster.run(2_400);
        prop_assert!(is_settled(&cluster, if broken { "1.0.1" } else { "1.0.2" }), "{:?} {:?}", cluster.sets(), cluster.decider.memory());
        prop_assert_eq!(cluster.most_uncovered, 0);
    }
}
