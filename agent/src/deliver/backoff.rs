//! How long to wait before the next try.

use rand::Rng as _;
use std::time::Duration;
use tokio::time::Instant;

/// An address where nobody listens costs a packet to ask: it is asked at least this often …
const ABSENT: Duration = Duration::from_secs(2);
/// … for this long. Then whoever took the gateway away does not bring it back in a moment.
const ABSENT_FOR: Duration = Duration::from_secs(300);

/// When the next try is.
#[derive(Debug)]
pub(super) struct Backoff {
    least: Duration,
    most: Duration,
    failures: u32,
    /// Since when nobody listens.
    absent: Option<Instant>,
}

impl Backoff {
    /// Waits between these two.
    pub(super) fn new((least, most): (Duration, Duration)) -> Self {
        Self { least, most, failures: 0, absent: None }
    }

    /// Anything up to the exponential bound ("full jitter"), and never nothing.
    pub(super) fn next(&mut self) -> Duration {
        self.absent = None;
        self.within(self.most)
    }

    /// The same where nobody listens.
    pub(super) fn next_absent(&mut self) -> Duration {
        let now = Instant::now();
        if self.absent.is_none() {
            (self.absent, self.failures) = (Some(now), 0);
        }
        let soon = self.absent.is_some_and(|since| now.duration_since(since) < ABSENT_FOR);
        self.within(if soon { self.most.min(ABSENT.max(self.least)) } else { self.most })
    }

    /// One who answers is there: that another one was not does not count any more.
    pub(super) fn answered(&mut self) {
        if self.absent.take().is_some() {
            self.failures = 0;
        }
    }

    fn within(&mut self, most: Duration) -> Duration {
        let bound = self.least.saturating_mul(1 << self.failures.min(16)).min(most);
        self.failures = self.failures.saturating_add(1);
        rand::rng().random_range(self.least / 4..=bound)
    }

    /// It went well: the next wait is the shortest again.
    pub(super) fn succeeded(&mut self) {
        (self.failures, self.absent) = (0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_where_nobody_listens_is_asked_often_for_five_minutes() {
        let mut backoff = Backoff::new((Duration::from_secs(1), Duration::from_secs(60)));
        for _ in 0..10 {
            backoff.next();
        }
        let began = Instant::now();
        let mut longest = Duration::ZERO;
        while began.elapsed() < ABSENT_FOR - ABSENT {
            let wait = backoff.next_absent();
            longest = longest.max(wait);
            tokio::time::advance(wait).await;
        }
        assert!(longest <= ABSENT, "{longest:?}");
        tokio::time::advance(ABSENT * 2).await;
        let later = (0..1_000).map(|_| backoff.next_absent()).max().unwrap_or_default();
        assert!(later > ABSENT && later <= Duration::from_secs(60), "{later:?}");
        // One who answers, and refuses, is asked as if it had been there all the time.
        backoff.answered();
        assert!(backoff.next() <= Duration::from_secs(1));
    }
}
