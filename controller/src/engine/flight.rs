//! Actions under way: no two on one target at once, and one that failed waits before the next try.

use jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use tasuki_core::fleet::Str;

/// The first wait after a failure; doubles with each one.
const FIRST_WAIT: SignedDuration = SignedDuration::from_secs(5);
/// The longest wait.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_mins(5);

#[derive(Debug)]
struct State {
    busy: bool,
    failures: u32,
    not_before: Timestamp,
}

/// What is under way or waits, by target.
#[derive(Debug, Default)]
pub struct Flights {
    targets: HashMap<Str, State>,
}

impl Flights {
    /// Takes off, unless the target is busy or waits.
    pub fn begin(&mut self, target: &Str, now: Timestamp) -> bool {
        let state = self.targets.entry(target.clone()).or_insert(State { busy: false, failures: 0, not_before: now });
        if state.busy || now < state.not_before {
            return false;
        }
        state.busy = true;
        true
    }

    /// Lands. A failure makes the target wait, longer each time.
    pub fn end(&mut self, target: &Str, failed: bool, now: Timestamp) {
        if !failed {
            self.targets.remove(target);
            return;
        }
        if let Some(state) = self.targets.get_mut(target) {
            let wait = FIRST_WAIT.checked_mul(1 << state.failures.min(10)).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
            *state = State {
                busy: false,
                failures: state.failures + 1,
                not_before: now.saturating_add(wait).unwrap_or(now),
            };
        }
    }

    /// Forgets targets that have waited out their time, so that the map stays as small as the trouble.
    pub fn expire(&mut self, now: Timestamp) {
        self.targets
            .retain(|_, state| state.busy || now < state.not_before.saturating_add(LONGEST_WAIT).unwrap_or(now));
    }

    /// Forgets every wait.
    pub fn retry_all(&mut self) {
        self.targets.retain(|_, state| state.busy);
    }

    /// How many are under way.
    pub fn busy(&self) -> usize {
        self.targets.values().filter(|state| state.busy).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_a_failure_waits_longer_each_time() {
        let mut flights = Flights::default();
        let target = Str::from("service");
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        assert!(flights.begin(&target, at(0)));
        assert!(!flights.begin(&target, at(100)), "busy");
        flights.end(&target, true, at(100));
        assert!(!flights.begin(&target, at(104)));
        assert!(flights.begin(&target, at(105)));
        flights.end(&target, true, at(105));
        assert!(!flights.begin(&target, at(114)));
        assert!(flights.begin(&target, at(115)));
        flights.end(&target, false, at(115));
        assert!(flights.begin(&target, at(115)), "success forgets");
        flights.end(&target, true, at(115));
        flights.expire(at(115 + 3600));
        assert!(flights.targets.is_empty());
    }
}
