//! The way from events to findings.
//!
//! ```text
//!  batch ─▶ world.observe ─▶ facts ─▶ engine.judge ─▶ respond ─▶ group ─▶ wait for names ─▶ sink
//! ```
//! *Guarantees.* No clock but the events' own decides what is found: the same events, policy and
//! seed give the same findings, byte for byte. The engine is read once per batch, so a new policy
//! takes effect between two events and none is missed. Everything that is kept is bounded.
//! *Caveat.* In live use names and hashes come from the machine, and with them what findings say.

pub mod clock;
pub mod container;
pub mod gather;
pub mod oom;
pub mod priority;
pub mod programs;
mod waiting;
pub mod world;

use crate::detect::{Class, Engine, EngineCell, Fact, Facts, Match};
use crate::event::{Event, EventKind, FileId};
use crate::finding::build::{self, Ids};
use crate::finding::group::{Counted, GroupKey};
use crate::finding::respond::Responder;
use crate::finding::turn::Turn;
use crate::finding::{FindingSink, Groups};
use crate::process::hash::Sha256;
use crate::sensor::replay::Recorder;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tasuki_api::desired::Response;
use tasuki_api::finding::Agent;
use waiting::Waiting;
use world::{Subject, World};

/// Execs whose program's hash is awaited.
const MAX_AWAITING: usize = 512;
/// How often what waits is looked at, by the events' time, nanoseconds.
const RELEASE_EVERY_NS: u64 = 2_000_000;
/// How often a live pipeline looks after what waits: a hash or a name takes a few milliseconds, and
/// nothing waits longer than two seconds.
const TICK: Duration = Duration::from_millis(2);
/// How often while only hashes are awaited, some of which never come.
const HASH_TICK: Duration = Duration::from_millis(20);
/// How often where nothing waits: counts of findings that go on are due.
const IDLE_TICK: Duration = Duration::from_millis(250);

/// Counters, readable from any thread.
#[derive(Debug, Default)]
pub struct Stats {
    /// Events taken.
    pub events: AtomicU64,
    /// Findings that went out without their container's names.
    pub unnamed: AtomicU64,
    /// Events of which it was not even known whether they were a container's; no rule for
    /// containers saw them.
    pub unplaced: AtomicU64,
    /// Evictions from bounded caches.
    pub evictions: AtomicU64,
    /// Matches, repeats among them.
    pub matches: AtomicU64,
    /// Findings handed to the sink, repeats among them.
    pub reports: AtomicU64,
}

/// The pipeline.
pub struct Pipeline {
    world: World,
    engine: EngineCell,
    agent: Agent,
    sink: Box<dyn FindingSink>,
    ids: Ids,
    groups: Groups,
    responder: Responder,
    waiting: Waiting,
    awaiting_hash: VecDeque<(FileId, Event)>,
    recorder: Option<Recorder>,
    stats: Arc<Stats>,
    own: u32,
    released: u64,
}

impl Pipeline {
    /// A pipeline over a world. `seed` makes finding ids differ between agents.
    pub fn new(world: World, engine: EngineCell, agent: Agent, sink: Box<dyn FindingSink>, seed: u64) -> Self {
        let live = world.is_live();
        Self {
            world,
            engine,
            agent,
            sink,
            ids: Ids::new(seed),
            groups: Groups::default(),
            responder: Responder::new(live),
            waiting: Waiting::default(),
            awaiting_hash: VecDeque::new(),
            recorder: None,
            stats: Arc::default(),
            own: if live { std::process::id() } else { 0 },
            released: 0,
        }
    }

    /// Also records every event, with what is needed to replay it.
    #[must_use]
    pub fn with_recorder(self, recorder: Recorder) -> Self {
        Self { recorder: Some(recorder), ..self }
    }

    /// Responds only while it holds the node's lock.
    #[must_use]
    pub fn in_turn(self, turn: Turn) -> Self {
        Self { responder: self.responder.in_turn(turn), ..self }
    }

