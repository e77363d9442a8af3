//! The watchdog: a process that frees the application when the tracer hangs.
//!
//! ```text
//!   agent process                          watchdog process (child of the agent)
//!   tracer thread ── beats ──▶ timer ──▶   10 ms too late: could it have beaten?
//!        │ traces                            │ none, though it had 50 ms: SIGKILL
//!        ▼                                   ▼
//!   application ◀──────── freed by the kernel when the agent process ends
//! ```
//!
//! Only the thread that traces can let go of a tracee, and a tracer that is stopped or loops for
//! ever cannot be made to. What always works is to kill it: PTRACE_SEIZE without EXITKILL lets the
//! kernel free every tracee, with its pending signal, when the tracer ends. So the watchdog kills
//! the whole agent process, and the supervisor starts a new one.
//!
//! **When it kills.** The tracer's state is stopped (`T`, `t`) for [`STOPPED`]; or it has not
//! beaten although it had [`CHANCE`] in which it ran or slept, and one of its tracees waits for it.
//! Time in which the tracer was runnable but got no processor is no chance: a busy machine does
//! not set the watchdog off. Nor does a pause of the whole machine: one sample counts for 20 ms at
//! most.
//!
//! **Caveats.** A freezer (docker pause) that stops agent and watchdog together stops the tracees
//! at their next event too.

use super::sys::Tid;
use crate::sensor::proc::{self, Stat, Status};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::uio::{pread, pwrite};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A beat is missing when it is so late. With the tracer's slowest ticks a stopped one is killed after about 100 ms.
const LATE: Duration = Duration::from_millis(10);
/// Names the descriptor of the heartbeat's timer to the watchdog.
const TIMER: &str = "TASUKI_WATCHDOG_TIMER";
/// How often it looks at the tracer while a beat is missing.
const PERIOD: Duration = Duration::from_millis(10);
/// A tracer that is stopped this long is killed.
const STOPPED: Duration = Duration::from_millis(30);
/// A tracer that ran or slept this long after a beat was missing is killed.
const CHANCE: Duration = Duration::from_millis(50);
/// What one sample counts for at most: longer ones are pauses of the machine.
const SAMPLE: Duration = Duration::from_millis(20);
/// Clock ticks of `/proc` are 10 ms.
const TICK: Duration = Duration::from_millis(10);

/// How to start the watchdog: a program that calls [`watchdog_main`]. The agent's process id is
/// added as last argument.
#[derive(Clone, Debug)]
pub struct WatchdogCommand {
    /// The agent's own binary.
    pub program: PathBuf,
    /// Its hidden subcommand.
    pub arguments: Vec<OsString>,
}

/// Where the tracer says that it lives: memory that the watchdog reads, and a timer that wakes it.
pub struct Heartbeat {
    memory: OwnedFd,
    timer: OwnedFd,
    beats: u64,
}

impl Heartbeat {
    /// A heartbeat that has not begun.
    pub fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        Ok(Self { memory: memfd_create("tasuki-heartbeat", MFdFlags::MFD_CLOEXEC)?, timer, beats: 0 })
    }

    /// For another reader or writer of the same heartbeat.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { memory: self.memory.try_clone()?, timer: self.timer.try_clone()?, beats: self.beats })
    }

    /// The calling thread is the tracer, lives, and will beat again within `next`.
    pub fn beat(&mut self, tracer: Tid, next: Duration) {
        self.beats += 1;
        let mut bytes = [0_u8; 16];
        bytes[..8].copy_from_slice(&self.beats.to_ne_bytes());
        bytes[8..].copy_from_slice(&u64::from(tracer).to_ne_bytes());
        // A beat that cannot be written shows as a missing one, and the timer goes off.
        let _ = pwrite(&self.memory, &bytes, 0);
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let missing = next + LATE;
        let missing = Timespec { tv_sec: missing.as_secs() as i64, tv_nsec: i64::from(missing.subsec_nanos()) };
        let _ = timerfd_settime(
            &self.timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: never, it_value: missing },
        );
    }
}

/// A started watchdog; ends with it.
pub struct Watchdog {
    child: Child,
}

