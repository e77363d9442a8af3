//! The conditions of a monitor. `Ready`, `Reconciling` and `Stalled` mean what kstatus takes them
//! for; `Covered` and `RolledOut` are ours.

use super::Monitor;
use crate::engine::{FailedView, MonitorView, RolloutView};
use jiff::Timestamp;
use tasuki_api::desired::Mode;
use tasuki_api::status::condition::{COVERED, READY, RECONCILING, ROLLED_OUT, STALLED};
use tasuki_api::status::{StatusCondition, Truth};

/// Whether it holds, the word for programs, the words for people.
type Finding = (Truth, &'static str, String);

/// The reason where a monitor may not enforce what it says.
const HELD_BACK: &str = "DefinitionsTooOld";
/// Reasons that a message names.
const NAMED: usize = 5;

/// All conditions that are written here.
pub fn of(
    known: Option<&MonitorView>,
    rollout: Option<&RolloutView>,
    monitor: Monitor<'_>,
    before: &[StatusCondition],
    now: Timestamp,
) -> Vec<StatusCondition> {
    let all = [
        (READY, ready(monitor)),
        (RECONCILING, reconciling(rollout)),
        (STALLED, stalled(known, monitor)),
        (COVERED, covered(known, monitor)),
        (ROLLED_OUT, rolled_out(known, rollout, monitor)),
    ];
    let generation = Some(monitor.generation);
    let one = |(kind, (truth, reason, message)): (&str, Finding)| {
        StatusCondition::new(kind, truth, reason, &message, generation, before, now)
    };
    all.into_iter().map(one).collect()
}

fn ready(monitor: Monitor<'_>) -> Finding {
    if let Some(why) = monitor.held_back {
        return (Truth::False, HELD_BACK, why.to_owned());
    }
    match (monitor.refused, monitor.spec) {
        (false, Some(_)) => (Truth::True, "InForce", "this generation is in force".to_owned()),
        (true, Some(_)) => (
            Truth::False,
            "Refused",
            "this generation was refused, the last good one is in force; Accepted says why".to_owned(),
        ),
        (_, None) => (Truth::False, "Refused", "nothing is in force; Accepted says why".to_owned()),
    }
}

fn reconciling(rollout: Option<&RolloutView>) -> Finding {
    match rollout {
        Some(rollout) => (Truth::True, rollout.phase.name(), words(rollout)),
        None => (Truth::False, "Settled", "no rollout is under way".to_owned()),
    }
}

fn stalled(known: Option<&MonitorView>, monitor: Monitor<'_>) -> Finding {
    if let Some(why) = monitor.held_back {
        return (Truth::True, HELD_BACK, why.to_owned());
    }
    if monitor.refused || monitor.spec.is_none() {
        return (Truth::True, "Refused", "write the document as Accepted says".to_owned());
    }
    if let Some(FailedView { cluster, version, why, .. }) = known.and_then(|known| known.failed.as_ref()) {
        let next = format!("name another version, or run `tasuki rollout retry {cluster}`");
        return (Truth::True, "RolledBack", format!("{version} failed: {why}; {next}"));
    }
    (Truth::False, "Going", "nothing waits for a person".to_owned())
}

fn covered(known: Option<&MonitorView>, monitor: Monitor<'_>) -> Finding {
    let Some(known) = known else { return unjudged(monitor) };
    let counts = &known.counts;
    let judged = counts.covered + counts.unhealthy + counts.uncovered;
    if judged + counts.starting == 0 {
        return (Truth::Unknown, "NothingSelected", "it selects no task; look at spec.targets".to_owned());
    }
    if judged == 0 {
        let words = format!("all {} selected tasks are younger than their grace", counts.starting);
        return (Truth::Unknown, "Starting", words);
    }
    if counts.covered == judged {
        return (Truth::True, "AllWatched", format!("all {judged} selected tasks are watched"));
    }
    let named = known.reasons.iter().take(NAMED).map(|reason| format!("{} {}", reason.reason.name(), reason.count));
    let named: Vec<String> = named.collect();
    let why = known.reasons.first().map_or("NotCovered", |first| first.reason.name());
    let because = if named.is_empty() { String::new() } else { format!(": {}", named.join(", ")) };
    (Truth::False, why, format!("{} of {judged} selected tasks are watched{because}", counts.covered))
}

fn rolled_out(known: Option<&MonitorView>, rollout: Option<&RolloutView>, monitor: Monitor<'_>) -> Finding {
    let (Some(known), Some(spec)) = (known, monitor.spec) else { return unjudged(monitor) };
    let Some(agent) = &spec.agent else {
        return (Truth::Unknown, "NoAgentWanted", "the monitor names no agent".to_owned());
    };
    let version = &agent.version;
    match rollout {
        Some(rollout) => (Truth::False, rollout.phase.name(), words(rollout)),
        None if known.counts.covered == 0 => {
            (Truth::Unknown, "NoAgentReports", format!("no agent reports yet; {version} is wanted"))
        }
        None if known.outdated > 0 && spec.mode == Mode::Observe => {
            let words = format!("{} tasks are watched by another version than {version}", known.outdated);
            (Truth::False, "ObserveOnly", format!("{words}; mode Observe changes nothing"))
        }
        None if known.outdated > 0 => {
            let words = format!("{} tasks are watched by another version than {version}", known.outdated);
            (Truth::False, "Outdated", words)
        }
        None => (Truth::True, "Current", format!("every task that is watched is watched by {version}")),
    }
}

fn unjudged(monitor: Monitor<'_>) -> Finding {
    match monitor.spec {
        Some(_) => (Truth::Unknown, "Starting", "its tasks are not known yet".to_owned()),
        None => (Truth::Unknown, "Refused", "nothing is in force".to_owned()),
    }
}

fn words(rollout: &RolloutView) -> String {
    let RolloutView { version, previous, wave, done, of, .. } = rollout;
    let wave = if wave.is_empty() { String::new() } else { format!("wave {wave}: ") };
    let before = if previous.is_empty() { String::new() } else { format!(", {previous} before") };
    let why = rollout.why.as_ref().map(|why| format!("; it {}: {why}", rollout.standing())).unwrap_or_default();
    format!("{wave}{done} of {of} have {version}{before}{why}")
}
