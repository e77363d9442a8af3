//! The system calls of the tracer, with their unsafe parts in one place.
//!
//! nix is not used for stops: its `WaitStatus` refuses real-time signals, which glibc and Go send
//! to their own threads, and a refused stop would be a thread that stands still for ever.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A thread, as ptrace counts.
pub type Tid = u32;

/// What is asked for of every tracee. Never `PTRACE_O_EXITKILL`: the application outlives the agent.
/// Exits need no stop of their own: wait() reports them with their code.
pub const ALL_OPTIONS: i32 =
    libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACECLONE;
/// What is asked for once a process makes too many threads.
pub const FEW_OPTIONS: i32 = ALL_OPTIONS & !libc::PTRACE_O_TRACECLONE;

/// What wait() said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A thread ended; the status is wait()'s own.
    Exited { tid: Tid, status: i32 },
    /// A thread stopped: by a signal where `event` is 0, by a `PTRACE_EVENT_*` else.
    Stopped { tid: Tid, signal: i32, event: i32 },
    /// Nothing now.
    Nothing,
    /// Nothing is traced.
    NoTracees,
}

/// Waits for tracees of the calling thread only: children that other threads of the agent wait
/// for are left alone.
pub fn wait(block: bool) -> io::Result<Wait> {
    let flags = libc::__WALL | libc::__WNOTHREAD | if block { 0 } else { libc::WNOHANG };
    let mut status = 0;
    // SAFETY: `status` outlives the call, which writes one int to it.
    let tid = unsafe { libc::waitpid(-1, &raw mut status, flags) };
    match tid {
        0 => Ok(Wait::Nothing),
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EINTR) => Ok(Wait::Nothing),
            error if error.raw_os_error() == Some(libc::ECHILD) => Ok(Wait::NoTracees),
            error => Err(error),
        },
        tid if libc::WIFSTOPPED(status) => {
            Ok(Wait::Stopped { tid: tid as Tid, signal: libc::WSTOPSIG(status), event: status >> 16 })
        }
        tid => Ok(Wait::Exited { tid: tid as Tid, status }),
    }
}

fn ptrace(request: libc::c_uint, tid: Tid, data: usize) -> io::Result<()> {
    // SAFETY: none of the requests that this module makes through here lets the kernel write to
    // this process: `data` is a number (signal or options) for all of them.
    let result = unsafe { libc::ptrace(request as _, tid as libc::pid_t, 0_usize, data) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Begins to trace a thread without stopping it.
pub fn seize(tid: Tid, options: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SEIZE, tid, options as usize)
}

/// Lets a stopped thread go on, with a signal or 0.
pub fn resume(tid: Tid, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_CONT, tid, signal as usize)
}

/// Leaves a thread in its group-stop, and hears of its end.
pub fn listen(tid: Tid) -> io::Result<()> {
    ptrace(libc::PTRACE_LISTEN, tid, 0)
}

/// Asks a thread to stop.
pub fn interrupt(tid: Tid) -> io::Result<()> {
    ptrace(libc::PTRACE_INTERRUPT, tid, 0)
}

/// Lets go of a stopped thread, with a signal or 0.
pub fn detach(tid: Tid, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_DETACH, tid, signal as usize)
}

/// Changes what a stopped thread reports.
pub fn set_options(tid: Tid, options: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SETOPTIONS, tid, options as usize)
}

/// The number that came with an event: the new thread, or the former id at an exec.
pub fn event_message(tid: Tid) -> io::Result<Tid> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: PTRACE_GETEVENTMSG writes one unsigned long to `data`, and `message` outlives the call.
    let result = unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG as _, tid as libc::pid_t, 0_usize, &raw mut message) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(message as Tid) }
}

static TICKED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_tick(_signal: libc::c_int) {
    TICKED.store(true, Ordering::Relaxed);
}

/// A timer that interrupts the blocking wait() of the calling thread.
///
/// A tick that falls between the check and the wait() is late by one period, not lost: the timer
/// goes on.
pub struct Ticker {
    timer: libc::timer_t,
}

impl Ticker {
    /// Starts the timer for the calling thread.
    pub fn start(period: Duration) -> io::Result<Self> {
        let signal = libc::SIGRTMIN() + 4;
        // SAFETY: zeroed is a valid value of each of these plain C structs; the handler stores to
        // an atomic and does nothing else; every pointer outlives its call.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_tick as *const () as usize;
            // No SA_RESTART: the point is that wait() returns.
            if libc::sigaction(signal, &raw const action, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut set, signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal;
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer: libc::timer_t = std::mem::zeroed();
            if libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) != 0 {
                return Err(io::Error::last_os_error());
            }
            let ticker = Self { timer };
            if !ticker.set(period) {
                return Err(io::Error::last_os_error());
            }
            Ok(ticker)
        }
    }

    /// Goes off `period` from now and then every `period`; whether that could be set, which it can once it could.
    pub fn set(&self, period: Duration) -> bool {
        let period =
            libc::timespec { tv_sec: period.as_secs() as libc::time_t, tv_nsec: period.subsec_nanos() as libc::c_long };
        let spec = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: the timer lives as long as `self`, and the specification outlives the call.
        unsafe { libc::timer_settime(self.timer, 0, &raw const spec, std::ptr::null_mut()) == 0 }
    }

    /// Whether the timer went off since the last call.
    pub fn take(&self) -> bool {
        TICKED.swap(false, Ordering::Relaxed)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        // SAFETY: the timer was created by `start` and is deleted once.
        unsafe { libc::timer_delete(self.timer) };
    }
}
