//! The loop: changes into the fleet, decide, act; and what everyone else may read of it.
//!
//! One task owns the fleet. The web API, the command line and the gateway never touch it: they
//! read the last [`View`], ask by [`Request`], or look tasks up in the [`FleetDirectory`].

mod buses;
mod cluster;
mod directory;
mod ended;
mod flight;
mod freezer;
mod gather;
mod handle;
mod hands;
mod housekeeping;
mod inputs;
mod memories;
mod minutes;
mod monitors;
mod plan;
mod run;
mod state;
mod uninstall;
mod view;
mod work;

pub use directory::FleetDirectory;
pub use freezer::Freezer;
pub use handle::*;
pub use hands::Hands;
pub use memories::Memories;
pub use minutes::Minutes;
pub use run::{Controller, Surroundings, run};
pub use state::{Knowledge, Shared};
pub use view::Context;
pub use work::{Execute, Inputs, Outcome, Work};

/// Setting: task-minutes of the last day.
pub const MINUTES: &str = "coverage.minutes";
/// How long an uninstall may take: services drain for as long as their tasks' stop timeouts say.
const UNINSTALL_LIMIT: std::time::Duration = std::time::Duration::from_secs(600);
