//! One event on its way to one target.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::clock::iso_seconds;
use crate::effect::{Event, Place};

/// Longest pause between two tries.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// An event for a target, with the count of tries so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// ARN of the rule that matched.
    pub rule_arn: String,
    /// Queue ARN.
    pub target_arn: String,
    /// Role that EventBridge takes for the target.
    pub role_arn: Option<String>,
    /// Queue ARN for what cannot be delivered.
    pub dead_letter_arn: Option<String>,
    /// `MaximumRetryAttempts`.
    pub max_attempts: u32,
    /// `MaximumEventAgeInSeconds`.
    pub max_age: Duration,
    /// Message body.
    pub body: String,
    /// Tries so far.
    pub attempt: u32,
    /// When the event came onto the bus.
    pub since: Timestamp,
}

impl Delivery {
    /// Pause before the next try.
    pub fn pause(&self, first: Duration) -> Duration {
        first.saturating_mul(1 << self.attempt.min(16)).min(MAX_PAUSE)
    }
}

/// The event in its envelope.
pub fn envelope(event: &Event, place: &Place, id: &str, now: Timestamp) -> Value {
    json!({
        "version": "0",
        "id": id,
        "detail-type": event.detail_type,
        "source": event.source,
        "account": place.account,
        "time": iso_seconds(now),
        "region": place.region,
        "resources": event.resources,
        "detail": event.detail,
    })
}
