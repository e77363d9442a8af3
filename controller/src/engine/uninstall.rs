//! An uninstall under way.
//!
//! ```text
//!  Describing ─ own definitions are known ─▶ Removing ─ nothing left to do ─▶ Counting ─ AWS is asked ─▶ answer
//!       ▲                                                                        │
//!       └──────────────────── something is left, and there is time ──────────────┘
//! ```
//! Everything is frozen from its first step on, and stays so: what was taken out does not come back by itself.

use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long to wait before looking again at what AWS still holds.
const PAUSE: Duration = Duration::from_secs(5);

/// Which step it is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Own definitions are to be read, at this time at the earliest: a process that has just started knows none.
    Describe(Instant),
    /// They are being read.
    Describing,
    /// Actions are taken until none is left.
    Removing,
    /// AWS is asked what is left.
    Counting,
}

/// An uninstall.
pub(super) struct Uninstall {
    /// Everyone who asked for it meanwhile.
    answers: Vec<oneshot::Sender<Vec<String>>>,
    deadline: Instant,
    pub step: Step,
}

impl Uninstall {
    /// Begins.
    pub fn new(answer: oneshot::Sender<Vec<String>>, limit: Duration) -> Self {
        let now = Instant::now();
        Self { answers: vec![answer], deadline: now + limit, step: Step::Describe(now) }
    }

    /// Someone else asks for the same: one uninstall answers both.
    pub fn also(&mut self, answer: oneshot::Sender<Vec<String>>) {
        self.answers.retain(|answer| !answer.is_closed());
        self.answers.push(answer);
    }

    /// No time is left.
    pub fn late(&self) -> bool {
        Instant::now() > self.deadline
    }

    /// Looks again in a moment.
    pub fn again(&mut self) {
        self.step = Step::Describe(Instant::now() + PAUSE);
    }

    /// Says what is left. Whoever asked may have gone meanwhile: an unheard answer is no loss.
    pub fn end(self, left: Vec<String>) {
        for answer in self.answers {
            let _ = answer.send(left.clone());
        }
    }
}