    /// Counters.
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }

    /// The world, to put in what a recording noted.
    pub fn world(&mut self) -> &mut World {
        &mut self.world
    }

    /// Takes batches until every sensor has let go of its end, then reports what is left.
    pub fn run(mut self, events: &Receiver<Vec<Event>>) {
        loop {
            let batch = match self.world.is_live() {
                true => events.recv_timeout(self.pause()),
                false => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match batch {
                Ok(batch) => self.take(&batch),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.world.is_live() {
                self.tick(clock::since_boot());
                self.sink.flush();
            }
        }
        self.finish();
    }

    fn pause(&self) -> Duration {
        match (self.waiting.is_empty(), self.awaiting_hash.is_empty()) {
            (false, _) => TICK,
            (true, false) => HASH_TICK,
            (true, true) => IDLE_TICK,
        }
    }

    /// Takes one batch.
    pub fn take(&mut self, batch: &[Event]) {
        let engine = self.engine.load();
        for event in batch {
            self.event(&engine, event);
        }
        self.stats.events.fetch_add(batch.len() as u64, Ordering::Relaxed);
        self.stats.unplaced.store(self.world.unplaced(), Ordering::Relaxed);
        self.stats.evictions.store(self.world.evictions() + self.groups.evictions(), Ordering::Relaxed);
    }

    /// Reports what the time has come for.
    pub fn tick(&mut self, now: u64) {
        self.hashes();
        self.release(now);
        for finding in self.groups.due(now) {
            self.send(finding);
        }
    }

    /// Reports everything that is left.
    pub fn finish(&mut self) {
        self.release(u64::MAX);
        for finding in self.groups.rest() {
            self.send(finding);
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.flush();
        }
        self.sink.flush();
    }

    fn event(&mut self, engine: &Engine, event: &Event) {
        if !self.waiting.is_empty() {
            self.release(event.time);
        }
        let class = Class::of(event);
        let subject = self.world.observe(event, class.is_some_and(|class| engine.wants(class, true)));
        if let Some(recorder) = &mut self.recorder {
            recorder.record(event, subject.as_ref());
        }
        let (Some(class), Some(subject)) = (class, subject) else { return };
        if let (EventKind::Dns(packet), Some(message)) = (&event.kind, &subject.message)
            && packet.answer
        {
            self.waiting.answered(packet.client, message);
        }
        let own = self.own != 0 && subject.key.is_some_and(|key| key.pid == self.own);
        if own || !engine.wants(class, subject.container.is_some()) {
            return;
        }
        let needs_hash =
            subject.container.is_some() && matches!(event.kind, EventKind::Exec(_)) && engine.needs_hashes();
        let hash = needs_hash.then(|| gather::known_hash(&mut self.world, event, &subject)).flatten();
        if needs_hash && hash.is_none() {
            self.await_hash(event);
        }
        let facts = gather::facts(&mut self.world, engine.indicators(), class, event, &subject, hash);
        for (process, looked_up) in self.world.take_looked_up() {
            if let Some(recorder) = &mut self.recorder {
                recorder.looked_up(process, looked_up);
            }
        }
        let seconds = self.world.epoch(event.time).div_euclid(1_000_000_000);
        for found in engine.judge(class, &facts, seconds) {
            self.report(engine, event, &subject, &facts, &found);
        }
    }

    fn report(&mut self, engine: &Engine, event: &Event, subject: &Subject, facts: &Facts<'_>, found: &Match) {
        self.stats.matches.fetch_add(1, Ordering::Relaxed);
        if let Some(container) = &subject.container {
            self.world.containers.state(container).last_finding = Some(event.time);
        }
        let wanted = engine.response(&found.rule);
        if wanted == Response::Kill {
            // Its program is opened while there is a process to open it by; the hash is evidence.
            gather::known_hash(&mut self.world, event, subject);
        }
        let response = self.responder.respond(wanted, subject.key, subject.container.is_some(), event.time);
        let key = group_key(subject, facts, found);
        let seen = build::timestamp(&self.world, event.time);
        match self.groups.count(&key, event.time, seen) {
            Counted::Quiet => return,
            Counted::Again(finding) => return self.send(*finding),
            Counted::New => {}
        }
        let mut finding = build::finding(&mut self.world, &mut self.ids, &self.agent, event, subject, facts, found);
        finding.response = response;
        if let Some(due) = self.groups.open(key.clone(), event.time, finding.clone()) {
            self.send(due);
        }
        if let Some(finding) = self.waiting.hold(&mut self.world, key, finding, event, subject) {
            self.send(finding);
        }
    }

    fn release(&mut self, now: u64) {
        // Looking costs a little for each finding that waits, so not at every event of a storm.
        if now != u64::MAX && now.saturating_sub(self.released) < RELEASE_EVERY_NS && now >= self.released {
            return;
        }
        self.released = now;
        for ready in self.waiting.ready(&mut self.world, now) {
            if ready.unnamed {
                self.stats.unnamed.fetch_add(1, Ordering::Relaxed);
            }
            let finding = self.groups.complete(&ready.key, ready.finding);
            self.send(finding);
        }
    }

    fn send(&mut self, finding: tasuki_api::finding::Finding) {
        self.stats.reports.fetch_add(1, Ordering::Relaxed);
        self.sink.take(finding);
    }

    fn await_hash(&mut self, event: &Event) {
        let EventKind::Exec(exec) = &event.kind else { return };
        if let Some(file) = exec.file.filter(|_| self.world.is_live()) {
            if self.awaiting_hash.len() == MAX_AWAITING {
                self.awaiting_hash.pop_front();
            }
            self.awaiting_hash.push_back((file, event.clone()));
        }
    }

    /// Hashes that were finished: findings that wait for one get it, and execs are judged again by
    /// the rules that test hashes.
    fn hashes(&mut self) {
        let engine = self.engine.load();
        for hashed in self.world.hasher.finished() {
            let Some(sha256) = hashed.sha256 else { continue };
            if let Some(recorder) = &mut self.recorder {
                recorder.hash(&hashed.file, &sha256);
            }
            let (waited, rest): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut self.awaiting_hash).into_iter().partition(|(file, _)| *file == hashed.file);
            self.awaiting_hash = rest;
            for (_, event) in waited {
                self.judge_again(&engine, &event, sha256);
            }
        }
    }

    fn judge_again(&mut self, engine: &Engine, event: &Event, sha256: Sha256) {
        let Some(subject) = self.world.recall(event) else { return };
        let facts = gather::facts(&mut self.world, engine.indicators(), Class::Process, event, &subject, Some(sha256));
        for found in engine.judge_hash(&facts) {
            self.report(engine, event, &subject, &facts, &found);
        }
    }
}

fn group_key(subject: &Subject, facts: &Facts<'_>, found: &Match) -> GroupKey {
    // Without a process, what it is about tells cases apart.
    let image = [Fact::Image, Fact::Question, Fact::FilePath, Fact::RemoteIp];
    GroupKey {
        kind: found.rule.kind.clone(),
        severity: found.rule.severity,
        container: subject.container.clone().unwrap_or_default(),
        image: image.iter().find_map(|fact| facts.text(*fact)).unwrap_or_default().to_owned(),
    }
}
