//! Tables of what a status says, and when it is written.

use super::*;
use crate::desired::kubernetes::{self, Options};
use crate::engine::ReasonView;
use crate::testing::ApiServer;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tasuki_api::coverage::Reason;
use tasuki_api::status::{StatusCondition, Truth};
use tokio::sync::watch;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn spec(value: Value) -> RuntimeMonitorSpec {
    serde_json::from_value(value).unwrap()
}

fn enforcing() -> RuntimeMonitorSpec {
    let digest = format!("sha256:{}", "a".repeat(64));
    let agent = json!({ "version": "1.4.2", "image": { "repository": "registry.test/agent", "digest": digest } });
    spec(json!({ "mode": "Enforce", "targets": { "kubernetes": {} }, "agent": agent }))
}

fn counts(covered: u64, starting: u64, unhealthy: u64, uncovered: u64) -> Counts {
    Counts {
        total: covered + starting + unhealthy + uncovered,
        covered,
        starting,
        unhealthy,
        uncovered,
        ..Counts::default()
    }
}

fn view(counts: Counts) -> View {
    let reasons = match counts.uncovered {
        0 => Vec::new(),
        count => {
            vec![ReasonView { reason: Reason::NodeWithoutAgent, count, example: "k8s/self/pod/shop/1/web".to_owned() }]
        }
    };
    let monitor = MonitorView { name: "prod".to_owned(), counts, reasons, ..MonitorView::default() };
    View { at: Some(at(0)), monitors: vec![monitor], ..View::default() }
}

fn rollout(phase: &str) -> Option<RolloutView> {
    Some(RolloutView {
        version: "1.4.2".to_owned(),
        previous: "1.4.1".to_owned(),
        phase: serde_json::from_value(phase.into()).unwrap(),
        wave: "canary".to_owned(),
        done: 21,
        of: 412,
        since: at(-60),
        why: matches!(phase, "RollingBack" | "RollingOut").then(|| "3 agents do not report".to_owned()),
    })
}

fn of(view: &View, spec: Option<&RuntimeMonitorSpec>, refused: bool) -> MonitorStatus {
    let monitor = Monitor { name: "prod", generation: 7, spec, refused, held_back: None };
    status_of(view, monitor, &MonitorStatus::default(), at(1))
}

/// `Type=Status/Reason` of each condition.
fn brief(conditions: &[StatusCondition]) -> String {
    let one = |c: &StatusCondition| format!("{}={:?}/{}", c.kind, c.status, c.reason);
    conditions.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn message<'a>(status: &'a MonitorStatus, kind: &str) -> &'a str {
    &status.conditions.iter().find(|condition| condition.kind == kind).unwrap().message
}

#[test]
fn a_monitor_that_may_not_enforce_waits_for_a_person_and_says_for_what() {
    let (view, mut spec) = (view(counts(1, 0, 0, 0)), enforcing());
    spec.mode = Mode::Observe;
    let monitor =
        Monitor { name: "prod", generation: 7, spec: Some(&spec), refused: false, held_back: Some("the reason") };
    let status = status_of(&view, monitor, &MonitorStatus::default(), at(1));
    let said = brief(&status.conditions);
    assert!(said.contains("Ready=False/DefinitionsTooOld"), "{said}");
    assert!(said.contains("Stalled=True/DefinitionsTooOld"), "{said}");
    assert_eq!((message(&status, "Ready"), status.phase), ("the reason", Some(MonitorPhase::Observing)));
}

#[test]
fn coverage_has_its_condition_and_never_touches_ready() {
    for (counts, covered, ratio) in [
        (counts(0, 0, 0, 0), "Covered=Unknown/NothingSelected", None),
        (Counts { total: 3, excluded: 3, ..Counts::default() }, "Covered=Unknown/NothingSelected", None),
        (Counts { total: 3, missed: 3, ..Counts::default() }, "Covered=Unknown/NothingSelected", None),
        (counts(0, 4, 0, 0), "Covered=Unknown/Starting", None),
        (counts(9, 1, 0, 0), "Covered=True/AllWatched", Some("100%")),
        (counts(409, 1, 1, 1), "Covered=False/NodeWithoutAgent", Some("99.5%")),
        (counts(99_999, 0, 1, 0), "Covered=False/NotCovered", Some("99.9%")),
        (counts(0, 0, 0, 5), "Covered=False/NodeWithoutAgent", Some("0%")),
    ] {
        let status = of(&view(counts), Some(&enforcing()), false);
        let brief = brief(&status.conditions);
        assert!(brief.contains(covered), "{counts:?}: {brief}");
        assert!(brief.contains("Ready=True/InForce") && brief.contains("Stalled=False"), "{counts:?}: {brief}");
        assert_eq!(status.coverage.unwrap().ratio.as_deref(), ratio);
    }
    let status = of(&view(counts(409, 1, 1, 1)), Some(&enforcing()), false);
    assert_eq!(message(&status, "Covered"), "409 of 411 selected tasks are watched: NodeWithoutAgent 1");
    assert_eq!(status.coverage.as_ref().unwrap().total, 412);
    assert_eq!((status.reasons[0].count, status.reasons[0].example.as_str()), (1, "k8s/self/pod/shop/1/web"));
}

