//! The sidecar's sensors and supervisor against real processes.
//!
//! Each test makes a room of its own (PID, mount and network namespace) and puts an agent and an
//! application in it, so nothing outside is traced. Needs root. The agent's roles are this same
//! binary, started anew: see [`role`].

#[path = "sidecar/ptrace.rs"]
mod ptrace;
#[path = "sidecar/roles.rs"]
mod roles;
#[path = "sidecar/room.rs"]
mod room;

/// Not a test of its own: what this binary does when a test starts it with `TASUKI_ROLE`.
#[test]
fn role() {
    if let Ok(role) = std::env::var("TASUKI_ROLE") {
        roles::play(&role);
        std::process::exit(0);
    }
}
