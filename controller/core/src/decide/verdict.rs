//! Verdicts, small enough to hold one for each of a hundred thousand tasks.

use crate::fleet::{AgentId, Str};
use jiff::Timestamp;
use std::collections::BTreeMap;
use tasuki_api::coverage::{Counts, Currency, Depth, Placement, Reason, Verdict};

/// The verdict on one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskVerdict {
    /// The verdict.
    pub verdict: Verdict,
    /// Why not covered; absent where covered, starting or excluded.
    pub reason: Option<Reason>,
    /// How an agent gets, or would get, to it.
    pub placement: Option<Placement>,
    /// How much its agent sees.
    pub depth: Option<Depth>,
    /// Whether its agent is the wanted one.
    pub currency: Option<Currency>,
    /// Index of the monitor that selected it in [`Desired::monitors`](crate::desired::Desired).
    pub monitor: Option<u16>,
    /// The agent whose report counted.
    pub agent: Option<AgentId>,
    /// Since when verdict and reason hold.
    pub since: Timestamp,
}

impl TaskVerdict {
    /// The same for everyone who looks: verdict, reason, depth, currency.
    pub(super) fn looks_like(&self, other: &Self) -> bool {
        let view = |v: &Self| (v.verdict, v.reason, v.depth, v.currency, v.placement, v.monitor);
        view(self) == view(other)
    }
}

/// A task whose verdict changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Task ARN.
    pub task: Str,
    /// Cluster ARN.
    pub cluster: Str,
    /// `service:NAME` or `family:NAME`.
    pub group: Str,
    /// Absent for a new task.
    pub before: Option<TaskVerdict>,
    /// Absent for a task that ended.
    pub after: Option<TaskVerdict>,
}

/// Counts by monitor, verdict and reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<(Option<u16>, Verdict, Option<Reason>), u64>);

impl Tally {
    pub(super) fn add(&mut self, v: &TaskVerdict) {
        *self.0.entry((v.monitor, v.verdict, v.reason)).or_default() += 1;
    }
    pub(super) fn take(&mut self, v: &TaskVerdict) {
        let key = (v.monitor, v.verdict, v.reason);
        if let Some(count) = self.0.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&key);
            }
        }
    }
    pub(super) fn add_all(&mut self, other: &Self) {
        for (key, count) in &other.0 {
            *self.0.entry(*key).or_default() += count;
        }
    }
    pub(super) fn add_missed(&mut self, monitor: Option<u16>, reason: Option<Reason>) {
        *self.0.entry((monitor, Verdict::Missed, reason)).or_default() += 1;
    }
    /// (monitor, verdict, reason) and how many tasks.
    pub fn iter(&self) -> impl Iterator<Item = (Option<u16>, Verdict, Option<Reason>, u64)> {
        self.0.iter().map(|((monitor, verdict, reason), count)| (*monitor, *verdict, *reason, *count))
    }
    /// Counts of one monitor, or of all.
    pub fn counts(&self, monitor: Option<u16>) -> Counts {
        let mut counts = Counts::default();
        for (of, verdict, _, count) in self.iter() {
            if monitor.is_none() || of == monitor {
                counts.add_many(verdict, count);
            }
        }
        counts
    }
    /// Reasons of one monitor, or of all, the most frequent first.
    pub fn reasons(&self, monitor: Option<u16>) -> Vec<(Reason, u64)> {
        let mut reasons: BTreeMap<Reason, u64> = BTreeMap::new();
        for (of, verdict, reason, count) in self.iter() {
            if let Some(reason) = reason
                && (monitor.is_none() || of == monitor)
                && verdict != Verdict::Missed
            {
                *reasons.entry(reason).or_default() += count;
            }
        }
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        reasons
    }
}
