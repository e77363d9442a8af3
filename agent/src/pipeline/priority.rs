//! Being heard: a storm in a container on all cores starves an ordinary process through scheduler
//! autogroups (measured: 0.03 s of CPU in 8 s; with autogroup nice −20, 7.93 s). The agent asks for
//! its share at the start and says what it got.

use rustix::process::{getpriority_process, setpriority_process};

/// Nice value asked for; −20 would also starve others, −10 was enough.
const NICE: i32 = -10;
/// Nice value of the agent's scheduler autogroup.
const AUTOGROUP: &str = "-20";

/// What the agent got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Priority {
    /// Nice value in force.
    pub nice: i32,
    /// The autogroup was raised, or the kernel has none (then nice alone counts).
    pub autogroup: bool,
    /// What was refused, and what would allow it.
    pub refused: Option<String>,
}

impl Priority {
    /// Whether everything that was asked for was given.
    pub fn whole(&self) -> bool {
        self.refused.is_none()
    }
}

/// Asks for the priority.
pub fn raise() -> Priority {
    let mut refused = Vec::new();
    if let Err(error) = setpriority_process(None, NICE) {
        refused.push(format!("nice {NICE}: {error}; CAP_SYS_NICE allows it"));
    }
    let path = "/proc/self/autogroup";
    let autogroup = match std::fs::write(path, AUTOGROUP) {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => {
            refused.push(format!("autogroup nice {AUTOGROUP}: {error}; a writable {path} and CAP_SYS_NICE allow it"));
            false
        }
    };
    let refused = (!refused.is_empty()).then(|| refused.join("; "));
    Priority { nice: getpriority_process(None).unwrap_or(0), autogroup, refused }
}
