//! One queue: its messages and who may see them when.
//!
//! ```text
//!  sent ─ delay ─▶ visible ─ receive ─▶ in flight ─ delete ─▶ gone
//!                    ▲                     │
//!                    └── time-out, or ChangeMessageVisibility 0 ──┘  after maxReceiveCount: to the dead-letter queue
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use md5::{Digest, Md5};
use serde_json::{Map, Value, json};

use crate::clock::later;

/// Messages held in one queue. SQS has no such limit; a test that never reads must not fill the machine. The oldest go first.
pub const MAX_MESSAGES: usize = 200_000;

/// A message.
#[derive(Debug, Clone)]
pub struct Message {
    /// UUID.
    pub id: String,
    /// Body.
    pub body: String,
    /// `MessageAttributes` as sent.
    pub attributes: Option<Value>,
    /// Who sent it (account id or principal id).
    pub sender: String,
    /// When.
    pub sent: Timestamp,
    /// Not shown before.
    pub visible_at: Timestamp,
    /// Times that it was received.
    pub receives: u32,
    /// When it was first received.
    pub first_received: Option<Timestamp>,
    /// Handle of the last receive.
    pub receipt: Option<String>,
}

/// A queue.
#[derive(Debug, Clone)]
pub struct Queue {
    /// Name.
    pub name: String,
    /// ARN.
    pub arn: String,
    /// Attributes as set (strings).
    pub attributes: BTreeMap<String, String>,
    /// Tags.
    pub tags: Map<String, Value>,
    /// When it was created.
    pub created: Timestamp,
    /// Messages dropped because the queue was full.
    pub evicted: u64,
    messages: VecDeque<Message>,
}

impl Queue {
    /// An empty queue.
    pub fn new(name: &str, arn: String, created: Timestamp) -> Self {
        let (attributes, tags) = (BTreeMap::new(), Map::new());
        Self { name: name.into(), arn, attributes, tags, created, evicted: 0, messages: VecDeque::new() }
    }

    /// A numeric attribute, or SQS's default.
    pub fn number(&self, name: &str, default: u64) -> u64 {
        self.attributes.get(name).and_then(|v| v.parse().ok()).unwrap_or(default)
    }

    /// Adds a message.
    pub fn push(&mut self, message: Message) {
        if self.messages.len() >= MAX_MESSAGES {
            self.messages.pop_front();
            self.evicted += 1;
        }
        self.messages.push_back(message);
    }

    /// Takes up to `most` visible messages into flight. Messages over their receive count are returned apart, for the
    /// dead-letter queue.
    pub fn receive(
        &mut self,
        most: usize,
        visibility: Duration,
        now: Timestamp,
        mut handle: impl FnMut() -> String,
    ) -> (Vec<Message>, Vec<Message>) {
        let retention = Duration::from_secs(self.number("MessageRetentionPeriod", 345_600));
        self.messages.retain(|m| later(m.sent, retention) > now);
        let most_receives = self.redrive().map(|(_, count)| count);
        let mut dead = Vec::new();
        if let Some(limit) = most_receives {
            let (over, keep) = std::mem::take(&mut self.messages)
                .into_iter()
                .partition(|m| m.visible_at <= now && m.receives >= limit);
            self.messages = keep;
            dead = Vec::from(over);
        }
        let visible = self.messages.iter_mut().filter(|m| m.visible_at <= now).take(most);
        let taken = visible
            .map(|m| {
                m.receives += 1;
                m.first_received.get_or_insert(now);
                m.visible_at = later(now, visibility);
                m.receipt = Some(handle());
                m.clone()
            })
            .collect();
        (taken, dead)
    }

    /// Dead-letter queue ARN and receive limit.
    pub fn redrive(&self) -> Option<(String, u32)> {
        let policy: Value = serde_json::from_str(self.attributes.get("RedrivePolicy")?).ok()?;
        let count = policy.get("maxReceiveCount")?;
        let count = count.as_u64().or_else(|| count.as_str()?.parse().ok())?;
        Some((policy.get("deadLetterTargetArn")?.as_str()?.to_owned(), u32::try_from(count).ok()?))
    }

