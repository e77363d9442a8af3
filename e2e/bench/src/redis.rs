//! redis-benchmark against a redis-server, pinned to a core each.

use crate::machine;
use crate::room::Room;
use anyhow::{Context, Result, ensure};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The server's core; the benchmark's and the loops' is the other.
const SERVER_CORE: &str = "0";
const CLIENT_CORE: &str = "1";

/// A running server.
pub struct Redis {
    child: Child,
    server: u32,
    port: String,
}

/// What one run gave.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Nanoseconds of wall time for a request, all connections together.
    pub request_ns: f64,
    /// Nanoseconds of the server's processor time for a request.
    pub server_ns: f64,
}

impl Redis {
    /// Starts one on loopback, on the host or in a room.
    pub fn start(room: Option<&Room>) -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port().to_string();
        drop(listener);
        let mut command = match room {
            Some(room) => room.command("taskset"),
            None => Command::new("taskset"),
        };
        command.args(["-c", SERVER_CORE, "redis-server", "--port", &port, "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("cannot start taskset (apt-get install util-linux)")?;
        let mut redis = Self { server: child.id(), child, port };
        let began = Instant::now();
        while std::net::TcpStream::connect(format!("127.0.0.1:{}", redis.port)).is_err() {
            ensure!(
                redis.child.try_wait()?.is_none() && began.elapsed() < Duration::from_secs(10),
                "redis-server does not start (apt-get install redis-server redis-tools)"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        if room.is_some() {
            redis.server = *machine::children(redis.server).first().context("redis-server has ended")?;
        }
        Ok(redis)
    }

    /// GETs over 50 connections, by a client on the host or in the same room: who shares a task's network is in the task.
    pub fn run(&self, room: Option<&Room>, requests: u32) -> Result<Run> {
        let before = machine::first_thread_ns(self.server)?;
        let mut command = match room {
            Some(room) => room.command("taskset"),
            None => Command::new("taskset"),
        };
        let output = command
            .args(["-c", CLIENT_CORE, "redis-benchmark", "-h", "127.0.0.1", "-p", &self.port])
            .args(["-t", "get", "-c", "50", "-n", &requests.to_string(), "--csv"])
            .output()
            .context("cannot start redis-benchmark (apt-get install redis-tools)")?;
        let server = machine::first_thread_ns(self.server)? - before;
        let text = String::from_utf8_lossy(&output.stdout);
        // "GET","123456.79","0.2",…
        let line = text
            .lines()
            .find(|line| line.starts_with("\"GET\""))
            .with_context(|| format!("redis-benchmark printed: {text}"))?;
        let rate = line.split(',').nth(1).map(|text| text.trim_matches('"'));
        let rate: f64 = rate.and_then(|text| text.parse().ok()).context("redis-benchmark gave no rate")?;
        Ok(Run { request_ns: 1e9 / rate, server_ns: server / f64::from(requests) })
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // What runs in a room ends with it; nsenter passes nothing on.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.server).unwrap_or(i32::MAX));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
