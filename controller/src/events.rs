//! Kubernetes Events: what was done, where `kubectl describe` shows it.
//!
//! *Guarantees*: nobody waits for an event, and no flood of them reaches the API server: what is too
//! much is dropped and counted. *Caveats*: Kubernetes keeps events for an hour; the action log is
//! what lasts.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Events that wait to be sent.
const WAITING: usize = 256;
/// Events that are sent within one [`WINDOW`].
const PER_WINDOW: u32 = 60;
const WINDOW: Duration = Duration::from_secs(60);
/// Bytes of a note, as the API server bounds it.
const MAX_NOTE: usize = 1024;
/// Characters of an action, as the API server bounds it.
const MAX_ACTION: usize = 128;

/// Where events are handed in; cheap to clone. Its task ends with the last handle.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<(Event, ObjectReference)>,
    dropped: Arc<AtomicU64>,
}

impl Events {
    /// Starts the recorder. `instance` names this process: its pod.
    pub fn new(client: Client, instance: &str) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        let dropped = Arc::new(AtomicU64::new(0));
        let reporter = Reporter { controller: "tasuki".to_owned(), instance: Some(instance.to_owned()) };
        tokio::spawn(send(Recorder::new(client, reporter), waiting, dropped.clone()));
        Self { queue, dropped }
    }

    /// Something was done to `about`. `reason` is one word such as `RolloutStarted`, `note` a sentence.
    pub fn action(&self, about: ObjectReference, reason: &str, note: &str) {
        self.put(EventType::Normal, about, reason, note);
    }

    /// Something about `about` needs a person.
    pub fn warning(&self, about: ObjectReference, reason: &str, note: &str) {
        self.put(EventType::Warning, about, reason, note);
    }

    /// Events that were dropped because there were too many.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn put(&self, kind: EventType, about: ObjectReference, reason: &str, note: &str) {
        let reason: String = reason.chars().take(128).collect();
        let end = (0..=note.len().min(MAX_NOTE)).rev().find(|end| note.is_char_boundary(*end)).unwrap_or_default();
        // What repeats becomes one event with a count, by its action and not by its note: another note would be lost.
        let action: String = if note.is_empty() { &reason } else { note }.chars().take(MAX_ACTION).collect();
        let note = Some(note[..end].to_owned());
        let event = Event { type_: kind, action, reason, note, secondary: None };
        if self.queue.try_send((event, about)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One of our own objects. `kubectl describe` finds its events by `uid`.
pub fn about(kind: &str, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(tasuki_api::desired::API_VERSION.to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()).filter(|uid| !uid.is_empty()),
        ..ObjectReference::default()
    }
}

async fn send(recorder: Recorder, mut waiting: mpsc::Receiver<(Event, ObjectReference)>, dropped: Arc<AtomicU64>) {
    let (mut begun, mut sent) = (Instant::now(), 0);
    while let Some((event, about)) = waiting.recv().await {
        if begun.elapsed() >= WINDOW {
            (begun, sent) = (Instant::now(), 0);
        }
        if sent >= PER_WINDOW {
            dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        sent += 1;
        if let Err(error) = recorder.publish(&event, &about).await {
            dropped.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(reason = event.reason, %error, "an event was not recorded");
        }
    }
}

#[cfg(test)]
mod tests;
