//! A room: PID and mount namespace of its own, as the containers of a task share one; gone with everything in it at the
//! end. What runs in it may do what a container may by default, the agent also trace.

use crate::machine;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Docker's and containerd's default capabilities, which Fargate's are too.
const CONTAINER: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";

/// The room, held open by its init.
pub struct Room {
    holder: Child,
    init: u32,
}

impl Room {
    /// Opens one.
    pub fn open() -> Result<Self> {
        let mut holder = Command::new("unshare")
            .args(["--pid", "--mount", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", "echo open; while :; do sleep 1000; done"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start unshare (apt-get install util-linux)")?;
        let mut line = String::new();
        let output = holder.stdout.take().context("unshare has no output")?;
        let mut room = Self { holder, init: 0 };
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line == "open\n", "the room did not open; it needs root");
        room.init = *machine::children(room.holder.id()).first().context("the room has no init")?;
        Ok(room)
    }

    /// A command of the application in the room. It becomes the child of an nsenter outside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.with(CONTAINER, program)
    }

    /// The agent in the room, which has SYS_PTRACE besides.
    pub fn agent(&self, program: impl AsRef<OsStr>) -> Command {
        self.with(&format!("{CONTAINER},+sys_ptrace"), program)
    }

    fn with(&self, capabilities: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init.to_string(), "-p", "-m", "--"]);
        command.args(["setpriv", "--inh-caps", "-all", "--bounding-set", capabilities]).arg(program);
        command
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // The init's end is the end of everything in the room. It fails only where it has ended.
        let _ = kill(Pid::from_raw(i32::try_from(self.init).unwrap_or(i32::MAX)), Signal::SIGKILL);
        let _ = self.holder.wait();
    }
}
