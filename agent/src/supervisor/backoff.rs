//! How long to wait before the agent is started again.

use std::time::Duration;

/// After the first end.
const FIRST: Duration = Duration::from_millis(250);
/// After many.
const LONGEST: Duration = Duration::from_secs(30);
/// A child that lived this long had no trouble at its start: the next wait is the first again.
const HEALTHY: Duration = Duration::from_secs(60);

/// Doubles with each end, from 250 ms to 30 s.
#[derive(Debug, Default)]
pub struct Backoff {
    ends: u32,
}

impl Backoff {
    /// How long to wait after a child that lived this long.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= HEALTHY {
            self.ends = 0;
        }
        let wait = FIRST.saturating_mul(2_u32.saturating_pow(self.ends)).min(LONGEST);
        self.ends += 1;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute_and_begin_anew_after_a_healthy_life() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..9).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        for _ in 0..100 {
            backoff.after(Duration::ZERO);
        }
        assert_eq!(backoff.after(HEALTHY), FIRST);
    }
}
