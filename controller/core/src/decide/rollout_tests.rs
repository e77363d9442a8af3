//! Rollouts, played to their end in a small ECS.

use super::simulation::Simulation;
use super::*;
use crate::action::{ActionKind, HOLD, NEXT};
use crate::desired::Desired;
use crate::fixtures::*;
use crate::fleet::{Node, RolloutState};
use proptest::prelude::*;
use serde_json::json;
use std::sync::Arc;
use tasuki_api::coverage::{Reason, Verdict};

fn wanted(version: &str, edit: impl FnOnce(&mut serde_json::Value)) -> Arc<Desired> {
    desired(&[monitor("prod", |spec| {
        spec["agent"]["version"] = json!(version);
        let digit = version.bytes().last().unwrap() as char;
        spec["agent"]["image"]["digest"] = json!(format!("sha256:{}", digit.to_string().repeat(64)));
        edit(spec);
    })])
}

/// A cluster on version 1.0.1 whose monitor now wants 1.0.2.
fn about_to_roll(nodes: usize) -> Simulation {
    let mut simulation = Simulation::new(wanted("1.0.1", |_| {}), nodes);
    simulation.run(60);
    assert_eq!((simulation.version("tasuki"), simulation.log.len()), (Some("1.0.1"), 1));
    simulation.decider.set_desired(wanted("1.0.2", |_| {}));
    simulation.least_covered = usize::MAX;
    simulation
}

fn is_settled(simulation: &Simulation, version: &str) -> bool {
    simulation.version("tasuki") == Some(version)
        && simulation.service("tasuki-next").is_none()
        && simulation.attributes() == 0
        && simulation.decider.memory().rollouts.is_empty()
}

#[test]
fn a_rollout_goes_by_waves_and_no_node_is_ever_without_an_agent() {
    let mut simulation = about_to_roll(10);
    simulation.run(120);
    let puts = |s: &Simulation| s.count(|a| matches!(a, ActionKind::PutAttribute { name, .. } if **name == *NEXT));
    assert_eq!(puts(&simulation), 1, "the canary soaks");
    let status = simulation.decider.rollouts(&simulation.fleet, at(simulation.now));
    assert_eq!(
        (status[0].phase, status[0].wave.as_str(), status[0].done, status[0].of),
        (Phase::Soaking, "canary", 1, 10)
    );
    simulation.run(600);
    assert!(puts(&simulation) > 1);
    simulation.run(300);
    assert!(is_settled(&simulation, "1.0.2"), "{:?}", simulation.decider.memory());
    assert_eq!(simulation.least_covered, 10);
    assert_eq!(simulation.decider.decide_all(&simulation.fleet, at(simulation.now)).actions, [], "steady");
}

#[test]
fn a_broken_version_is_taken_back_and_not_tried_again() {
    let mut simulation = about_to_roll(10);
    simulation.broken.push("1.0.2".into());
    simulation.run(900);
    assert!(is_settled(&simulation, "1.0.1"), "{:?}", simulation.decider.memory());
    assert_eq!(simulation.least_covered, 10);
    let failures = simulation.decider.memory().failed.values().next().unwrap();
    assert!(failures.values().next().unwrap().why.contains("did not report within 5m"), "{failures:?}");
    let tried = simulation.log.len();
    simulation.run(3_600);
    assert_eq!(simulation.log.len(), tried, "not retried");
    simulation.decider.set_desired(wanted("1.0.3", |_| {}));
    simulation.run(1_200);
    assert!(is_settled(&simulation, "1.0.3"), "another image is");
}

#[test]
fn a_version_that_dies_while_it_soaks_is_taken_back() {
    let mut simulation = about_to_roll(10);
    simulation.run(300);
    simulation.broken.push("1.0.2".into());
    simulation.run(600);
    assert!(is_settled(&simulation, "1.0.1"), "{:?}", simulation.decider.memory());
}

#[test]
fn going_back_in_git_in_the_middle_settles_on_the_old_version() {
    let mut simulation = about_to_roll(10);
    simulation.run(200);
    simulation.decider.set_desired(wanted("1.0.1", |_| {}));
    simulation.run(200);
    assert!(is_settled(&simulation, "1.0.1"));
    assert_eq!(simulation.least_covered, 10);
}