impl Watchdog {
    /// Starts it for this process.
    pub fn start(command: &WatchdogCommand, heartbeat: &Heartbeat) -> io::Result<Self> {
        let timer = heartbeat.timer.as_raw_fd();
        let mut child = Command::new(&command.program);
        child
            .args(&command.arguments)
            .arg(std::process::id().to_string())
            .stdin(Stdio::from(heartbeat.memory.try_clone()?))
            .stdout(Stdio::null())
            .env(TIMER, timer.to_string());
        // SAFETY: fcntl(2) is async-signal-safe and touches no memory.
        unsafe {
            child.pre_exec(move || match libc::fcntl(timer, libc::F_SETFD, 0) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        Ok(Self { child: child.spawn()? })
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Both fail only where the child is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The watchdog process: standard input is the heartbeat's memory, [`TIMER`] names its timer, and
/// `agent` is the process that it watches.
/// Returns when that process has ended, by itself or by the watchdog.
pub fn watchdog_main(agent: u32) -> io::Result<()> {
    let pid = Pid::from_raw(agent as i32).ok_or(io::ErrorKind::InvalidInput)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    // The id may be another process's by now if the agent, our parent, is gone.
    if rustix::process::getppid() != Some(pid) {
        return Ok(());
    }
    // Being late is all that can go wrong here. Needs CAP_SYS_NICE, which a sidecar lacks.
    let _ = rustix::process::setpriority_process(None, -20);
    let timer = std::env::var(TIMER).ok().and_then(|number| number.parse().ok());
    let timer: RawFd = timer.ok_or_else(|| io::Error::other(format!("{TIMER} names no timer")))?;
    // SAFETY: the agent left it open for this process, where nothing else knows it.
    let timer = unsafe { OwnedFd::from_raw_fd(timer) };
    let heartbeat = io::stdin();
    let mut judge = Judge::default();
    let (mut heard, mut alert) = (0, false);
    loop {
        // A tracer that beats is well: the watchdog sleeps until a beat is missing, and then looks.
        let mut polled = [PollFd::new(&process, PollFlags::IN), PollFd::new(&timer, PollFlags::IN)];
        let watched = if alert { 1 } else { 2 };
        let period = Timespec { tv_sec: 0, tv_nsec: PERIOD.as_nanos() as i64 };
        match poll(&mut polled[..watched], alert.then_some(&period)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !polled[0].revents().is_empty() {
            return Ok(());
        }
        let Some((beats, tracer)) = read_beat(heartbeat.as_fd()) else { continue };
        if std::mem::replace(&mut heard, beats) != beats {
            (judge, alert) = (Judge::default(), false);
        }
        alert |= !polled[1].revents().is_empty();
        if !alert {
            continue;
        }
        let Ok(stat) = Stat::read_thread(agent, tracer) else { continue };
        let sample = Sample { beats, state: stat.state, cpu: TICK * stat.cpu_ticks as u32 };
        match judge.verdict(Instant::now(), sample) {
            Verdict::Lives => {}
            Verdict::Stopped => kill(&process, agent, "the tracer is stopped"),
            Verdict::Hangs if waits_for(tracer) => kill(&process, agent, "the tracer hangs"),
            Verdict::Hangs => {}
        }
    }
}

fn read_beat(memory: impl AsFd) -> Option<(u64, Tid)> {
    let mut bytes = [0_u8; 16];
    if pread(memory, &mut bytes, 0).ok()? != bytes.len() {
        return None;
    }
    let (beats, tracer) = bytes.split_at(8);
    Some((u64::from_ne_bytes(beats.try_into().ok()?), u64::from_ne_bytes(tracer.try_into().ok()?) as Tid))
}

fn kill(process: &OwnedFd, agent: u32, reason: &str) {
    tracing::error!(agent, reason, "killing the agent so that the application goes on; it will be restarted");
    // Fails only where the agent is gone, which the next poll shows.
    let _ = pidfd_send_signal(process, Signal::KILL);
}

/// Whether a thread that `tracer` traces stands still or has ended unheard.
fn waits_for(tracer: Tid) -> bool {
    proc::processes().into_iter().any(|pid| {
        proc::threads(pid).into_iter().any(|tid| {
            Stat::read_thread(pid, tid).is_ok_and(|stat| matches!(stat.state, 't' | 'T' | 'Z'))
                && Status::read(tid).is_ok_and(|status| status.tracer == tracer)
        })
    })
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    beats: u64,
    state: char,
    /// Processor time of the tracer so far.
    cpu: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Lives,
    Stopped,
    Hangs,
}

/// Decides from samples.
#[derive(Debug, Default)]
struct Judge {
    last: Option<(Instant, Sample)>,
    stopped: Duration,
    chance: Duration,
}

impl Judge {
    fn verdict(&mut self, now: Instant, sample: Sample) -> Verdict {
        let Some((then, last)) = self.last.replace((now, sample)) else { return Verdict::Lives };
        let elapsed = now.duration_since(then).min(SAMPLE);
        let stopped = |sample: &Sample| matches!(sample.state, 'T' | 't');
        self.stopped = if stopped(&last) && stopped(&sample) { self.stopped + elapsed } else { Duration::ZERO };
        if sample.beats != last.beats {
            self.chance = Duration::ZERO;
        } else if matches!((last.state, sample.state), ('S' | 'D', 'S' | 'D')) {
            self.chance += elapsed;
        } else {
            self.chance += sample.cpu.saturating_sub(last.cpu);
        }
        if self.stopped >= STOPPED {
            Verdict::Stopped
        } else if self.chance >= CHANCE {
            Verdict::Hangs
        } else {
            Verdict::Lives
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a sample every 10 ms for `count` periods and gives the time of the first verdict that
    /// is not `Lives`.
    fn first(count: u32, sample: impl Fn(u32) -> Sample) -> Option<(Duration, Verdict)> {
        let mut judge = Judge::default();
        let start = Instant::now();
        (0..count).find_map(|turn| match judge.verdict(start + PERIOD * turn, sample(turn)) {
            Verdict::Lives => None,
            verdict => Some((PERIOD * turn, verdict)),
        })
    }

    #[test]
    fn a_stopped_tracer_is_found_within_50_ms() {
        let found =
            first(100, |turn| Sample { beats: 1, state: if turn == 0 { 'S' } else { 'T' }, cpu: Duration::ZERO });
        assert_eq!(found, Some((Duration::from_millis(40), Verdict::Stopped)));
    }

    #[test]
    fn a_looping_and_a_sleeping_tracer_are_found_within_100_ms() {
        let loops = first(100, |turn| Sample { beats: 1, state: 'R', cpu: TICK * turn });
        assert_eq!(loops, Some((Duration::from_millis(50), Verdict::Hangs)));
        let sleeps = first(100, |_| Sample { beats: 1, state: 'S', cpu: Duration::ZERO });
        assert_eq!(sleeps, Some((Duration::from_millis(50), Verdict::Hangs)));
    }

    /// This test binary in another role, where the variable says so.
    fn command(role: &str) -> Command {
        let mut command = Command::new("/usr/bin/env");
        command.arg(format!("TASUKI_WATCHDOG_ROLE={role}")).arg(std::env::current_exe().unwrap()).args([
            "sensor::ptrace::watchdog::tests::role",
            "--exact",
            "--nocapture",
        ]);
        command
    }

    /// Not a test of its own: what the test below starts.
    #[test]
    fn role() {
        match std::env::var("TASUKI_WATCHDOG_ROLE").as_deref() {
            Ok("watchdog") => watchdog_main(std::env::args().next_back().unwrap().parse().unwrap()).unwrap(),
            Ok("tracer") => {
                let watchdog = command("watchdog");
                let watchdog = WatchdogCommand {
                    program: watchdog.get_program().into(),
                    arguments: watchdog.get_args().map(Into::into).collect(),
                };
                let mut heartbeat = Heartbeat::new().unwrap();
                let _watchdog = Watchdog::start(&watchdog, &heartbeat).unwrap();
                let application = std::env::var("TASUKI_APPLICATION").unwrap().parse().unwrap();
                super::super::sys::seize(application, 0).unwrap();
                super::super::sys::interrupt(application).unwrap();
                heartbeat.beat(rustix::thread::gettid().as_raw_nonzero().get() as Tid, Duration::from_millis(20));
                loop {
                    std::hint::spin_loop();
                }
            }
            _ => {}
        }
    }

    #[test]
    fn a_tracer_that_loops_is_killed_and_its_tracee_goes_on() {
        let mut application =
            Command::new("sh").args(["-c", "while :; do echo x; done"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut tracer = command("tracer")
            .env("TASUKI_APPLICATION", application.id().to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let status = tracer.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
        assert_eq!(Status::read(application.id()).unwrap().tracer, 0);
        // Far more than the pipe held when it stopped.
        let mut out = io::Read::take(application.stdout.take().unwrap(), 1 << 20);
        assert_eq!(io::copy(&mut out, &mut io::sink()).unwrap(), 1 << 20);
        application.kill().unwrap();
        application.wait().unwrap();
    }

    #[test]
    fn a_starved_tracer_and_a_busy_one_live() {
        assert_eq!(first(1000, |_| Sample { beats: 1, state: 'R', cpu: Duration::ZERO }), None);
        assert_eq!(first(1000, |turn| Sample { beats: u64::from(turn / 5), state: 'R', cpu: TICK * turn }), None);
    }

    #[test]
    fn a_pause_of_the_machine_is_no_hang() {
        let mut judge = Judge::default();
        let start = Instant::now();
        let sample = Sample { beats: 1, state: 'S', cpu: Duration::ZERO };
        judge.verdict(start, sample);
        assert_eq!(judge.verdict(start + Duration::from_secs(60), sample), Verdict::Lives);
    }
}
