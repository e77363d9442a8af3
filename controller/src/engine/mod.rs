//! The loop: changes into the fleet, decide, act; and what everyone else may read of it.
//!
//! One task owns the fleet. The web API, the command line and the gateway never touch it: they
//! read the last [`View`] or ask by [`Request`].

mod handle;
mod run;

pub use handle::*;
pub use run::run;