    /// Deletes by handle. True also when it is already gone; false for a handle that was never given.
    pub fn delete(&mut self, receipt: &str) -> bool {
        self.messages.retain(|m| m.receipt.as_deref() != Some(receipt));
        receipt.starts_with("AQEB")
    }

    /// The message in flight with that handle.
    pub fn by_receipt(&mut self, receipt: &str) -> Option<&mut Message> {
        self.messages.iter_mut().find(|m| m.receipt.as_deref() == Some(receipt))
    }

    /// Drops every message.
    pub fn purge(&mut self) {
        self.messages.clear();
    }

    /// Visible, in flight, delayed.
    pub fn counts(&self, now: Timestamp) -> (usize, usize, usize) {
        let visible = self.messages.iter().filter(|m| m.visible_at <= now).count();
        let delayed = self.messages.iter().filter(|m| m.visible_at > now && m.receipt.is_none()).count();
        (visible, self.messages.len() - visible - delayed, delayed)
    }
}

impl Message {
    /// The message as ReceiveMessage shows it.
    pub fn view(&self, system: &[String], custom: &[String]) -> Value {
        let mut view = json!({
            "MessageId": self.id,
            "ReceiptHandle": self.receipt,
            "MD5OfBody": md5_hex(self.body.as_bytes()),
            "Body": self.body,
        });
        let wants = |name: &str| system.iter().any(|s| s == "All" || s == name);
        let mut attributes = Map::new();
        for (name, value) in [
            ("SenderId", self.sender.clone()),
            ("SentTimestamp", self.sent.as_millisecond().to_string()),
            ("ApproximateReceiveCount", self.receives.to_string()),
            ("ApproximateFirstReceiveTimestamp", self.first_received.unwrap_or(self.sent).as_millisecond().to_string()),
        ] {
            if wants(name) {
                attributes.insert(name.into(), value.into());
            }
        }
        if !attributes.is_empty() {
            view["Attributes"] = Value::Object(attributes);
        }
        let asked = |name: &str| {
            let fits = |c: &String| {
                c == "All" || c == ".*" || c == name || c.strip_suffix(".*").is_some_and(|p| name.starts_with(p))
            };
            custom.iter().any(fits)
        };
        if let Some(map) = self.attributes.as_ref().and_then(Value::as_object) {
            let chosen: Map<String, Value> =
                map.iter().filter(|(n, _)| asked(n)).map(|(n, v)| (n.clone(), v.clone())).collect();
            if !chosen.is_empty() {
                view["MD5OfMessageAttributes"] = md5_of_attributes(&chosen).into();
                view["MessageAttributes"] = Value::Object(chosen);
            }
        }
        view
    }
}

/// MD5 in hex, as SQS shows digests.
pub fn md5_hex(data: &[u8]) -> String {
    hex::encode(Md5::digest(data))
}

/// The digest of message attributes, by the algorithm in the SQS developer guide: names in order; name, type and value
/// each with its length in front, and one byte before the value that says text (1) or binary (2).
pub fn md5_of_attributes(attributes: &Map<String, Value>) -> String {
    use base64::Engine;
    fn put(data: &mut Vec<u8>, bytes: &[u8]) {
        data.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        data.extend(bytes);
    }
    let mut sorted: Vec<(&String, &Value)> = attributes.iter().collect();
    sorted.sort_by_key(|(name, _)| *name);
    let mut data = Vec::new();
    for (name, attribute) in sorted {
        let text = |member: &str| attribute.get(member).and_then(Value::as_str);
        put(&mut data, name.as_bytes());
        put(&mut data, text("DataType").unwrap_or_default().as_bytes());
        match text("BinaryValue") {
            Some(encoded) => {
                data.push(2);
                put(&mut data, &base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default());
            }
            None => {
                data.push(1);
                put(&mut data, text("StringValue").unwrap_or_default().as_bytes());
            }
        }
    }
    md5_hex(&data)
}