#[test]
fn a_third_version_in_the_middle_first_settles() {
    let mut simulation = about_to_roll(10);
    simulation.run(200);
    simulation.decider.set_desired(wanted("1.0.3", |_| {}));
    simulation.run(1_800);
    assert!(is_settled(&simulation, "1.0.3"), "{:?}", simulation.decider.memory());
    assert_eq!(simulation.least_covered, 10);
}

#[test]
fn paused_starts_nothing_and_a_closed_window_neither() {
    let never = json!([{"days": [], "from": "09:00", "to": "10:00"}]);
    for (field, value) in [("paused", json!(true)), ("windows", never)] {
        let mut simulation = about_to_roll(3);
        simulation.decider.set_desired(wanted("1.0.2", |spec| spec["rollout"][field] = value));
        simulation.run(300);
        assert_eq!(simulation.log.len(), 1, "{field}: {:?}", simulation.log);
    }
}

#[test]
fn without_room_for_two_it_goes_in_place_and_comes_back_when_it_fails() {
    let tight = |simulation: &mut Simulation| simulation.edit_nodes(|n| n.free_memory = 64);
    let mut simulation = about_to_roll(3);
    tight(&mut simulation);
    simulation.run(300);
    assert!(is_settled(&simulation, "1.0.2"));
    assert_eq!(simulation.count(|a| matches!(a, ActionKind::PutAttribute { .. })), 0);

    let mut simulation = about_to_roll(3);
    tight(&mut simulation);
    simulation.broken.push("1.0.2".into());
    simulation.run(900);
    assert!(is_settled(&simulation, "1.0.1"), "{:?}", simulation.decider.memory());
    assert_eq!(simulation.count(|a| matches!(a, ActionKind::RevertDaemon { .. })), 1);
}

#[test]
fn in_place_it_waits_for_nodes_that_are_disconnected_and_judges_by_the_others() {
    let tight = |node: &mut Node| node.free_memory = 64;
    let connected = |yes: bool| move |node: &mut Node| node.connected = yes;
    let mut simulation = about_to_roll(3);
    simulation.edit_nodes(tight);
    simulation.edit_nodes(connected(false));
    simulation.run(400);
    assert_eq!(simulation.version("tasuki"), Some("1.0.2"));
    assert!(!is_settled(&simulation, "1.0.2"), "no node runs it yet");
    simulation.edit_nodes(connected(true));
    simulation.run(60);
    assert!(is_settled(&simulation, "1.0.2"));

    let mut simulation = about_to_roll(3);
    simulation.edit_nodes(tight);
    simulation.edit_nodes(connected(false));
    simulation.run(1_200);
    assert!(is_settled(&simulation, "1.0.2"), "they are lost: {:?}", simulation.decider.memory());
    assert_eq!(simulation.count(|a| matches!(a, ActionKind::RevertDaemon { .. })), 0, "no fault of the version's");

    let mut simulation = about_to_roll(3);
    simulation.edit_nodes(tight);
    simulation.edit_nodes(|node| node.connected = !node.arn.ends_with('1'));
    simulation.broken.push("1.0.2".into());
    simulation.run(900);
    assert!(is_settled(&simulation, "1.0.1"), "{:?}", simulation.decider.memory());
}

#[test]
fn no_longer_selected_is_taken_out() {
    let mut simulation = about_to_roll(4);
    simulation.run(100);
    let elsewhere = |spec: &mut serde_json::Value| spec["targets"]["ecs"]["clusters"] = json!({"include": ["dev-*"]});
    simulation.decider.set_desired(desired(&[]));
    simulation.run(60);
    assert!(simulation.service("tasuki").is_some(), "desired state that enforces nothing removes nothing");
    simulation.decider.set_desired(wanted("1.0.2", elsewhere));
    simulation.run(60);
    assert!(simulation.service("tasuki").is_none() && simulation.service("tasuki-next").is_none());
    assert_eq!(simulation.attributes(), 0);
}

