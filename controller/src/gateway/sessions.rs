//! Sessions: which key speaks for which task, and how far its requests have come.
//!
//! ```text
//!  (none) ──enrol──▶ Live ──a second key enrols──▶ Contended ──the first key is heard──▶ Conflict
//!                     │ ▲                              │                                   │
//!                     │ └── the same key enrols anew ──┘   (three heartbeats of silence:   │
//!                     └── the task stops ──▶ (gone)           the second key takes over)    │
//!                                       a conflict stays on the session until it is gone ◀─┘
//! ```
//!
//! Sessions live in memory: after a restart of the gateway agents enrol anew with the key that is
//! pinned in the store, so nothing that was recorded before can be played back.

use super::directory::Known;
use super::evidence::Address;
use super::limits::Bucket;
use super::refuse::{Code, Refused};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tasuki_api::agent::{AgentKind, signing_text};

/// One enrolled agent.
#[derive(Debug)]
pub struct Session {
    /// Random id.
    pub id: String,
    /// Raw Ed25519 public key.
    pub key: Vec<u8>,
    /// The task as it was known when it enrolled, for when the fleet has forgotten it.
    pub enrolled: Known,
    /// What it may speak for.
    pub kind: AgentKind,
    /// Runtime id of the agent's container.
    pub runtime_id: String,
    /// Whether it came from the task's own address.
    pub address: Address,
    /// Whether the task's role signed, or the pod's token was taken.
    pub signed: bool,
    /// Time between heartbeats.
    pub interval: SignedDuration,
    live: Mutex<Live>,
}

#[derive(Debug)]
struct Live {
    sequence: u64,
    heard: Timestamp,
    contender: Option<Timestamp>,
    conflict: Option<Timestamp>,
    bucket: Bucket,
    refreshed: Option<Instant>,
}

/// What a new session is made of.
pub struct NewSession {
    /// Raw Ed25519 public key.
    pub key: Vec<u8>,
    /// The task.
    pub known: Known,
    /// Runtime id of the agent's container.
    pub runtime_id: String,
    /// From where.
    pub address: Address,
    /// Whether the task's role signed.
    pub signed: bool,
    /// Time between heartbeats.
    pub interval: SignedDuration,
    /// When another key had claimed to be this agent.
    pub conflict: Option<Timestamp>,
}

impl Session {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// ARN of the agent's task.
    pub fn task(&self) -> &str {
        &self.enrolled.task.arn
    }

    /// Task, runtime id, and when it was last heard.
    pub fn heard(&self) -> (String, String, Timestamp) {
        (self.task().to_owned(), self.runtime_id.clone(), self.live().heard)
    }

    /// When a second key claimed to be this agent while this one lives, if ever.
    pub fn conflict(&self) -> Option<Timestamp> {
        self.live().conflict
    }

    /// Whether the fleet may be refreshed for this session again; at most every 10 s.
    pub fn may_refresh(&self, now: Instant) -> bool {
        let mut live = self.live();
        let allowed = live.refreshed.is_none_or(|at| now.saturating_duration_since(at).as_secs() >= 10);
        if allowed {
            live.refreshed = Some(now);
        }
        allowed
    }

    /// Checks a request's signature, then its sequence number; takes both as used.
    pub fn authenticate(
        &self,
        method: &str,
        path: &str,
        sequence: u64,
        body: &[u8],
        signature: &[u8],
        now: Timestamp,
    ) -> Result<(), Refused> {
        let text = signing_text(method, path, &self.id, sequence, &super::policy::sha256_hex(body));
        UnparsedPublicKey::new(&ED25519, &self.key)
            .verify(text.as_bytes(), signature)
            .map_err(|_| Refused::new(Code::SignatureInvalid, "the request's signature does not fit it"))?;
        let mut live = self.live();
        if sequence <= live.sequence {
            let message = format!("sequence {sequence} is not greater than {}; it was used before", live.sequence);
            return Err(Refused::new(Code::SequenceReplayed, message));
        }
        live.sequence = sequence;
        live.heard = live.heard.max(now);
        // Two keys are alive only when the first is heard after the second one's claim: a restarted
        // agent that lost its key never makes this look like an attack.
        if let Some(at) = live.contender.take() {
            live.conflict = Some(at);
            tracing::warn!(task = %self.task(), second_key_at = %at, "AgentIdentityConflict: two keys are alive for one agent");
        }
        Ok(())
    }

    /// Takes a request out of this session's budget.
    pub fn take(&self, rate: f64, now: Instant) -> bool {
        self.live().bucket.take(rate, rate * 10.0, now)
    }
}

/// All sessions; at most one a task.
#[derive(Debug)]
pub struct Sessions {
    capacity: usize,
    state: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    by_id: HashMap<String, Arc<Session>>,
    by_task: HashMap<String, String>,
}

impl Sessions {
    /// At most `capacity` at once.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::default() }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session with this id.
    pub fn get(&self, id: &str) -> Option<Arc<Session>> {
        self.index().by_id.get(id).cloned()
    }

    /// The session of a task.
    pub fn of_task(&self, task: &str) -> Option<Arc<Session>> {
        let index = self.index();
        index.by_task.get(task).and_then(|id| index.by_id.get(id)).cloned()
    }

    /// Begins a session; the task's earlier one ends. Where all are taken, the silent ones go first.
    pub fn begin(&self, new: NewSession, burst: f64, now: Timestamp) -> Result<Arc<Session>, Refused> {
        let mut index = self.index();
        if index.by_id.len() >= self.capacity {
            let silent: Vec<_> = index
                .by_id
                .values()
                .filter(|session| {
                    let silence = now.duration_since(session.live().heard);
                    silence > session.interval * super::SILENT_INTERVALS
                })
                .cloned()
                .collect();
            for session in silent {
                index.by_id.remove(&session.id);
                index.by_task.remove(session.task());
            }
            if index.by_id.len() >= self.capacity && !index.by_task.contains_key(&*new.known.task.arn) {
                return Err(Refused::busy("room for one more agent"));
            }
        }
        let session = Arc::new(Session {
            id: hex::encode(rand::random::<[u8; 16]>()),
            key: new.key,
            kind: new.known.kind,
            runtime_id: new.runtime_id,
            address: new.address,
            signed: new.signed,
            interval: new.interval,
            enrolled: new.known,
            live: Mutex::new(Live {
                sequence: 0,
                heard: now,
                contender: None,
                conflict: new.conflict,
                bucket: Bucket::full(burst, Instant::now()),
                refreshed: None,
            }),
        });
        if let Some(before) = index.by_task.insert(session.task().to_owned(), session.id.clone()) {
            index.by_id.remove(&before);
        }
        index.by_id.insert(session.id.clone(), session.clone());
        Ok(session)
    }

    /// Notes that another key claimed to be this task's agent.
    pub fn contend(&self, task: &str, now: Timestamp) {
        if let Some(session) = self.of_task(task) {
            session.live().contender = Some(now);
        }
    }

    /// Ends a session.
    pub fn end(&self, session: &Session) {
        let mut index = self.index();
        index.by_id.remove(&session.id);
        if index.by_task.get(session.task()) == Some(&session.id) {
            index.by_task.remove(session.task());
        }
    }

    /// When each agent was last heard, as (task, runtime id, time).
    pub fn heard(&self) -> Vec<(String, String, Timestamp)> {
        let all: Vec<_> = self.index().by_id.values().cloned().collect();
        all.iter().map(|session| session.heard()).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.index().by_id.len()
    }
}
