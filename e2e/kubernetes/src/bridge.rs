//! The network of one control plane: a bridge of the host with an address.

use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tasuki_e2e::process::Process;

/// A bridge; removed on drop.
#[derive(Debug)]
pub struct Bridge {
    /// The plane's number N: `10.201.N.1` is the host.
    pub number: u8,
    process: Process,
}

impl Bridge {
    /// Makes the first one that is free.
    pub async fn start(directory: &Path) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", include_str!("bridge.sh")]);
        let mut process = Process::start("bridge", command, directory)?;
        process.says("is up", Duration::from_secs(10)).await.context("cannot make a bridge; are you root?")?;
        let log = std::fs::read_to_string(&process.log)?;
        let number = log.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        Ok(Self { number: number.with_context(|| format!("no number of a bridge in {log:?}"))?, process })
    }

    /// Its link's name.
    pub fn name(&self) -> String {
        format!("tsk-test-k{}", self.number)
    }

    /// The host's address.
    pub fn host(&self) -> String {
        format!("10.201.{}.1", self.number)
    }

    /// Removes it.
    pub fn stop(&mut self) {
        self.process.stop();
    }
}
