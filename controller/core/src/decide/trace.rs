//! The facts behind a verdict. Judging and explaining run the same code: judging with [`Silent`],
//! which costs nothing, explaining with [`Told`], which keeps every line.

use crate::fleet::LaunchType;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Where a fact comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// An ECS event or API answer.
    Ecs,
    /// An answer of a Kubernetes API server.
    Kubernetes,
    /// A heartbeat.
    Agent,
    /// A document in git.
    Desired,
    /// What decide remembers.
    Memory,
}

/// One line of `tasuki explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// For people.
    pub text: String,
    /// Where it comes from.
    pub source: Source,
    /// When it was learnt; absent for what holds until git changes.
    pub at: Option<Timestamp>,
}

impl Source {
    /// Who says how a task of this kind is.
    pub(super) fn of(launch: LaunchType) -> Self {
        if launch.is_kubernetes() { Self::Kubernetes } else { Self::Ecs }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ecs => "ECS",
            Self::Kubernetes => "Kubernetes",
            Self::Agent => "agent",
            Self::Desired => "git",
            Self::Memory => "memory",
        })
    }
}

/// Listens to a judgement.
pub(super) trait Trace {
    /// A fact, in the order of judging.
    fn fact(&mut self, source: Source, at: Option<Timestamp>, text: impl FnOnce() -> String);
    /// What makes the reason concrete; the last one stands.
    fn detail(&mut self, text: impl FnOnce() -> String);
}

/// Does not listen.
pub(super) struct Silent;

impl Trace for Silent {
    fn fact(&mut self, _: Source, _: Option<Timestamp>, _: impl FnOnce() -> String) {}
    fn detail(&mut self, _: impl FnOnce() -> String) {}
}

/// Keeps what makes the reason concrete, and nothing else.
#[derive(Debug, Default)]
pub(super) struct Detail(pub Option<String>);

impl Trace for Detail {
    fn fact(&mut self, _: Source, _: Option<Timestamp>, _: impl FnOnce() -> String) {}
    fn detail(&mut self, text: impl FnOnce() -> String) {
        self.0 = Some(text());
    }
}

/// Keeps every line.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub facts: Vec<Fact>,
    pub detail: Option<String>,
}

impl Trace for Told {
    fn fact(&mut self, source: Source, at: Option<Timestamp>, text: impl FnOnce() -> String) {
        self.facts.push(Fact { text: text(), source, at });
    }
    fn detail(&mut self, text: impl FnOnce() -> String) {
        self.detail = Some(text());
    }
}
