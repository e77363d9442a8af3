//! Grouping: the first finding of a group goes out at once, repeats at most every minute with the
//! count so far, under the same id.
//!
//! ```text
//!  match ─▶ unknown group ─▶ sent (count 1)
//!        └▶ known group ──▶ count + 1 ─▶ sent again, 60 s after it was last sent
//! ```

use lru::LruCache;
use std::num::NonZeroUsize;
use tasuki_api::finding::{Finding, Severity};

/// Groups remembered.
pub const MAX_GROUPS: usize = 4_096;
/// Between two reports of a group, nanoseconds.
pub const REPEAT_NS: u64 = 60 * 1_000_000_000;
/// A group that was quiet this long is over; the next match is a new finding.
pub const OVER_NS: u64 = 3_600 * 1_000_000_000;

/// What makes matches the same finding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupKey {
    /// Finding type.
    pub kind: String,
    /// Severity, so that a graver case of the type is not hidden by a lighter one.
    pub severity: Severity,
    /// Container, or empty.
    pub container: String,
    /// Program, or what else tells cases apart where no program is known.
    pub image: String,
}

#[derive(Debug)]
struct Group {
    finding: Finding,
    last: u64,
    sent: u64,
    unsent: bool,
}

/// The groups.
#[derive(Debug)]
pub struct Groups {
    groups: LruCache<GroupKey, Group>,
    evictions: u64,
}

impl Default for Groups {
    fn default() -> Self {
        Self::new(NonZeroUsize::new(MAX_GROUPS).unwrap_or(NonZeroUsize::MIN))
    }
}

impl Groups {
    /// No groups, and room for `capacity`.
    pub fn new(capacity: NonZeroUsize) -> Self {
        Self { groups: LruCache::new(capacity), evictions: 0 }
    }

    /// A match at `time` whose group is known is counted; returns whether it was. `again` is sent
    /// where a report is due.
    pub fn count(&mut self, key: &GroupKey, time: u64, last_seen: jiff::Timestamp) -> Counted {
        let over = self.groups.peek(key).is_some_and(|group| time.saturating_sub(group.last) > OVER_NS);
        if over {
            self.groups.pop(key);
        }
        let Some(group) = self.groups.get_mut(key) else { return Counted::New };
        group.last = group.last.max(time);
        group.finding.count += 1;
        group.finding.last_seen = group.finding.last_seen.max(last_seen);
        group.unsent = true;
        if time.saturating_sub(group.sent) < REPEAT_NS {
            return Counted::Quiet;
        }
        (group.sent, group.unsent) = (time, false);
        Counted::Again(Box::new(group.finding.clone()))
    }

    /// Opens a group with its first finding. Returns a report that was still due for the group
    /// that had to make room.
    pub fn open(&mut self, key: GroupKey, time: u64, finding: Finding) -> Option<Finding> {
        let group = Group { finding, last: time, sent: time, unsent: false };
        let (old_key, old) = self.groups.push(key.clone(), group)?;
        if old_key == key {
            return None;
        }
        self.evictions += 1;
        old.unsent.then_some(old.finding)
    }

    /// The first finding of a group is ready (names and hash may have come late). Returns what to
    /// send: with everything that was counted meanwhile.
    pub fn complete(&mut self, key: &GroupKey, finding: Finding) -> Finding {
        match self.groups.peek_mut(key).filter(|group| group.finding.id == finding.id) {
            Some(group) => {
                let (count, last_seen) = (group.finding.count, group.finding.last_seen);
                group.finding = Finding { count, last_seen, ..finding };
                group.unsent = false;
                group.finding.clone()
            }
            None => finding,
        }
    }

    /// Reports that are due at `time` although no match came to carry them.
    pub fn due(&mut self, time: u64) -> Vec<Finding> {
        self.take(|group| time.saturating_sub(group.sent) >= REPEAT_NS, time)
    }

    /// Every report that is still due, at the end.
    pub fn rest(&mut self) -> Vec<Finding> {
        self.take(|_| true, u64::MAX)
    }

    /// Groups pushed out because there were too many.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    fn take(&mut self, wanted: impl Fn(&Group) -> bool, time: u64) -> Vec<Finding> {
        let mut reports = Vec::new();
        for (_, group) in &mut self.groups {
            if group.unsent && wanted(group) {
                (group.sent, group.unsent) = (time, false);
                reports.push(group.finding.clone());
            }
        }
        reports.sort_by_key(|finding| finding.id);
        reports
    }
}

/// What became of a match.
#[derive(Debug)]
pub enum Counted {
    /// Its group is not known: build a finding and [`Groups::open`] it.
    New,
    /// Counted, nothing to send now.
    Quiet,
    /// Counted, and this report is due.
    Again(Box<Finding>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::build::tests::finding;

    const SECOND: u64 = 1_000_000_000;

    fn key(image: &str) -> GroupKey {
        GroupKey { kind: "T".into(), severity: Severity::Low, container: "c".into(), image: image.into() }
    }
    fn at(second: u64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(i64::try_from(second).unwrap()).unwrap()
    }

    #[test]
    fn repeats_are_counted_and_reported_at_most_every_minute_under_the_same_id() {
        let mut groups = Groups::default();
        assert!(matches!(groups.count(&key("a"), 0, at(0)), Counted::New));
        let first = finding();
        groups.open(key("a"), 0, first.clone());
        for second in 1..60 {
            assert!(matches!(groups.count(&key("a"), second * SECOND, at(second)), Counted::Quiet));
        }
        assert!(groups.due(59 * SECOND).is_empty());
        let Counted::Again(again) = groups.count(&key("a"), 60 * SECOND, at(60)) else { panic!("not reported") };
        assert_eq!((again.id, again.count, again.last_seen), (first.id, 61, at(60)));
        groups.count(&key("a"), 61 * SECOND, at(61));
        let due = groups.due(121 * SECOND);
        assert_eq!(due.iter().map(|one| one.count).collect::<Vec<_>>(), [62]);
        assert!(groups.rest().is_empty());
        assert!(matches!(groups.count(&key("a"), 61 * SECOND + OVER_NS + 1, at(9999)), Counted::New));
    }

    #[test]
    fn there_are_never_more_groups_than_allowed_and_a_due_report_is_not_lost() {
        let mut groups = Groups::new(NonZeroUsize::new(2).unwrap());
        groups.open(key("a"), 0, finding());
        groups.count(&key("a"), 1, at(1));
        assert!(groups.open(key("b"), 2, finding()).is_none());
        assert_eq!(groups.open(key("c"), 3, finding()).unwrap().count, 2);
        assert_eq!((groups.groups.len(), groups.evictions()), (2, 1));
    }
}
