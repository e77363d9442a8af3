//! The controller as a process on this machine, and its command line beside it.

use crate::http;
use crate::process::{Process, until};
use crate::world::binaries;
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A controller; dropping it ends it.
#[derive(Debug)]
pub struct Controller {
    process: Process,
    /// Where its API, its metrics and its page are: `http://127.0.0.1:port`.
    pub web: String,
    /// Where it keeps its own files, the token of its API among them.
    pub state: PathBuf,
}

impl Controller {
    /// Starts `tasuki run` with the arguments and environment that `settings` adds, with its state in
    /// `<directory>/<name>` and its log beside it, and waits until it is ready.
    ///
    /// # Errors
    /// With the end of its log, where it ends or is not ready within a minute.
    pub async fn start(directory: &Path, name: &str, settings: impl FnOnce(&mut Command)) -> Result<Self> {
        let mut controller = Self::waiting(directory, name, settings)?;
        controller.ready().await?;
        Ok(controller)
    }

    /// The same without waiting: for one that is to wait for another to end.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn waiting(directory: &Path, name: &str, settings: impl FnOnce(&mut Command)) -> Result<Self> {
        let (port, state) = (free_port()?, directory.join(name));
        let mut command = Command::new(binaries()?.join("tasuki"));
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("AWS_") {
                command.env_remove(variable);
            }
        }
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        command.arg("run").arg("--state-dir").arg(&state).args(["--listen", &format!("127.0.0.1:{port}")]);
        settings(&mut command);
        let process = Process::start(name, command, directory)?;
        Ok(Self { process, web: format!("http://127.0.0.1:{port}"), state })
    }

    /// Waits until it has read everything once.
    ///
    /// # Errors
    /// With the end of its log.
    pub async fn ready(&mut self) -> Result<()> {
        let url = format!("{}/readyz", self.web);
        let ready = until("the controller has read everything once", Duration::from_secs(60), || {
            let alive = self.process.alive();
            let url = url.clone();
            async move {
                // That it has ended is an answer, not a reason to ask again.
                if alive.is_err() {
                    return Ok(Some(alive));
                }
                Ok(http::send("GET", &url, "").await.ok().map(|_| Ok(())))
            }
        });
        let ready = ready.await;
        ready.and_then(|answer| answer).map_err(|error| error.context(self.log()))
    }

    /// Ends it with SIGKILL, as a crash would.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(Duration::from_secs(10)).map(drop)
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        format!("the controller's log ends with:\n{}", self.process.tail())
    }

    /// Runs `tasuki` with these arguments, as a user would; returns exit code and both outputs.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub fn tasuki(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let output = Command::new(binaries()?.join("tasuki"))
            .args(arguments)
            .env("TASUKI_SERVER", &self.web)
            .env("TASUKI_STATE_DIR", &self.state)
            .env("COLUMNS", "150")
            .output()?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((output.status.code().unwrap_or(-1), text))
    }

    /// Runs `tasuki … -o json` and parses its answer.
    ///
    /// # Errors
    /// Where it cannot be run, or says anything else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let all = [arguments, &["-o", "json"]].concat();
        let (code, text) = self.tasuki(&all)?;
        serde_json::from_str(&text)
            .with_context(|| format!("`tasuki {}` ended with {code} and said: {text}", all.join(" ")))
    }
}

/// A port of loopback that was free a moment ago.
///
/// # Errors
/// Where there is none.
pub fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    if port == 0 {
        bail!("no free port on loopback");
    }
    Ok(port)
}
