//! The supervisor: the entry point of the agent's container.
//!
//! ```text
//!            start ─▶ runs ── ends ──▶ waits (250 ms … 30 s) ──▶ start again
//!                      │ SIGTERM         │ SIGTERM
//!                      ▼                 ▼
//!             SIGTERM to the child     exit 0
//!              │ ends     │ 1.5 s
//!              ▼          ▼
//!            exit 0     SIGKILL ─▶ exit 0
//! ```
//!
//! **Guarantees.** It exits 0, and within 2 s of SIGTERM, whatever the child does: a Step Functions
//! job fails on any container's other exit. It never ends because the child crashed. If it is
//! killed itself, the child is killed with it. Orphans of the agent (its watchdog) are reaped.
//!
//! It keeps the agent's key for the agent, in memory without a path, so that the next agent process is
//! the same agent to the gateway.
//!
//! **Expected flow.** `main` calls [`run`] before it starts any thread, with the arguments that make
//! the same binary an agent, and returns success.

mod backoff;

use backoff::Backoff;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// Variable in which the child finds how often it was restarted.
pub const RESTARTS: &str = "TASUKI_RESTARTS";
/// Variable in which the child finds why its predecessor ended; absent for the first.
pub const LAST_EXIT: &str = "TASUKI_LAST_EXIT";
/// Variable in which the child finds where its key is kept: a path below /proc.
pub const KEY: &str = "TASUKI_KEY_HOME";
/// From SIGTERM to SIGKILL: leaves half a second of the promised two.
const GRACE: Duration = Duration::from_millis(1500);
/// From SIGKILL to the supervisor's own exit. A child in uninterruptible sleep dies later.
const LAST: Duration = Duration::from_millis(300);

/// Runs this program with these arguments again and again, until SIGTERM or SIGINT. The caller
/// then exits with 0, also on an error, which it logs.
///
/// # Errors
/// Only where signals cannot be waited for, before any child was started.
pub fn run(arguments: &[OsString]) -> io::Result<()> {
    let program = std::env::current_exe()?;
    run_program(&program.into_os_string(), arguments)
}

/// [`run`] with another program.
///
/// # Errors
/// As [`run`].
pub fn run_program(program: &OsString, arguments: &[OsString]) -> io::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // Without it, orphans go to the container's first process, which may not reap.
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::warn!(%error, "orphans cannot be reaped");
    }
    // The agent does without: after a restart the gateway then waits for its old key's silence.
    let key = memfd_create(c"tasuki-key", MFdFlags::MFD_CLOEXEC)
        .map_err(|error| tracing::warn!(%error, "the agent's key cannot be kept over a restart"))
        .ok();
    let mut supervisor = Supervisor {
        signals,
        program: program.clone(),
        arguments: arguments.to_vec(),
        restarts: 0,
        last_exit: None,
        key,
    };
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let reason = match supervisor.start() {
            Ok(child) => match supervisor.wait_for(child) {
                Some(reason) => reason,
                None => return Ok(()),
            },
            Err(error) => format!("could not be started: {error}"),
        };
        let pause = backoff.after(started.elapsed());
        tracing::error!(reason, restart_in = ?pause, "the agent ended");
        supervisor.last_exit = Some(reason);
        supervisor.restarts += 1;
        if supervisor.pause(pause) {
            return Ok(());
        }
    }
}

/// What woke the supervisor.
enum Wake {
    Time,
    Child,
    Terminate,
}

struct Supervisor {
    signals: SignalFd,
    program: OsString,
    arguments: Vec<OsString>,
    restarts: u32,
    last_exit: Option<String>,
    key: Option<OwnedFd>,
}

impl Supervisor {
    fn start(&self) -> io::Result<Pid> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env(RESTARTS, self.restarts.to_string()).env_remove(LAST_EXIT);
        if let Some(reason) = &self.last_exit {
            command.env(LAST_EXIT, reason);
        }
        // The path, and not the descriptor: the child's children inherit nothing.
        match &self.key {
            Some(key) => command.env(KEY, format!("/proc/{}/fd/{}", std::process::id(), key.as_raw_fd())),
            None => command.env_remove(KEY),
        };
        let parent = rustix::process::getpid();
        // SAFETY: between fork and exec only system calls are made that are async-signal-safe, and
        // nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                // The supervisor may have ended before the line above.
                if rustix::process::getppid() != Some(parent) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                Ok(())
            });
        }
        // The child is reaped below, with all others, and not through this handle.
        Ok(Pid::from_raw(command.spawn()?.id() as i32))
    }

    /// Waits for the end of the child and says why it ended; nothing after SIGTERM, when it is to
    /// be the end of the supervisor too.
    fn wait_for(&self, child: Pid) -> Option<String> {
        loop {
            match self.sleep(None) {
                Wake::Time => {}
                Wake::Child => {
                    if let Some(reason) = reap(child) {
                        return Some(reason);
                    }
                }
                Wake::Terminate => {
                    self.terminate(child);
                    return None;
                }
            }
        }
    }

    fn terminate(&self, child: Pid) {
        for (signal, patience) in [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, LAST)] {
            // Fails only where the child has ended, which the reaping shows.
            let _ = kill(child, signal);
            let until = Instant::now() + patience;
            loop {
                if reap(child).is_some() {
                    return;
                }
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                self.sleep(Some(left));
            }
        }
    }

    /// Waits before the next start; true where SIGTERM came meanwhile.
    fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            match self.sleep(Some(left)) {
                Wake::Time => {}
                Wake::Child => {
                    let _ = reap(Pid::from_raw(0));
                }
                Wake::Terminate => return true,
            }
        }
    }

    fn sleep(&self, limit: Option<Duration>) -> Wake {
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        });
        // An interrupted poll is a short sleep.
        let _ = poll(&mut [PollFd::new(&self.signals, PollFlags::IN)], limit.as_ref());
        match self.signals.read_signal() {
            Ok(Some(signal)) if signal.ssi_signo == Signal::SIGCHLD as u32 => Wake::Child,
            Ok(Some(_)) => Wake::Terminate,
            _ => Wake::Time,
        }
    }
}

/// Reaps every child that has ended, and says why `child` did, if it is among them.
fn reap(child: Pid) -> Option<String> {
    let mut reason = None;
    // Which one it is, is asked before it is reaped, so that a surprise is never waited for.
    while let Ok(status) = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
        let Some(pid) = status.pid() else { break };
        let status = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        if pid == child {
            reason = Some(match status {
                Ok(WaitStatus::Exited(_, code)) => format!("exit code {code}"),
                Ok(WaitStatus::Signaled(_, signal, _)) => format!("signal {} ({signal})", signal as i32),
                other => format!("unknown: {other:?}"),
            });
        }
    }
    reason
}
