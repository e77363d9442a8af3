//! ReceiveMessage with long polling, on the cloud's clock.

use std::time::Duration;

use serde_json::Value;

use crate::auth::sigv4::Verified;
use crate::clock::later;
use crate::cloud::Cloud;
use crate::error::{ApiError, ApiResult};
use crate::world::Service;

/// Answers at once when there is a message, else waits for one up to `WaitTimeSeconds` (or the queue's own setting).
pub async fn receive(cloud: &Cloud, who: &Verified, input: Value, host: &str) -> ApiResult {
    let asked = input.get("WaitTimeSeconds").and_then(Value::as_u64);
    let wait = asked.unwrap_or_else(|| queue_wait(cloud, who, &input));
    if wait > 20 {
        let message = format!(
            "Value {wait} for parameter WaitTimeSeconds is invalid. Reason: Must be >= 0 and <= 20, if provided."
        );
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    let deadline = later(cloud.now(), Duration::from_secs(wait));
    loop {
        let changed = cloud.changed().notified();
        tokio::pin!(changed);
        // Listen before looking, so that a message between the two is not missed.
        changed.as_mut().enable();
        let answer = {
            let mut world = cloud.world();
            world.call(who, Service::Sqs, "ReceiveMessage", input.clone(), host)?
        };
        if answer.get("Messages").is_some() || cloud.now() >= deadline {
            return Ok(answer);
        }
        if cloud.world().clock.is_virtual() {
            changed.await;
        } else {
            let left = Duration::try_from(deadline.duration_since(cloud.now())).unwrap_or_default();
            // The time-out only ends the wait; the loop looks once more and answers.
            let _ = tokio::time::timeout(left, changed).await;
        }
    }
}

fn queue_wait(cloud: &Cloud, who: &Verified, input: &Value) -> u64 {
    let url = input.get("QueueUrl").and_then(Value::as_str).unwrap_or_default();
    let place = crate::effect::Place { account: who.caller.account.clone(), region: who.region.clone() };
    let world = cloud.world();
    let queue = world.places.get(&place).and_then(|r| r.queues.get(url.rsplit('/').next().unwrap_or_default()));
    queue.map_or(0, |q| q.number("ReceiveMessageWaitTimeSeconds", 0))
}
