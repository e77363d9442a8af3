//! The sidecar's sensors and supervisor against real processes.
//!
//! Each test makes a room of its own (PID, mount and network namespace) and puts an agent and an
//! application in it, so nothing outside is traced. Needs root. The agent's roles are this same
//! binary, started anew: see [`role`].

// Helpers of tests: the lint knows only the bodies of #[test] functions as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "sidecar/inotify.rs"]
mod inotify;
#[path = "sidecar/network.rs"]
mod network;
#[path = "sidecar/ptrace.rs"]
mod ptrace;
#[path = "sidecar/roles.rs"]
mod roles;
#[path = "sidecar/room.rs"]
mod room;
#[path = "sidecar/supervisor.rs"]
mod supervisor;

/// Not a test of its own: what this binary does when a test starts it with `TASUKI_ROLE`.
#[test]
fn role() {
    if let Ok(role) = std::env::var("TASUKI_ROLE") {
        roles::play(&role);
        std::process::exit(0);
    }
}
