//! Faults by seed: what goes wrong between bus and queue and at the API, as often as a test asks for.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use serde::Deserialize;

use crate::sqs::policy::glob;

/// Probabilities from 0 to 1, and denials. Nothing goes wrong by default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Faults {
    /// An event is delivered twice.
    pub duplicate: f64,
    /// An event is lost without a trace (EventBridge does not do this; a consumer must still survive it).
    pub drop: f64,
    /// An event is held back so that later ones overtake it.
    pub reorder: f64,
    /// Longest hold-back, seconds (default 30).
    pub delay_seconds: Option<f64>,
    /// An API call is throttled although its bucket has tokens.
    pub throttle: f64,
    /// Explicit denials.
    pub deny: Vec<Denial>,
}

/// An explicit denial, as a service control policy would have it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denial {
    /// Principal ARN, `*` and `?` allowed.
    pub principal: String,
    /// `service:Action`, `*` and `?` allowed, such as `ecs:Update*`.
    pub action: String,
}

/// How many faults were done, for assertions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Events delivered twice.
    pub duplicated: u64,
    /// Events lost.
    pub dropped: u64,
    /// Events held back.
    pub delayed: u64,
    /// Calls throttled by chance.
    pub throttled: u64,
    /// Calls denied.
    pub denied: u64,
}

impl Faults {
    /// When the copies of one event arrive after it was put on the bus; empty when it is lost.
    pub fn arrivals(&self, rng: &mut StdRng, counts: &mut FaultCounts) -> Vec<Duration> {
        if hit(rng, self.drop) {
            counts.dropped += 1;
            return Vec::new();
        }
        let mut copies = 1;
        if hit(rng, self.duplicate) {
            counts.duplicated += 1;
            copies = 2;
        }
        let longest = self.delay_seconds.unwrap_or(30.0).clamp(0.0, 86_400.0);
        (0..copies)
            .map(|_| {
                if hit(rng, self.reorder) {
                    counts.delayed += 1;
                    Duration::from_secs_f64(longest * rng.random::<f64>())
                } else {
                    Duration::ZERO
                }
            })
            .collect()
    }

    /// True when this call is throttled by chance.
    pub fn throttles(&self, rng: &mut StdRng, counts: &mut FaultCounts) -> bool {
        let hit = hit(rng, self.throttle);
        counts.throttled += u64::from(hit);
        hit
    }

    /// True when the call is explicitly denied.
    pub fn denies(&self, principal: &str, action: &str, counts: &mut FaultCounts) -> bool {
        let denied = self.deny.iter().any(|d| glob(&d.principal, principal) && glob(&d.action, action));
        counts.denied += u64::from(denied);
        denied
    }
}

/// Draws only when there is a chance, so that switching one fault on does not move the others.
fn hit(rng: &mut StdRng, probability: f64) -> bool {
    probability > 0.0 && rng.random::<f64>() < probability
}
