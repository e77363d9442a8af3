//! What the status of a `RuntimeMonitor` says: counts, reasons, rollout, conditions.
//!
//! [`status_of`] is a pure function of the engine's view; [`write`] is the one writer. *Guarantees*:
//! no time in a status moves unless what it speaks of did, so a quiet cluster is written never;
//! tasks without an agent never make `Ready` False, since that would stop every deployment that
//! waits for it; a monitor that selects nothing is not called covered. *Caveats*: counts are up to
//! [`writer::PAUSE`] old.

mod conditions;
mod writer;

pub use writer::write;

use crate::engine::{MonitorView, RolloutView, View};
use jiff::Timestamp;
use tasuki_api::coverage::Counts;
use tasuki_api::desired::{Mode, RuntimeMonitorSpec};
use tasuki_api::status::{CoverageCounts, MonitorPhase, MonitorStatus, ReasonCount, RolloutProgress};
use tasuki_core::decide::Phase;

/// Reasons that a status names.
const REASONS: usize = 16;

/// A monitor as its author wrote it, and what became of that.
#[derive(Clone, Copy, Debug)]
pub struct Monitor<'a> {
    /// Its name.
    pub name: &'a str,
    /// `metadata.generation`.
    pub generation: i64,
    /// What is in force: this generation, or the last good one; absent where nothing is.
    pub spec: Option<&'a RuntimeMonitorSpec>,
    /// This generation was refused.
    pub refused: bool,
    /// It says Enforce, and `spec` does not: why.
    pub held_back: Option<&'a str>,
}

/// The status of `monitor`. `previous`: what was written last.
pub fn status_of(view: &View, monitor: Monitor<'_>, previous: &MonitorStatus, now: Timestamp) -> MonitorStatus {
    let known = view.monitors.iter().find(|known| known.name == monitor.name).filter(|_| view.at.is_some());
    let rollout = known.and_then(|known| known.rollout.as_ref());
    let mut status = MonitorStatus {
        observed_generation: None,
        phase: Some(phase(view, monitor, rollout, known.is_some_and(|known| known.failed.is_some()))),
        conditions: conditions::of(known, rollout, monitor, &previous.conditions, now),
        ..MonitorStatus::default()
    };
    match known {
        Some(known) => {
            status.coverage = Some(coverage(&known.counts));
            status.reasons = reasons(known);
            status.rollout = rollout.map(progress);
        }
        // Not judged yet: what was known still is the best that can be said.
        None if monitor.spec.is_some() => {
            status.coverage.clone_from(&previous.coverage);
            status.reasons.clone_from(&previous.reasons);
            status.rollout.clone_from(&previous.rollout);
        }
        None => {}
    }
    status
}

fn phase(view: &View, monitor: Monitor<'_>, rollout: Option<&RolloutView>, failed: bool) -> MonitorPhase {
    let Some(spec) = monitor.spec else { return MonitorPhase::Refused };
    match rollout.map(|rollout| rollout.phase) {
        _ if spec.mode == Mode::Observe => MonitorPhase::Observing,
        _ if view.frozen || spec.rollout.frozen => MonitorPhase::Frozen,
        _ if spec.rollout.paused => MonitorPhase::Paused,
        Some(Phase::RollingOut) => MonitorPhase::RollingOut,
        Some(Phase::Soaking) => MonitorPhase::Soaking,
        Some(Phase::RollingBack) => MonitorPhase::RollingBack,
        Some(Phase::Finishing) => MonitorPhase::Finishing,
        None if failed => MonitorPhase::RolledBack,
        None => MonitorPhase::Settled,
    }
}

fn coverage(counts: &Counts) -> CoverageCounts {
    let Counts { covered, starting, unhealthy, uncovered, missed, excluded, .. } = *counts;
    CoverageCounts {
        total: covered + starting + unhealthy + uncovered,
        covered,
        starting,
        unhealthy,
        uncovered,
        missed,
        excluded,
        ratio: ratio(covered, covered + unhealthy + uncovered),
    }
}

/// A share in percent, cut after one decimal: 100% means all.
fn ratio(part: u64, of: u64) -> Option<String> {
    let permille = u128::from(part).checked_mul(1000)?.checked_div(u128::from(of))?;
    Some(match (permille / 10, permille % 10) {
        (whole, 0) => format!("{whole}%"),
        (whole, tenth) => format!("{whole}.{tenth}%"),
    })
}

fn reasons(known: &MonitorView) -> Vec<ReasonCount> {
    let one = |reason: &crate::engine::ReasonView| ReasonCount {
        reason: reason.reason,
        count: reason.count,
        example: reason.example.chars().take(512).collect(),
    };
    known.reasons.iter().take(REASONS).map(one).collect()
}

fn progress(rollout: &RolloutView) -> RolloutProgress {
    RolloutProgress {
        phase: rollout.phase.name().to_owned(),
        version: rollout.version.clone(),
        previous: rollout.previous.clone(),
        wave: rollout.wave.clone(),
        done: rollout.done,
        of: rollout.of,
        since: rollout.since,
        why: rollout.why.as_ref().map(|why| why.chars().take(512).collect()),
    }
}

#[cfg(test)]
mod tests;
