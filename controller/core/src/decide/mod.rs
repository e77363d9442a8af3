//! What is covered, and what should be done about the rest.
//!
//! *Expected flow*: [`Decider::decide_all`] every few seconds (deadlines pass without any change),
//! [`Decider::decide`] after each [`Applied`](crate::fleet::Applied); the actions that they answer
//! go to act, which reports what it did as changes. *Guarantees*: a pure function of desired
//! state, fleet, memory and `now`; the same input gives the same actions in the same order; an
//! action is repeated until the fleet shows that it was done, so act may drop any. *Assumptions*:
//! act runs no two actions on one [`target`](crate::action::Action::target) at once.
//!
//! What may not live here: anything that reads a clock, a network or a disk.

mod acting;
mod daemon;
mod daemon_view;
mod decider;
#[cfg(test)]
mod decider_tests;
mod evidence;
mod explain;
mod judge;
mod judging;
mod live_pods;
#[cfg(test)]
mod live_pods_tests;
mod missed;
mod patience;
#[cfg(test)]
mod pods_simulation;
#[cfg(test)]
mod pods_tests;
mod retry;
#[cfg(test)]
mod rollout_tests;
mod services;
mod sidecar;
#[cfg(test)]
mod simulation;
mod status;
#[cfg(test)]
mod tests;
mod trace;
mod verdict;
mod view;

pub use acting::uninstall;
pub use decider::{Decider, Decision};
pub use explain::Explanation;
pub use status::{Phase, RolloutStatus};
pub use trace::{Fact, Source};
pub use verdict::{Changed, Tally, TaskVerdict};
