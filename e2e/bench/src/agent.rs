//! An agent on this machine that needs no controller: `tasuki-agent run --stdout`.

use crate::machine;
use crate::room::Room;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tasuki_e2e::world::binaries;

/// Loading programs, or seizing a room, takes a second or two.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running agent: SIGTERM on drop.
pub struct Agent {
    child: Child,
    pid: u32,
    findings: PathBuf,
    log: PathBuf,
}

/// Counts of one event family.
#[derive(Clone, Copy, Debug, Default)]
pub struct Balance {
    /// Events that the hooks met.
    pub seen: u64,
    /// Handed to the agent.
    pub submitted: u64,
    /// Dropped by a filter on purpose.
    pub filtered: u64,
    /// Lost, and counted.
    pub lost: u64,
}

impl Agent {
    /// Starts one with this sensor, on the host or in a room, and waits until it watches.
    pub fn start(sensor: &str, room: Option<&Room>, directory: &Path) -> Result<Self> {
        let program = binaries()?.join("tasuki-agent");
        let mut command = match room {
            Some(room) => room.agent(&program),
            None => Command::new(&program),
        };
        let (findings, log) = (directory.join("agent.jsonl"), directory.join("agent.log"));
        command.args(["run", "--stdout", "--sensor", sensor]).env("RUST_LOG", "info").stdin(Stdio::null());
        command.stdout(File::create(&findings)?).stderr(File::create(&log)?);
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut agent = Self { pid: child.id(), child, findings, log };
        agent.wait_for("watching")?;
        if room.is_some() {
            agent.pid = *machine::children(agent.pid).first().context("the agent in the room has ended")?;
        }
        Ok(agent)
    }

    /// Waits for a word in its log.
    fn wait_for(&mut self, word: &str) -> Result<()> {
        let began = Instant::now();
        while !self.text().contains(word) {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended ({status}): {}", self.text());
            }
            if began.elapsed() > PATIENCE {
                bail!("the agent did not say `{word}` in {PATIENCE:?}: {}", self.text());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Processor time so far, seconds.
    pub fn processor_seconds(&self) -> Result<f64> {
        machine::processor_seconds(self.pid)
    }

    /// Findings so far.
    pub fn findings(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.findings).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Ends it; the balance of each family that it told at its end.
    pub fn stop(mut self) -> Result<Vec<(String, Balance)>> {
        self.end();
        let text = self.text();
        let families: Vec<_> = text.lines().filter(|line| line.contains(" balance ")).filter_map(balance).collect();
        anyhow::ensure!(!families.is_empty(), "the agent told no balance at its end: {text}");
        Ok(families)
    }

    fn end(&mut self) {
        // Both fail only where it has ended already.
        let _ = kill(Pid::from_raw(i32::try_from(self.pid).unwrap_or(i32::MAX)), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

/// A line of the agent's log: `… balance family="exec" seen=1 submitted=1 filtered=0 lost=0`.
fn balance(line: &str) -> Option<(String, Balance)> {
    let field = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let number = |name| field(name).and_then(|text| text.parse().ok());
    let balance = Balance {
        seen: number("seen")?,
        submitted: number("submitted")?,
        filtered: number("filtered")?,
        lost: number("lost")?,
    };
    Some((field("family")?.trim_matches('"').to_owned(), balance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balance_is_read_from_a_log_line() {
        let line = "2026-11-24T13:00:00Z  INFO tasuki_agent::cli::report: balance family=\"exec\" seen=9 submitted=7 filtered=1 lost=1";
        let (family, balance) = balance(line).unwrap();
        assert_eq!((family.as_str(), balance.seen, balance.submitted, balance.lost), ("exec", 9, 7, 1));
        assert!(super::balance("balance family=\"exec\" seen=x").is_none());
    }
}
