//! The one clock of the cloud: real, or virtual and moved by tests.
//!
//! Everything that has a time (task lifecycles, visibility time-outs, throttle buckets, session expiry) reads it here.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Tells the time. Clones share one virtual time.
#[derive(Debug, Clone)]
pub struct Clock(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Real,
    Virtual(Arc<Mutex<Timestamp>>),
}

impl Clock {
    /// The machine's wall clock.
    pub fn real() -> Self {
        Self(Kind::Real)
    }

    /// Stands still at `start` until [`Clock::set`] moves it.
    pub fn virtual_at(start: Timestamp) -> Self {
        Self(Kind::Virtual(Arc::new(Mutex::new(start))))
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Kind::Real => Timestamp::now(),
            Kind::Virtual(at) => *at.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// True when only tests move it.
    pub fn is_virtual(&self) -> bool {
        matches!(self.0, Kind::Virtual(_))
    }

    /// Moves virtual time forward to `to`; never backwards, and without effect on the real clock.
    pub fn set(&self, to: Timestamp) {
        if let Kind::Virtual(at) = &self.0 {
            let mut at = at.lock().unwrap_or_else(PoisonError::into_inner);
            *at = (*at).max(to);
        }
    }
}

/// `at + by`, held at the end of time instead of overflowing.
pub fn later(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| at.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

/// Seconds from `from` to `to`; 0 when `to` is earlier.
pub fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

/// Epoch seconds with milliseconds, as awsJson timestamps are written.
pub fn epoch(at: Timestamp) -> serde_json::Value {
    serde_json::json!(at.as_millisecond() as f64 / 1000.0)
}

/// ISO 8601 with milliseconds and `Z`, as times in ECS events and metadata are written.
pub fn iso(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// ISO 8601 in whole seconds, as an EventBridge envelope's `time` is written.
pub fn iso_seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_time_stands_still_and_never_goes_back() {
        let start: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let clock = Clock::virtual_at(start);
        let twin = clock.clone();
        clock.set(later(start, Duration::from_millis(1_500)));
        assert_eq!(iso(twin.now()), "2026-11-24T12:00:01.500Z");
        clock.set(start);
        assert_eq!(iso_seconds(twin.now()), "2026-11-24T12:00:01Z");
        assert_eq!(epoch(start), serde_json::json!(1_795_521_600.0));
    }
}
