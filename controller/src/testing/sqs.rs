//! A small queue: what was received is invisible until it is deleted or comes again.

use super::{Answer, Wire};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// A small queue. Clones are one.
#[derive(Clone, Default)]
pub struct Sqs {
    state: Arc<Mutex<State>>,
    deleted: Arc<Notify>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(usize, String)>,
    taken: Vec<(usize, String)>,
    deleted: usize,
    next: usize,
    /// Polls that are answered with this before any succeeds.
    refusals: VecDeque<(&'static str, &'static str)>,
}

impl Sqs {
    /// Puts a body into the queue.
    pub fn send(&self, body: &str) {
        let mut state = self.state.lock().unwrap();
        let id = state.next;
        state.next += 1;
        state.waiting.push_back((id, body.to_owned()));
    }
    /// The next poll is answered with this error.
    pub fn refuse(&self, code: &'static str, words: &'static str) {
        self.state.lock().unwrap().refusals.push_back((code, words));
    }
    /// Waits until so many messages were deleted.
    pub async fn deleted(&self, count: usize) {
        loop {
            let changed = self.deleted.notified();
            if self.state.lock().unwrap().deleted >= count {
                return;
            }
            changed.await;
        }
    }
    /// Messages that are still there.
    pub fn left(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.waiting.len() + state.taken.len()
    }

    /// A wire to it; whatever is no SQS operation goes to `ecs`.
    pub fn wire(&self, ecs: Wire) -> Wire {
        let sqs = self.clone();
        Wire::new(move |operation, body| sqs.answer(operation, body).unwrap_or_else(|| ecs.pass(operation, body)))
    }

    fn answer(&self, operation: &str, body: &Value) -> Option<Answer> {
        let mut state = self.state.lock().unwrap();
        match operation {
            "ReceiveMessage" => {
                if let Some((code, words)) = state.refusals.pop_front() {
                    return Some(Answer::Error(code, words.to_owned()));
                }
                assert_eq!((&body["MaxNumberOfMessages"], &body["WaitTimeSeconds"]), (&json!(10), &json!(20)));
                let count = state.waiting.len().min(10);
                let batch: Vec<_> = state.waiting.drain(..count).collect();
                let message = |(id, body): &(usize, String)| json!({"MessageId": id.to_string(), "ReceiptHandle": id.to_string(), "Body": body});
                let messages: Vec<_> = batch.iter().map(message).collect();
                state.taken.extend(batch);
                Some(Answer::Ok(json!({ "Messages": messages })))
            }
            "DeleteMessageBatch" => {
                let entries = body["Entries"].as_array().unwrap();
                assert!(entries.len() <= 10);
                for entry in entries {
                    let id: usize = entry["ReceiptHandle"].as_str().unwrap().parse().unwrap();
                    state.taken.retain(|(taken, _)| *taken != id);
                    state.deleted += 1;
                }
                self.deleted.notify_waiters();
                let done: Vec<_> = entries.iter().map(|entry| json!({"Id": entry["Id"]})).collect();
                Some(Answer::Ok(json!({"Successful": done, "Failed": []})))
            }
            _ => None,
        }
    }
}