#[test]
fn a_rollout_is_shown_while_it_goes_on() {
    for (phase, brief_is, phase_is) in [
        ("RollingOut", "Reconciling=True/RollingOut", MonitorPhase::RollingOut),
        ("Soaking", "Reconciling=True/Soaking", MonitorPhase::Soaking),
        ("RollingBack", "Reconciling=True/RollingBack", MonitorPhase::RollingBack),
        ("Finishing", "Reconciling=True/Finishing", MonitorPhase::Finishing),
    ] {
        let mut view = view(counts(412, 0, 0, 0));
        view.monitors[0].rollout = rollout(phase);
        let status = of(&view, Some(&enforcing()), false);
        assert!(brief(&status.conditions).contains(brief_is), "{:?}", status.conditions);
        assert!(brief(&status.conditions).contains(&format!("RolledOut=False/{phase}")));
        assert_eq!((status.phase, status.rollout.as_ref().unwrap().done), (Some(phase_is), 21));
    }
    let mut view = view(counts(412, 0, 0, 0));
    view.monitors[0].rollout = rollout("RollingBack");
    let status = of(&view, Some(&enforcing()), false);
    let words = "wave canary: 21 of 412 have 1.4.2, 1.4.1 before; it goes back: 3 agents do not report";
    assert_eq!(message(&status, "RolledOut"), words);
    view.monitors[0].rollout = rollout("RollingOut");
    let status = of(&view, Some(&enforcing()), false);
    let words = "wave canary: 21 of 412 have 1.4.2, 1.4.1 before; it waits: 3 agents do not report";
    assert_eq!(message(&status, "RolledOut"), words);
}

#[test]
fn a_version_that_failed_is_told_until_another_one_is_wanted() {
    let mut view = view(counts(412, 0, 0, 0));
    view.monitors[0].outdated = 412;
    view.monitors[0].failed = serde_json::from_value(json!({
        "cluster": "self", "version": "1.4.2", "at": "2026-01-01T00:00:00Z", "why": "3 agents do not report",
    }))
    .unwrap();
    let status = of(&view, Some(&enforcing()), false);
    assert_eq!(status.phase, Some(MonitorPhase::RolledBack));
    assert!(brief(&status.conditions).contains("Stalled=True/RolledBack"), "{}", brief(&status.conditions));
    let words = "1.4.2 failed: 3 agents do not report; name another version, or run `tasuki rollout retry self`";
    assert_eq!(message(&status, "Stalled"), words);
}

#[test]
fn the_phase_and_the_version_are_told_in_one_word() {
    let observing = spec(json!({ "targets": { "kubernetes": {} } }));
    let mut paused = enforcing();
    paused.rollout.paused = true;
    let mut observes = enforcing();
    observes.mode = Mode::Observe;
    let (none, some) = (counts(0, 0, 0, 1), counts(4, 0, 0, 0));
    for (spec, counts, outdated, frozen, phase, rolled_out) in [
        (&observing, none, 0, false, MonitorPhase::Observing, "RolledOut=Unknown/NoAgentWanted"),
        (&observing, none, 0, true, MonitorPhase::Observing, "RolledOut=Unknown/NoAgentWanted"),
        (&enforcing(), none, 0, false, MonitorPhase::Settled, "RolledOut=Unknown/NoAgentReports"),
        (&enforcing(), some, 0, false, MonitorPhase::Settled, "RolledOut=True/Current"),
        (&enforcing(), some, 2, false, MonitorPhase::Settled, "RolledOut=False/Outdated"),
        (&observes, some, 2, false, MonitorPhase::Observing, "RolledOut=False/ObserveOnly"),
        (&enforcing(), some, 0, true, MonitorPhase::Frozen, "RolledOut=True/Current"),
        (&paused, some, 0, false, MonitorPhase::Paused, "RolledOut=True/Current"),
    ] {
        let mut view = view(counts);
        view.frozen = frozen;
        view.monitors[0].outdated = outdated;
        let status = of(&view, Some(spec), false);
        assert_eq!(status.phase, Some(phase), "{rolled_out}");
        assert!(brief(&status.conditions).contains(rolled_out), "{} / {rolled_out}", brief(&status.conditions));
    }
}

