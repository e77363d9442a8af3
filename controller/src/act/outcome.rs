//! What became of an action, and how failures turn into coverage reasons.

use crate::scope::{CallError, Kind};
use crate::store::StoreError;
use tasuki_api::coverage::Reason;
use tasuki_core::action::Blocked;
use tasuki_core::fleet::Change;
use tasuki_core::transform::Obstacle;

/// What became of an action.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// In one word.
    pub verdict: Verdict,
    /// What the fleet should be told at once, without waiting for an event.
    pub changes: Vec<Change>,
}

/// What became of an action, in one word.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It was done.
    Done,
    /// Nothing was left to do, or what it was decided on has changed: decide will look again.
    Dropped(String),
    /// Something is in the way. The fleet is told by a [`Change::Obstructed`] among the changes.
    Blocked(Blocked),
    /// AWS refused it in a way that is no coverage reason, or gave no answer. Worth another try
    /// later, with growing pauses.
    Failed(String),
}

/// Why a run of an action ended early.
#[derive(Debug)]
pub(super) enum Stop {
    Call(CallError),
    Store(Box<StoreError>),
    /// What it was decided on is not what is there.
    Changed(String),
    Blocked(Reason, String),
    /// An API server refused it in a way that is no coverage reason, or gave no answer.
    Answer(String),
}

impl From<CallError> for Stop {
    fn from(error: CallError) -> Self {
        match error.kind {
            Kind::Denied => Self::Blocked(Reason::PermissionDenied, error.detail()),
            Kind::Exhausted | Kind::Throttled => Self::Blocked(Reason::BudgetExhausted, error.detail()),
            Kind::Missing => Self::Changed(format!("it no longer exists ({})", error.detail())),
            Kind::Refused | Kind::Unanswered => Self::Call(error),
        }
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl From<Obstacle> for Stop {
    fn from(obstacle: Obstacle) -> Self {
        Self::Blocked(obstacle.reason, obstacle.detail)
    }
}

impl Stop {
    /// The text that the action log keeps.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Call(error) => error.detail(),
            Self::Store(error) => match std::error::Error::source(&**error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            },
            Self::Changed(what) => format!("dropped: {what}"),
            Self::Blocked(reason, detail) => format!("{}: {detail}", reason.name()),
            Self::Answer(what) => what.clone(),
        }
    }
}
