//! What a decision is made of: what changed, what is to be done, and nothing twice.

use super::tests::enforce;
use super::*;
use crate::action::ActionKind;
use crate::fixtures::*;
use crate::fleet::*;
use crate::memory::Memory;
use serde_json::json;
use tasuki_api::coverage::Verdict;

#[test]
fn incremental_and_full_decisions_agree() {
    let mut fleet = fleet(vec![]);
    let mut decider = Decider::new(desired(&enforce()), Memory::default());
    let mut stopped = task("b", "shop");
    stopped.status = TaskStatus::Stopped;
    let changes = vec![
        of_service(service("shop")),
        of_task(with_sidecar(task("a", "shop"))),
        of_task(task("b", "shop")),
        of_node(node("n1")),
        of_task(on_node(task("c", "web"), "n1")),
        of_agent(sidecar_report("a", at(1000))),
        of_agent(node_report("d", "n1", &["c"], at(1000))),
        of_task(stopped),
        Change::ServiceGone(service_arn("shop")),
    ];
    for change in changes {
        let applied = fleet.apply(change.clone(), at(1000));
        decider.decide(&fleet, &applied, at(1000));
        let mut full = Decider::new(desired(&enforce()), decider.memory().clone());
        full.decide_all(&fleet, at(1000));
        let view = |d: &Decider| d.verdicts().map(|(_, _, t, v)| (t.clone(), v.verdict, v.reason)).collect::<Vec<_>>();
        assert_eq!(view(&decider), view(&full), "after {change:?}");
        assert_eq!(decider.tally(), full.tally());
        assert_eq!(decider.decide_all(&fleet, at(1000)).changed, [], "nothing was left to find");
    }
}

#[test]
fn nothing_selected_has_no_ratio_and_changes_say_what_changed() {
    let mut fleet = fleet(vec![of_task(task("a", "shop"))]);
    let mut decider = Decider::new(desired(&[]), Memory::default());
    let first = decider.decide_all(&fleet, at(1000));
    assert_eq!(first.changed.len(), 1);
    assert_eq!(decider.tally().counts(None).live_ratio(), None);
    decider.set_desired(desired(&enforce()));
    let second = decider.decide_all(&fleet, at(1001));
    assert_eq!(second.changed[0].before.unwrap().verdict, Verdict::Excluded);
    let mut stopped = task("a", "shop");
    stopped.status = TaskStatus::Stopped;
    let applied = fleet.apply(of_task(stopped), at(1002));
    assert_eq!(decider.decide(&fleet, &applied, at(1002)).changed[0].after, None);
}

#[test]
fn observing_and_freezing_ask_for_no_change() {
    let changes = vec![
        of_task(on_node(task("a", "web"), "n1")),
        of_node(node("n1")),
        of_service(service("shop")),
        of_task(task("b", "shop")),
    ];
    let fleet = fleet(changes);
    for (mode, frozen, paused, creates) in [
        ("Observe", false, false, 0),
        ("Enforce", true, false, 0),
        ("Enforce", false, true, 1),
        ("Enforce", false, false, 1),
    ] {
        let documents = [monitor("prod", |spec| {
            spec["mode"] = json!(mode);
            spec["rollout"]["frozen"] = json!(frozen);
            spec["rollout"]["paused"] = json!(paused);
            spec["ecs"] = json!({"fargate": {"delivery": "Live"}});
        })];
        let mut decider = Decider::new(desired(&documents), Memory::default());
        let actions = decider.decide_all(&fleet, at(1000)).actions;
        let changing: Vec<_> = actions.iter().filter(|a| !a.only_reads()).collect();
        assert_eq!(changing.len(), creates, "{mode} {frozen} {paused}: {changing:?}");
        assert!(changing.iter().all(|a| matches!(a.kind, ActionKind::CreateDaemon { .. })));
    }
}

#[test]
fn deciding_again_changes_verdicts_in_place_and_tells_only_what_changed() {
    // More tasks than are looked at side by side, and a number that does not divide by it.
    let ids: Vec<String> = (0..41).map(|n| format!("t{n:02}")).collect();
    let mut changes = vec![of_service(service("web"))];
    changes.extend(ids.iter().map(|id| of_task(with_sidecar(task(id, "web")))));
    changes.extend(ids.iter().map(|id| of_agent(sidecar_report(id, at(90)))));
    let mut fleet = fleet(changes);
    let mut decider = Decider::new(desired(&enforce()), Memory::default());
    assert_eq!(decider.decide_all(&fleet, at(100)).changed.len(), 41);

    let again = decider.decide_all(&fleet, at(110));
    assert!(again.changed.is_empty(), "{:?}", again.changed);
    let held = |decider: &Decider, id: &str| *decider.verdict(CLUSTER, "service:web", &task_arn(id)).unwrap();
    assert!(ids.iter().all(|id| held(&decider, id).since == at(100)), "since the first time");

    let mut exited = with_sidecar(task("t17", "web"));
    exited.version = 4;
    exited.containers[1].status = "STOPPED".into();
    fleet.apply(of_task(exited), at(115));
    fleet.apply(of_task(task("t99", "web")), at(115));
    let after = decider.decide_all(&fleet, at(120));
    let told: Vec<_> = after.changed.iter().map(|c| (c.task.clone(), c.before.is_some())).collect();
    assert_eq!(told, [(task_arn("t17"), true), (task_arn("t99"), false)]);
    assert_eq!((held(&decider, "t17").verdict, held(&decider, "t17").since), (Verdict::Unhealthy, at(120)));
    assert_eq!((held(&decider, "t40").verdict, held(&decider, "t40").since), (Verdict::Covered, at(100)));
    assert_eq!(decider.tally().counts(None).covered, 40);
}