#[test]
fn uninstall_names_all_that_is_ours() {
    let mut simulation = about_to_roll(4);
    simulation.run(60);
    let actions = uninstall(&simulation.fleet);
    let deleted = actions.iter().filter(|a| matches!(a.kind, ActionKind::DeleteDaemon { .. })).count();
    assert_eq!(deleted, 2);
    assert!(actions.iter().any(|a| matches!(&a.kind, ActionKind::DeleteAttribute { name, .. } if **name == *HOLD)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// A crash between any two calls, and calls that are dropped, only cost time.
    #[test]
    fn a_crash_between_any_two_calls_resumes(
        taken in prop::collection::vec(any::<bool>(), 64..200), crashes in prop::collection::vec(any::<bool>(), 16..64), broken: bool,
    ) {
        let mut simulation = about_to_roll(5);
        if broken {
            simulation.broken.push("1.0.2".into());
        }
        let mut lots = taken.into_iter();
        for crash in crashes {
            simulation.step(|_| lots.next().unwrap_or(true));
            if crash {
                simulation.crash();
            }
        }
        simulation.run(2_400);
        prop_assert!(is_settled(&simulation, if broken { "1.0.1" } else { "1.0.2" }), "{:?}", simulation.decider.memory());
        prop_assert_eq!(simulation.least_covered, 5);
    }
}

fn live() -> Arc<Desired> {
    wanted("1.0.1", |spec| spec["ecs"] = json!({"fargate": {"delivery": "Live"}}))
}

fn injections(simulation: &Simulation) -> usize {
    simulation.count(|a| matches!(a, ActionKind::Inject { .. }))
}

#[test]
fn a_live_service_gets_the_sidecar_once_and_keeps_it() {
    let mut simulation = Simulation::new(live(), 0);
    simulation.add_service(service("shop"));
    simulation.run(300);
    assert_eq!(injections(&simulation), 1);
    let counts = simulation.decider.tally().counts(None);
    assert_eq!((counts.covered, counts.uncovered, counts.unhealthy), (2, 0, 0));
    assert_eq!(simulation.decider.blocked(&simulation.fleet, at(simulation.now)), []);
}

#[test]
fn a_deployment_that_makes_it_worse_is_taken_back_and_remembered() {
    let mut simulation = Simulation::new(live(), 0);
    simulation.add_service(service("shop"));
    simulation.step(|_| true);
    simulation.step(|_| true);
    simulation.edit_service("shop", |s| s.deployments[0].failed = 2);
    simulation.run(300);
    assert_eq!(simulation.count(|a| matches!(a, ActionKind::RollBack { .. })), 1);
    assert_eq!(injections(&simulation), 1, "not tried again with the same agent");
    let row = simulation.decider.coverage(&simulation.fleet, &simulation.task_of("shop"), at(simulation.now));
    assert_eq!(row.map(|r| (r.verdict, r.reason)), Some((Verdict::Uncovered, Some(Reason::RolledBack))));
    assert_eq!(simulation.decider.retry(&service_arn("shop")), 1);
    simulation.run(7_200);
    assert_eq!(injections(&simulation), 2, "after the hour of its budget");
}

#[test]
fn what_got_worse_stays_as_it_is_where_the_monitor_says_so() {
    let say = |rollout: serde_json::Value| {
        wanted("1.0.1", |spec| {
            spec["ecs"] = json!({"fargate": {"delivery": "Live"}});
            spec["rollout"].as_object_mut().unwrap().append(&mut rollout.as_object().unwrap().clone());
        })
    };
    let taken_back = |simulation: &Simulation| simulation.count(|a| matches!(a, ActionKind::RollBack { .. }));
    for (rollout, remembered) in [(json!({"frozen": true}), false), (json!({"onFailure": "Pause"}), true)] {
        let mut simulation = Simulation::new(live(), 0);
        simulation.add_service(service("shop"));
        simulation.step(|_| true);
        simulation.step(|_| true);
        simulation.decider.set_desired(say(rollout));
        let now = simulation.now;
        simulation.edit_service("shop", |s| {
            (s.deployments[0].failed, s.deployments[0].created_at) = (2, Some(at(now)));
        });
        simulation.step(|_| true);
        assert_eq!(taken_back(&simulation), 0);
        let history = simulation.decider.memory().services[&service_arn("shop")].clone();
        assert_eq!(history.rolled_back.is_some(), remembered);
        simulation.decider.set_desired(live());
        simulation.step(|_| true);
        assert_eq!(taken_back(&simulation), 1, "once the monitor lets it");
        let first = simulation.decider.memory().services[&service_arn("shop")].rolled_back.clone();
        assert!(!remembered || first == history.rolled_back, "the failure is dated once");
    }
}

#[test]
fn an_agent_that_never_reports_rolls_its_deployment_back() {
    let mut simulation = Simulation::new(live(), 0);
    simulation.broken.push("1.0.1".into());
    simulation.add_service(service("shop"));
    simulation.step(|_| true);
    simulation.step(|_| true);
    // The deployment hangs, as it does without a circuit breaker.
    for _ in 0..40 {
        let now = simulation.now;
        if simulation.service("shop").unwrap().deployments.len() > 1 {
            simulation.edit_service("shop", |s| s.deployments[0].created_at = Some(at(now)));
        }
        simulation.step(|_| true);
    }
    assert_eq!(simulation.count(|a| matches!(a, ActionKind::RollBack { .. })), 1);
    assert!(simulation.service("shop").unwrap().definition.ends_with("shop:1"));
}

#[test]
fn an_owner_who_takes_it_out_three_times_a_day_keeps_it_out() {
    let mut simulation = Simulation::new(live(), 0);
    simulation.add_service(service("shop"));
    let mut before = 0;
    for _ in 0..4 {
        simulation.run(6 * 3_600 - 600);
        if injections(&simulation) > before {
            before = injections(&simulation);
            let now = simulation.now;
            simulation.edit_service("shop", |s| {
                s.definition = definition_arn("shop:1");
                s.deployments = vec![deployment(&s.definition, RolloutState::Completed)];
                s.deployments[0].created_at = Some(at(now));
            });
        }
    }
    assert_eq!(injections(&simulation), 3, "{:?}", simulation.decider.memory().services);
    simulation.run(600);
    let blocked = simulation.decider.blocked(&simulation.fleet, at(simulation.now));
    assert_eq!(blocked.iter().map(|b| b.reason).collect::<Vec<_>>(), [Reason::Contested]);
}

#[test]
fn a_service_that_is_no_longer_selected_is_pointed_back() {
    let mut simulation = Simulation::new(live(), 0);
    simulation.add_service(service("shop"));
    simulation.run(100);
    let away = wanted("1.0.1", |spec| {
        spec["ecs"] = json!({"fargate": {"delivery": "Live"}});
        spec["exclusions"] = json!([{"matches": "shop", "reason": "moved"}]);
    });
    simulation.decider.set_desired(away);
    simulation.run(100);
    assert_eq!(simulation.count(|a| matches!(a, ActionKind::Uninject { .. })), 1);
    assert!(simulation.service("shop").unwrap().definition.ends_with("shop:1"));
    assert_eq!(simulation.decider.memory().services[&service_arn("shop")].flipped, [], "no flip of the owner's");
}

#[test]
fn a_new_agent_waits_for_the_owner_or_rolls_as_the_monitor_says() {
    for (choice, expected) in [("NextDeployment", 1), ("Roll", 2)] {
        let mut simulation = Simulation::new(live(), 0);
        simulation.add_service(service("shop"));
        simulation.run(4_000);
        simulation.decider.set_desired(wanted("1.0.2", |spec| {
            spec["ecs"] = json!({"fargate": {"delivery": "Live", "onOutdated": choice}});
        }));
        simulation.run(200);
        assert_eq!(injections(&simulation), expected, "{choice}");
    }
}

#[test]
fn few_services_are_deployed_at_once() {
    let mut simulation = Simulation::new(live(), 0);
    for i in 0..12 {
        simulation.add_service(service(&format!("s{i:02}")));
    }
    let mut most = 0;
    for _ in 0..60 {
        simulation.step(|_| true);
        let under_way =
            (0..12).filter(|i| simulation.service(&format!("s{i:02}")).unwrap().deployments.len() > 1).count();
        most = most.max(under_way);
    }
    assert_eq!((injections(&simulation), most), (12, 2));
}
