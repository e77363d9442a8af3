//! The SQS operations (JSON protocol).

use std::time::Duration;

use indexmap::IndexMap;
use rand::Rng;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::queue::{Message, Queue, md5_hex, md5_of_attributes};
use crate::clock::later;
use crate::effect::{Ctx, Timer};
use crate::error::{ApiError, ApiResult, input};

/// Largest message (1 MiB since 2025).
const MAX_BYTES: usize = 1024 * 1024;

/// The queues of an account and Region.
#[derive(Debug, Default)]
pub struct Queues {
    queues: IndexMap<String, Queue>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct QueueInput {
    queue_name: Option<String>,
    queue_url: Option<String>,
    attributes: Option<Map<String, Value>>,
    #[serde(rename = "tags")]
    create_tags: Option<Map<String, Value>>,
    tags: Option<Map<String, Value>>,
    #[serde(default)]
    tag_keys: Vec<String>,
    #[serde(default)]
    attribute_names: Vec<String>,
    #[serde(default)]
    message_system_attribute_names: Vec<String>,
    #[serde(default)]
    message_attribute_names: Vec<String>,
    queue_name_prefix: Option<String>,
    next_token: Option<String>,
    max_results: Option<usize>,
    max_number_of_messages: Option<usize>,
    visibility_timeout: Option<u64>,
    receipt_handle: Option<String>,
    #[serde(default)]
    entries: Vec<EntryInput>,
    #[serde(flatten)]
    message: MessageInput,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct MessageInput {
    message_body: Option<String>,
    message_attributes: Option<Value>,
    delay_seconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EntryInput {
    id: String,
    receipt_handle: Option<String>,
    visibility_timeout: Option<u64>,
    #[serde(flatten)]
    message: MessageInput,
}

fn no_queue() -> ApiError {
    ApiError::new("QueueDoesNotExist", "The specified queue does not exist.")
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new("InvalidParameterValue", message)
}

impl Queues {
    /// The queue with this name.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Queue> {
        self.queues.get_mut(name)
    }

    /// The queue with this name.
    pub fn get(&self, name: &str) -> Option<&Queue> {
        self.queues.get(name)
    }

    /// Runs an SQS operation. `host` is where the client reached the cloud, for queue URLs. `None`: no such operation.
    pub fn call(&mut self, ctx: &mut Ctx<'_>, operation: &str, value: Value, host: &str) -> Option<ApiResult> {
        let request: QueueInput = match input(value) {
            Ok(request) => request,
            Err(error) => return Some(Err(error)),
        };
        let url = |ctx: &Ctx<'_>, name: &str| format!("http://{host}/{}/{name}", ctx.place.account);
        let answer = match operation {
            "CreateQueue" => self.create(ctx, request).map(|name| json!({"QueueUrl": url(ctx, &name)})),
            "GetQueueUrl" => {
                let name = request.queue_name.unwrap_or_default();
                self.queues.get(&name).map(|_| json!({"QueueUrl": url(ctx, &name)})).ok_or_else(no_queue)
            }
            "ListQueues" => self.list(ctx, &request, &url),
            "DeleteQueue" => self.of(&request).map(|q| q.name.clone()).map(|name| {
                self.queues.shift_remove(&name);
                json!({})
            }),
            "PurgeQueue" => self.of(&request).map(|queue| {
                queue.purge();
                json!({})
            }),
            "GetQueueAttributes" => self.get_attributes(ctx, &request),
            "SetQueueAttributes" => self.set_attributes(&request),
            "TagQueue" => self.of(&request).map(|queue| {
                queue.tags.extend(request.tags.clone().unwrap_or_default());
                json!({})
            }),
            "UntagQueue" => self.of(&request).map(|queue| {
                queue.tags.retain(|key, _| !request.tag_keys.contains(key));
                json!({})
            }),
            "ListQueueTags" => self.of(&request).map(|queue| json!({"Tags": queue.tags})),
            "SendMessage" => self.of(&request).and_then(|queue| send(queue, ctx, &request.message)),
            "SendMessageBatch" => self.batch(&request, |queue, entry| send(queue, ctx, &entry.message)),
            "ReceiveMessage" => self.receive(ctx, &request),
            "DeleteMessage" => self.of(&request).and_then(|queue| delete(queue, request.receipt_handle.as_deref())),
            "DeleteMessageBatch" => self.batch(&request, |queue, entry| delete(queue, entry.receipt_handle.as_deref())),
            "ChangeMessageVisibility" => self.of(&request).and_then(|queue| {
                visibility(queue, ctx, request.receipt_handle.as_deref(), request.visibility_timeout)
            }),
            "ChangeMessageVisibilityBatch" => self.batch(&request, |queue, entry| {
                visibility(queue, ctx, entry.receipt_handle.as_deref(), entry.visibility_timeout)
            }),
            _ => return None,
        };
        Some(answer)
    }

    fn of(&mut self, request: &QueueInput) -> ApiResult<&mut Queue> {
        let url = request.queue_url.as_deref().unwrap_or_default();
        let name = url.rsplit('/').next().unwrap_or_default();
        self.queues.get_mut(name).ok_or_else(no_queue)
    }

    fn create(&mut self, ctx: &mut Ctx<'_>, request: QueueInput) -> ApiResult<String> {
        let name = request.queue_name.unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.ends_with(".fifo") {
            return Err(invalid("FIFO queues are not offered by this local cloud."));
        }
        if name.is_empty() || name.len() > 80 || !name.chars().all(plain) {
            return Err(invalid(
                "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length",
            ));
        }
        let attributes = checked_attributes(request.attributes.as_ref())?;
        if let Some(existing) = self.queues.get(&name) {
            if attributes.iter().any(|(key, value)| existing.attributes.get(key).is_some_and(|old| old != value)) {
                let message = "A queue already exists with the same name and a different value for an attribute.";
                return Err(ApiError::new("QueueNameExists", message));
            }
            return Ok(name);
        }
        let mut queue = Queue::new(&name, ctx.place.arn("sqs", &name), ctx.now);
        queue.attributes.extend(attributes);
        queue.tags = request.create_tags.or(request.tags).unwrap_or_default();
        self.queues.insert(name.clone(), queue);
        Ok(name)
    }

    fn list(&self, ctx: &Ctx<'_>, request: &QueueInput, url: &dyn Fn(&Ctx<'_>, &str) -> String) -> ApiResult {
        let prefix = request.queue_name_prefix.clone().unwrap_or_default();
        let names: Vec<&String> = self.queues.keys().filter(|name| name.starts_with(&prefix)).collect();
        let from = match &request.next_token {
            None => 0,
            Some(token) => token.parse::<usize>().map_err(|_| invalid("Invalid NextToken."))?,
        };
        let size = request.max_results.unwrap_or(1000).clamp(1, 1000);
        let page: Vec<String> = names.iter().skip(from).take(size).map(|name| url(ctx, name)).collect();
        let mut answer = json!({"QueueUrls": page});
        if request.max_results.is_some() && from.saturating_add(size) < names.len() {
            answer["NextToken"] = (from + size).to_string().into();
        }
        Ok(answer)
    }

    fn get_attributes(&mut self, ctx: &Ctx<'_>, request: &QueueInput) -> ApiResult {
        let queue = self.of(request)?;
        let (visible, in_flight, delayed) = queue.counts(ctx.now);
        let mut all: Map<String, Value> = Map::new();
        for (name, default) in [
            ("VisibilityTimeout", 30),
            ("MaximumMessageSize", 1_048_576),
            ("MessageRetentionPeriod", 345_600),
            ("DelaySeconds", 0),
            ("ReceiveMessageWaitTimeSeconds", 0),
        ] {
            all.insert(name.into(), queue.number(name, default).to_string().into());
        }
        all.insert("QueueArn".into(), queue.arn.clone().into());
        all.insert("CreatedTimestamp".into(), queue.created.as_second().to_string().into());
        all.insert("LastModifiedTimestamp".into(), queue.created.as_second().to_string().into());
        all.insert("ApproximateNumberOfMessages".into(), visible.to_string().into());
        all.insert("ApproximateNumberOfMessagesNotVisible".into(), in_flight.to_string().into());
        all.insert("ApproximateNumberOfMessagesDelayed".into(), delayed.to_string().into());
        all.insert("SqsManagedSseEnabled".into(), "true".into());
        all.extend(queue.attributes.iter().map(|(k, v)| (k.clone(), v.clone().into())));
        let asked = &request.attribute_names;
        all.retain(|name, _| asked.iter().any(|a| a == "All" || a == name));
        Ok(if all.is_empty() { json!({}) } else { json!({"Attributes": all}) })
    }

    fn set_attributes(&mut self, request: &QueueInput) -> ApiResult {
        let attributes = checked_attributes(request.attributes.as_ref())?;
        let queue = self.of(request)?;
        for (name, value) in attributes {
            // An empty policy takes the old one away.
            if value.is_empty() {
                queue.attributes.remove(&name);
            } else {
                queue.attributes.insert(name, value);
            }
        }
        Ok(json!({}))
    }

    fn receive(&mut self, ctx: &mut Ctx<'_>, request: &QueueInput) -> ApiResult {
        let most = request.max_number_of_messages.unwrap_or(1);
        if !(1..=10).contains(&most) {
            return Err(invalid(format!(
                "Value {most} for parameter MaxNumberOfMessages is invalid. Reason: Must be between 1 and 10, if provided."
            )));
        }
        let queue = self.of(request)?;
        let timeout =
            Duration::from_secs(request.visibility_timeout.unwrap_or_else(|| queue.number("VisibilityTimeout", 30)));
        let rng = &mut *ctx.rng;
        let (taken, dead) =
            queue.receive(most, timeout, ctx.now, || format!("AQEB{}", hex::encode(rng.random::<[u8; 32]>())));
        let target = queue.redrive().and_then(|(arn, _)| Some(arn.rsplit(':').next()?.to_owned()));
        if let Some(dead_letters) = target.and_then(|name| self.queues.get_mut(&name)) {
            for mut message in dead {
                message.receipt = None;
                dead_letters.push(message);
            }
        }
        if taken.is_empty() {
            return Ok(json!({}));
        }
        ctx.after(timeout, Timer::QueueWake);
        let mut system = request.attribute_names.clone();
        system.extend(request.message_system_attribute_names.iter().cloned());
        let views: Vec<Value> = taken.iter().map(|m| m.view(&system, &request.message_attribute_names)).collect();
        Ok(json!({"Messages": views}))
    }

    fn batch(&mut self, request: &QueueInput, mut one: impl FnMut(&mut Queue, &EntryInput) -> ApiResult) -> ApiResult {
        let queue = self.of(request)?;
        let entries = &request.entries;
        if entries.is_empty() {
            return Err(ApiError::new("EmptyBatchRequest", "There should be at least one entry in the request."));
        }
        if entries.len() > 10 {
            return Err(ApiError::new("TooManyEntriesInBatchRequest", "Maximum number of entries per request are 10."));
        }
        let twice = entries.iter().enumerate().any(|(at, e)| entries.iter().take(at).any(|other| other.id == e.id));
        if twice {
            return Err(ApiError::new(
                "BatchEntryIdsNotDistinct",
                "Two or more batch entries in the request have the same Id.",
            ));
        }
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for entry in entries {
            match one(queue, entry) {
                Ok(mut answer) => {
                    answer["Id"] = entry.id.clone().into();
                    good.push(answer);
                }
                Err(error) => {
                    bad.push(json!({"Id": entry.id, "SenderFault": true, "Code": error.code, "Message": error.message}))
                }
            }
        }
        Ok(json!({"Successful": good, "Failed": bad}))
    }

    /// A message from inside the cloud, such as an event; false when the queue is not there.
    pub fn put(&mut self, ctx: &mut Ctx<'_>, name: &str, body: &str, sender: &str) -> bool {
        let Some(queue) = self.queues.get_mut(name) else { return false };
        put(queue, ctx, body.to_owned(), None, sender, Duration::ZERO);
        true
    }
}

fn checked_attributes(given: Option<&Map<String, Value>>) -> ApiResult<Vec<(String, String)>> {
    const NUMBERS: [(&str, u64, u64); 5] = [
        ("VisibilityTimeout", 0, 43_200),
        ("MessageRetentionPeriod", 60, 1_209_600),
        ("DelaySeconds", 0, 900),
        ("ReceiveMessageWaitTimeSeconds", 0, 20),
        ("MaximumMessageSize", 1024, 1_048_576),
    ];
    const TEXTS: [&str; 6] = [
        "Policy",
        "RedrivePolicy",
        "RedriveAllowPolicy",
        "KmsMasterKeyId",
        "KmsDataKeyReusePeriodSeconds",
        "SqsManagedSseEnabled",
    ];
    let mut out = Vec::new();
    for (name, value) in given.into_iter().flatten() {
        let value = value.as_str().unwrap_or_default().to_owned();
        match NUMBERS.iter().find(|(known, ..)| known == name) {
            Some((_, low, high)) => {
                if !value.parse::<u64>().is_ok_and(|n| (*low..=*high).contains(&n)) {
                    return Err(ApiError::new(
                        "InvalidAttributeValue",
                        format!("Invalid value for the parameter {name}."),
                    ));
                }
            }
            None if TEXTS.contains(&name.as_str()) => {}
            None => return Err(ApiError::new("InvalidAttributeName", format!("Unknown Attribute {name}."))),
        }
        out.push((name.clone(), value));
    }
    Ok(out)
}

fn put(
    queue: &mut Queue,
    ctx: &mut Ctx<'_>,
    body: String,
    attributes: Option<Value>,
    sender: &str,
    delay: Duration,
) -> String {
    let id = ctx.uuid();
    queue.push(Message {
        id: id.clone(),
        body,
        attributes,
        sender: sender.to_owned(),
        sent: ctx.now,
        visible_at: later(ctx.now, delay),
        receives: 0,
        first_received: None,
        receipt: None,
    });
    ctx.after(delay, Timer::QueueWake);
    id
}

fn send(queue: &mut Queue, ctx: &mut Ctx<'_>, message: &MessageInput) -> ApiResult {
    let body = message.message_body.clone().unwrap_or_default();
    if body.is_empty() {
        return Err(ApiError::new("MissingParameter", "The request must contain the parameter MessageBody."));
    }
    if body.len() > MAX_BYTES {
        return Err(invalid("One or more parameters are invalid. Reason: Message must be shorter than 1048576 bytes."));
    }
    let delay = Duration::from_secs(message.delay_seconds.unwrap_or_else(|| queue.number("DelaySeconds", 0)));
    let attributes = message.message_attributes.clone().filter(|a| a.as_object().is_some_and(|m| !m.is_empty()));
    let mut answer = json!({"MD5OfMessageBody": md5_hex(body.as_bytes())});
    if let Some(map) = attributes.as_ref().and_then(Value::as_object) {
        answer["MD5OfMessageAttributes"] = md5_of_attributes(map).into();
    }
    let sender = ctx.place.account.clone();
    answer["MessageId"] = put(queue, ctx, body, attributes, &sender, delay).into();
    Ok(answer)
}

fn delete(queue: &mut Queue, receipt: Option<&str>) -> ApiResult {
    if queue.delete(receipt.unwrap_or_default()) {
        Ok(json!({}))
    } else {
        Err(ApiError::new("ReceiptHandleIsInvalid", "The input receipt handle is invalid."))
    }
}

fn visibility(queue: &mut Queue, ctx: &mut Ctx<'_>, receipt: Option<&str>, seconds: Option<u64>) -> ApiResult {
    let seconds = seconds.unwrap_or(0);
    if seconds > 43_200 {
        return Err(invalid(format!(
            "Value {seconds} for parameter VisibilityTimeout is invalid. Reason: Must be between 0 and 43200."
        )));
    }
    let now = ctx.now;
    let message = queue
        .by_receipt(receipt.unwrap_or_default())
        .filter(|m| m.visible_at > now)
        .ok_or_else(|| ApiError::new("MessageNotInflight", "The message referred to isn't in flight."))?;
    message.visible_at = later(now, Duration::from_secs(seconds));
    ctx.after(Duration::from_secs(seconds), Timer::QueueWake);
    Ok(json!({}))
}
