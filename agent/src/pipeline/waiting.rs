//! Findings that wait, two seconds at most, for the container's names, the program's hash or the
//! answer to a question. Events never wait; only what is said about them does.

use super::world::{Subject, World};
use crate::detect::dns::Message;
use crate::event::{Event, EventKind, FileId};
use crate::finding::build;
use crate::finding::group::GroupKey;
use crate::process::hash::Answer;
use crate::workload::{ContainerPath, Place};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use tasuki_api::finding::Finding;

/// How long names and hashes are waited for, nanoseconds.
const PATIENCE_NS: u64 = 2_000_000_000;
/// How long an answer is waited for, nanoseconds.
const ANSWER_NS: u64 = 500_000_000;
/// Findings that wait, at most; the oldest goes out as it is when there are more.
const MAX_WAITING: usize = 1_024;

#[derive(Debug)]
struct Held {
    key: GroupKey,
    finding: Finding,
    names: Option<(Arc<ContainerPath>, u64)>,
    hash: Option<(u32, FileId, String, u64)>,
    answer: Option<(IpAddr, Message, u64)>,
}

impl Held {
    fn settled(&self) -> bool {
        self.names.is_none() && self.hash.is_none() && self.answer.is_none()
    }
}

/// A finding that waited long enough.
pub(super) struct Ready {
    pub(super) key: GroupKey,
    pub(super) finding: Finding,
    /// Its container's names did not come.
    pub(super) unnamed: bool,
}

/// The findings that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    held: VecDeque<Held>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Holds a finding if there is something to wait for, else gives it back.
    pub(super) fn hold(
        &mut self,
        world: &mut World,
        key: GroupKey,
        mut finding: Finding,
        event: &Event,
        subject: &Subject,
    ) -> Option<Finding> {
        let mut held = Held { key, names: None, hash: None, answer: None, finding: finding.clone() };
        if let (Place::Container(path), None) = (&subject.place, &subject.description)
            && world.workloads.may_learn()
        {
            held.names = Some((path.clone(), event.time.saturating_add(PATIENCE_NS)));
        }
        if let (EventKind::Exec(exec), Some(key)) = (&event.kind, subject.key)
            && finding.process.as_ref().is_some_and(|process| process.sha256.is_none())
            && let Some(file) = exec.file.filter(|file| file.inode != 0)
        {
            let path = exec.executable.clone().unwrap_or_else(|| exec.filename.clone());
            match world.hasher.ask(key.pid, subject.neighbours(), &file, &path) {
                Answer::Is(hash) => set_hash(&mut finding, hash),
                Answer::Pending => held.hash = Some((key.pid, file, path, event.time.saturating_add(PATIENCE_NS))),
                Answer::Unknown => {}
            }
        }
        if let (EventKind::Dns(packet), Some(message)) = (&event.kind, &subject.message)
            && !packet.answer
        {
            held.answer = Some((packet.client, message.clone(), event.time.saturating_add(ANSWER_NS)));
        }
        held.finding.clone_from(&finding);
        if held.settled() || self.held.len() >= MAX_WAITING {
            return Some(finding);
        }
        self.held.push_back(held);
        None
    }

    /// An answer came: findings about its question get it.
    pub(super) fn answered(&mut self, client: IpAddr, answer: &Message) {
        for held in &mut self.held {
            let own = held.answer.as_ref().is_some_and(|(asker, question, _)| {
                *asker == client && question.id == answer.id && question.question == answer.question
            });
            if own {
                held.answer = None;
                if let Some(dns) = &mut held.finding.dns {
                    dns.answers.clone_from(&answer.addresses);
                }
            }
        }
    }

    /// What need not wait any longer at `now`.
    pub(super) fn ready(&mut self, world: &mut World, now: u64) -> Vec<Ready> {
        let mut ready = Vec::new();
        for _ in 0..self.held.len() {
            let Some(mut held) = self.held.pop_front() else { break };
            let mut unnamed = false;
            if let Some((path, until)) = &held.names {
                if let Some(description) = world.workloads.describe(path) {
                    held.finding.resource = build::resource(&Place::Container(path.clone()), Some(&description));
                    held.names = None;
                } else if now >= *until {
                    (unnamed, held.names) = (true, None);
                }
            }
            if let Some((pid, file, path, until)) = &held.hash {
                match world.hasher.ask(*pid, [], file, path) {
                    Answer::Is(hash) => {
                        set_hash(&mut held.finding, hash);
                        held.hash = None;
                    }
                    Answer::Pending if now < *until => {}
                    Answer::Pending | Answer::Unknown => held.hash = None,
                }
            }
            if held.answer.as_ref().is_some_and(|(_, _, until)| now >= *until) {
                held.answer = None;
            }
            if held.settled() {
                ready.push(Ready { key: held.key, finding: held.finding, unnamed });
            } else {
                self.held.push_back(held);
            }
        }
        ready
    }
}

fn set_hash(finding: &mut Finding, hash: [u8; 32]) {
    if let Some(process) = &mut finding.process {
        process.sha256 = Some(hex::encode(hash));
    }
}
