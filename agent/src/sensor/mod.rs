//! Sensors: how the agent sees. Each one turns what it sees into [`Event`]s and says what it can
//! and cannot see; none knows tasks, rules or the gateway.
//!
//! A sensor owns its threads. It hands batches to [`Output`], which never blocks for ever: where
//! the pipeline is behind, the sensor's own kernel buffer fills and the loss is counted there.

pub mod ebpf;
pub mod fanotify;
pub mod inotify;
pub mod network;
pub mod outbox;
pub mod proc;
pub mod ptrace;
pub mod recent;
pub mod replay;
pub mod select;
pub mod snapshot;

use crate::event::Event;
use std::sync::mpsc::SyncSender;
use tasuki_api::agent::{FamilyState, SensorState};
use tasuki_api::coverage::Depth;

/// Where a sensor's events go: batches, in the order in which the sensor saw them.
pub type Output = SyncSender<Vec<Event>>;

/// A running sensor.
pub trait Sensor: Send {
    /// `ebpf`, `ptrace`, `network`, `fanotify`, `replay`.
    fn name(&self) -> &'static str;

    /// How much it sees.
    fn depth(&self) -> Depth;

    /// Whether it works, and why not.
    fn state(&self) -> SensorState;

    /// Why it cannot see anything that may begin from now on; `None` where it can. Other than
    /// [`Sensor::state`], it does not mind that there is nothing to see yet.
    fn blind(&self) -> Option<String> {
        let state = self.state();
        (!state.whole).then(|| state.detail.unwrap_or_else(|| "it does not work".to_owned()))
    }

    /// Each event family that it gives or cannot give, with hook, tier and counters.
    fn families(&self) -> Vec<FamilyState>;

    /// Lets go of everything that it holds (traced processes, kernel programs, threads) and
    /// returns when that is done. Also happens on drop.
    fn stop(&mut self);
}

/// Why a sensor could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SensorError {
    /// The kernel or the capabilities do not allow it.
    #[error("sensor {sensor} is not available here: {reason}")]
    Unavailable {
        /// Which.
        sensor: &'static str,
        /// What is missing, and what would bring it.
        reason: String,
    },
    /// A system call failed.
    #[error("sensor {sensor}: {what}")]
    System {
        /// Which.
        sensor: &'static str,
        /// What was being done.
        what: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}