#[test]
fn a_refused_document_stalls_and_its_last_good_version_is_still_shown() {
    let status = of(&view(counts(4, 0, 0, 0)), Some(&enforcing()), true);
    let conditions = brief(&status.conditions);
    assert!(conditions.starts_with("Ready=False/Refused Reconciling=False/Settled Stalled=True/Refused Covered=True"));
    assert_eq!(status.coverage.unwrap().covered, 4);
    let nothing = of(&View::default(), None, true);
    assert_eq!((nothing.phase, &nothing.coverage), (Some(MonitorPhase::Refused), &None));
    assert!(brief(&nothing.conditions).contains("Covered=Unknown/Refused"));
}

#[test]
fn what_is_not_judged_yet_keeps_what_was_said_and_a_quiet_view_changes_nothing() {
    let spec = enforcing();
    let monitor = Monitor { name: "prod", generation: 7, spec: Some(&spec), refused: false, held_back: None };
    let first = status_of(&view(counts(3, 0, 0, 1)), monitor, &MonitorStatus::default(), at(1));
    let later = view(counts(3, 0, 0, 1));
    assert_eq!(status_of(&View { at: Some(at(90)), ..later }, monitor, &first, at(100)), first);
    let restarted = status_of(&View::default(), monitor, &first, at(200));
    assert_eq!((&restarted.coverage, &restarted.reasons), (&first.coverage, &first.reasons));
    assert!(brief(&restarted.conditions).contains("Covered=Unknown/Starting"));
    let covered = status_of(&view(counts(4, 0, 0, 0)), monitor, &first, at(300));
    let moved: Vec<_> = covered.conditions.iter().filter(|c| c.last_transition_time == at(300)).collect();
    assert_eq!((moved.len(), moved[0].kind.as_str(), moved[0].status), (1, "Covered", Truth::True));
}

const PATH: &str = "/apis/tasuki.dev/v1alpha1/runtimemonitors/prod";

#[tokio::test(start_paused = true)]
async fn counts_are_written_once_for_many_changes_and_not_at_all_for_none() {
    let server = ApiServer::new();
    server.put(PATH, json!({ "metadata": {}, "spec": enforcing() }));
    let (desired, _task) = kubernetes::follow(server.client(), Options::default()).await;
    let (sender, receiver) = watch::channel(Arc::new(view(counts(0, 4, 0, 0))));
    let writer = write(server.client(), receiver, desired);
    let covered = |n: u64| move |object: &Value| object["status"]["coverage"]["covered"] == n;
    server.until(PATH, covered(0)).await;
    let coverage = || server.writes().iter().filter(|(_, body)| body["status"]["phase"].is_string()).count();
    assert_eq!(coverage(), 1);
    for n in 1..=4 {
        sender.send_replace(Arc::new(view(counts(n, 4 - n, 0, 0))));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let last = server.until(PATH, covered(4)).await;
    assert_eq!(coverage(), 2);
    let kinds: Vec<&str> =
        last["status"]["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"Accepted") && kinds.contains(&"Ready"), "{kinds:?}");
    assert_eq!(last["status"]["observedGeneration"], 1);
    for _ in 0..10 {
        sender.send_replace(Arc::new(view(counts(4, 0, 0, 0))));
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    assert_eq!(coverage(), 2);

    // The next process takes over what the last one wrote.
    writer.abort();
    let (desired, _task) = kubernetes::follow(server.client(), Options::default()).await;
    let _writer = write(server.client(), sender.subscribe(), desired);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(coverage(), 2);
    // A new generation is told at once what it became.
    server.put(PATH, json!({ "metadata": {}, "spec": { "mode": "Enforce" } }));
    let refused = server
        .until(PATH, |object| object["status"]["phase"] == "Settled" && object["status"]["observedGeneration"] == 2);
    let refused = refused.await;
    let ready = |object: &Value| {
        object["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "False")
    };
    assert!(ready(&server.until(PATH, ready).await) || ready(&refused));
}
