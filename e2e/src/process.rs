//! Processes that end with their owner, and whose output goes to a file.
//!
//! Each has a process group of its own: what a Ctrl-C ends is the owner, which then ends them in an
//! order in which they can tidy up. Where the owner is killed, the kernel sends them SIGTERM; a process
//! must therefore be started by a thread that lives as long as it should.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A child process: SIGTERM on drop, SIGKILL ten seconds later.
#[derive(Debug)]
pub struct Process {
    name: String,
    command: Command,
    child: Child,
    /// Where its standard output and error go.
    pub log: PathBuf,
}

impl Process {
    /// Starts `command` with both outputs in `<directory>/<name>.log`.
    pub fn start(name: &str, mut command: Command, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        end_with_owner(&mut command);
        command.process_group(0).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = spawn(name, &mut command)?;
        Ok(Self { name: name.to_owned(), command, child, log })
    }

    /// Starts it again where it has ended, with the same arguments and the same log.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        self.child = spawn(&self.name, &mut self.command)?;
        Ok(())
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails, with the end of its log, if it has ended.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}); its log ends with:\n{}", self.name, self.tail()),
        }
    }

    /// Waits until `text` stands in its log; fails, with the end of the log, when it ends before or says nothing in time.
    pub async fn says(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if std::fs::read_to_string(&self.log)?.contains(text) {
                return Ok(());
            }
            self.alive()?;
            if Instant::now() > deadline {
                bail!("{} did not say {text:?} within {limit:?}; its log ends with:\n{}", self.name, self.tail());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The last 20 lines of its log.
    pub fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(pid(&self.child), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} did not end within {limit:?}; its log ends with:\n{}", self.name, self.tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it: SIGTERM, and SIGKILL after ten seconds.
    pub fn stop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Both fail only where it has just ended.
        let _ = self.signal(Signal::SIGTERM);
        if self.wait(Duration::from_secs(10)).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(name: &str, command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| format!("{name}: cannot start {:?}", command.get_program()))
}

/// Lets the kernel send SIGTERM to the process when the thread that starts it ends.
pub fn end_with_owner(command: &mut Command) {
    // SAFETY: prctl(2) is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?));
    }
}

fn pid(child: &Child) -> Pid {
    // A process id of Linux is at most 2^22.
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

/// Waits until `check` gives a value, asking every 100 ms; `what` names the condition in the error.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let deadline = Instant::now() + limit;
    loop {
        let last = check().await;
        match last {
            Ok(Some(value)) => return Ok(value),
            _ if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(100)).await,
            Ok(None) => bail!("gave up after {limit:?}: {what}"),
            Err(error) => return Err(error.context(format!("gave up after {limit:?}: {what}"))),
        }
    }
}
