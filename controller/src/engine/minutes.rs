//! Task-minutes: how much of the last 24 hours' selected task time was covered.
//!
//! `Starting` and `Missed` count against it, so that a fleet of 90-second jobs that no agent ever
//! sees is not reported as whole. One slot a minute, so the memory is bounded by the day.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use tasuki_api::coverage::Counts;

/// Minutes of a day.
const DAY: i64 = 24 * 60;

/// One minute's counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    minute: i64,
    covered: u64,
    selected: u64,
}

/// The last 24 hours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minutes {
    slots: VecDeque<Slot>,
}

impl Minutes {
    /// Takes the counts of the minute that `now` lies in; once a minute counts. True where it did.
    pub fn take(&mut self, counts: &Counts, now: Timestamp) -> bool {
        let minute = now.as_second().div_euclid(60);
        if self.slots.back().is_some_and(|slot| slot.minute >= minute) {
            return false;
        }
        self.slots.push_back(Slot { minute, covered: counts.covered, selected: counts.total - counts.excluded });
        while self.slots.front().is_some_and(|slot| slot.minute <= minute - DAY) {
            self.slots.pop_front();
        }
        true
    }

    /// Covered share; absent where nothing was selected.
    pub fn ratio(&self) -> Option<f64> {
        let (covered, selected) = self
            .slots
            .iter()
            .fold((0, 0), |(covered, selected), slot| (covered + slot.covered, selected + slot.selected));
        (selected > 0).then(|| covered as f64 / selected as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tasuki_api::coverage::Verdict;

    fn counts(covered: u64, starting: u64) -> Counts {
        let mut counts = Counts::default();
        counts.add_many(Verdict::Covered, covered);
        counts.add_many(Verdict::Starting, starting);
        counts.add_many(Verdict::Excluded, 5);
        counts
    }

    #[test]
    fn a_minute_counts_once_and_a_day_is_all_that_is_kept() {
        let at = |minute: i64| Timestamp::from_second(minute * 60 + 7).unwrap();
        let mut minutes = Minutes::default();
        assert_eq!(minutes.ratio(), None);
        assert!(minutes.take(&counts(1, 1), at(0)));
        assert!(!minutes.take(&counts(9, 0), at(0)));
        assert_eq!(minutes.ratio(), Some(0.5), "starting tasks count against it, excluded ones do not count");
        for minute in 1..=DAY {
            minutes.take(&counts(2, 0), at(minute));
        }
        assert_eq!(minutes.slots.len(), DAY as usize);
        assert_eq!(minutes.ratio(), Some(1.0), "the first minute is forgotten");
    }
}
