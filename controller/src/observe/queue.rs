//! The queue: long polls, each body handed on before it is deleted, no body ever in the way of the
//! next.

use super::event::{Follow, Parsed, parse};
use crate::scope::{QueueId, words};
use aws_sdk_sqs::error::ProvideErrorMetadata;
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, Message};
use backon::{BackoffBuilder, ExponentialBuilder};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tasuki_core::fleet::{Change, ScopeId};
use tokio::sync::mpsc;

/// Seconds that an empty poll waits: SQS's longest.
const WAIT: i32 = 20;
/// Messages a poll: SQS's most.
const BATCH: i32 = 10;

/// What a queue has brought since start.
#[derive(Debug, Default)]
pub struct QueueCounters {
    /// Bodies received.
    pub received: AtomicU64,
    /// Of these, events that became a change or a read.
    pub used: AtomicU64,
    /// Events of types that say nothing to Tasuki.
    pub ignored: AtomicU64,
    /// Bodies that are no usable event; each is in the log at debug.
    pub unusable: AtomicU64,
    /// Events of accounts or Regions that this queue does not serve.
    pub foreign: AtomicU64,
    /// Reads that were not asked for because too many waited.
    pub dropped_reads: AtomicU64,
    /// Polls that failed.
    pub failed_polls: AtomicU64,
    /// When the last event of each scope was taken.
    last: Mutex<BTreeMap<ScopeId, Timestamp>>,
}

impl QueueCounters {
    /// When the last event of this scope was taken.
    pub fn last_event(&self, scope: &ScopeId) -> Option<Timestamp> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).get(scope).copied()
    }
}

/// One queue being read.
pub(super) struct Poller {
    pub(super) client: aws_sdk_sqs::Client,
    pub(super) queue: QueueId,
    /// The scopes that it serves, and where reads for them are asked for.
    pub(super) scopes: BTreeMap<ScopeId, mpsc::Sender<Follow>>,
    pub(super) changes: mpsc::Sender<Change>,
    pub(super) counters: std::sync::Arc<QueueCounters>,
}

impl Poller {
    /// Polls until nobody takes changes any more; dropping the future stops it at any time.
    pub(super) async fn run(self) {
        let delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_secs(1))
            .with_max_delay(Duration::from_secs(60))
            .without_max_times()
            .with_jitter();
        let mut delay = delays.build();
        loop {
            let poll = self.client.receive_message().queue_url(&*self.queue.url);
            match poll.max_number_of_messages(BATCH).wait_time_seconds(WAIT).send().await {
                Ok(output) => {
                    delay = delays.build();
                    let messages = output.messages.unwrap_or_default();
                    for message in &messages {
                        if self.take(message.body().unwrap_or_default()).await.is_err() {
                            return;
                        }
                    }
                    self.delete(&messages).await;
                }
                Err(error) => {
                    self.counters.failed_polls.fetch_add(1, Ordering::Relaxed);
                    let words = words(&error);
                    tracing::warn!(queue = %self.queue.url, error = %words, "queue cannot be polled; sweeps go on");
                    if error.code().is_some_and(|code| code.contains("AccessDenied"))
                        && self.denied(&words).await.is_err()
                    {
                        return;
                    }
                    tokio::time::sleep(delay.next().unwrap_or(Duration::from_secs(60))).await;
                }
            }
        }
    }

    /// Hands one body on. Fails only when nobody takes changes any more.
    async fn take(&self, body: &str) -> Result<(), mpsc::error::SendError<Change>> {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        count(&self.counters.received);
        let Parsed { scope, change, follow } = match parse(body) {
            Ok(parsed) => parsed,
            Err(error) => {
                count(&self.counters.unusable);
                tracing::debug!(queue = %self.queue.url, %error, body, "body is no usable event");
                return Ok(());
            }
        };
        let Some(reads) = self.scopes.get(&scope) else {
            count(&self.counters.foreign);
            tracing::debug!(queue = %self.queue.url, %scope, "event of a scope that no AwsScope with this queue names");
            return Ok(());
        };
        self.counters.last.lock().unwrap_or_else(PoisonError::into_inner).insert(scope, Timestamp::now());
        count(if change.is_none() && follow.is_empty() { &self.counters.ignored } else { &self.counters.used });
        if let Some(change) = change {
            self.changes.send(change).await?;
        }
        for follow in follow {
            if reads.try_send(follow).is_err() {
                count(&self.counters.dropped_reads);
            }
        }
        Ok(())
    }

    async fn delete(&self, messages: &[Message]) {
        let entries: Vec<_> = messages
            .iter()
            .enumerate()
            .filter_map(|(index, message)| {
                let entry = DeleteMessageBatchRequestEntry::builder().id(index.to_string());
                entry.receipt_handle(message.receipt_handle()?).build().ok()
            })
            .collect();
        if entries.is_empty() {
            return;
        }
        let call = self.client.delete_message_batch().queue_url(&*self.queue.url).set_entries(Some(entries));
        // What is not deleted comes again, and an event twice changes nothing.
        match call.send().await {
            Ok(output) if output.failed().is_empty() => {}
            Ok(output) => {
                tracing::debug!(queue = %self.queue.url, failed = output.failed().len(), "messages come again")
            }
            Err(error) => {
                tracing::warn!(queue = %self.queue.url, error = %words(&error), "messages come again");
            }
        }
    }

    async fn denied(&self, words: &str) -> Result<(), mpsc::error::SendError<Change>> {
        for scope in self.scopes.keys() {
            let detail = format!("the queue {} cannot be read: {words}", self.queue.url);
            let api = "sqs:ReceiveMessage".to_owned();
            self.changes.send(Change::Denied { scope: scope.clone(), api, detail }).await?;
        }
        Ok(())
    }
}
