//! The only place that changes the outside world: ECS calls, request budgets, the journal.
//!
//! *Expected flow*: [`Executor::execute`] takes one action, reads again what it was decided on,
//! drops it if that changed, makes its calls, and says what became of it. *Guarantees*: everything
//! can be repeated; a process that is killed between any two calls leaves at most one new revision,
//! and the next run finds and uses it. *Assumptions*: one executor works on one target at a time.
//! *Caveats*: UpdateService has no compare-and-swap, so between the last read and the call there is
//! a moment in which someone else may deploy; the next event shows it.

pub mod budget;
pub mod kubernetes;

mod attribute;
mod daemon;
mod definition;
mod deploy;
mod executor;
mod intents;
mod inventory;
mod outcome;
mod raw;
mod rollback;
mod run;
mod sidecar;
#[cfg(test)]
mod tests;

pub use executor::Executor;
pub use inventory::{Owned, OwnedKind};
pub use outcome::{Outcome, Verdict};
