//! A room: PID, mount and network namespace of its own, gone with everything in it at the end.

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Nothing here takes this long, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives something.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The room, held open by its init.
pub struct Room {
    holder: Child,
    init: u32,
    /// For the files of a test.
    pub directory: tempfile::TempDir,
}

impl Room {
    pub fn new() -> Self {
        let holder = Command::new("unshare")
            .args(["--pid", "--mount", "--net", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", "ip link set lo up; echo open; while :; do sleep 1000; done"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut room = Self { holder, init: 0, directory: tempfile::tempdir().unwrap() };
        let mut line = String::new();
        BufReader::new(room.holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "open\n", "the room did not open");
        let children = format!("/proc/{0}/task/{0}/children", room.holder.id());
        room.init = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
        room
    }

    /// A command in the room. Its parent is outside: nobody in the room forked it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init.to_string(), "-p", "-m", "-n", "--"]).arg(program);
        command
    }

    pub fn sh(&self, script: &str) -> App {
        let mut command = self.command("sh");
        // A group of its own, whose parent is outside it: an orphaned group, which the test's own may be, ignores SIGTSTP.
        command.args(["-c", script]).stdin(Stdio::piped()).process_group(0);
        App(command.spawn().unwrap())
    }

    /// Starts this binary in the room in a role.
    pub fn agent(&self, role: &str, environment: &[(&str, &str)]) -> Agent {
        let mut command = self.command(std::env::current_exe().unwrap());
        command.args(["role", "--exact", "--nocapture"]).env("TASUKI_ROLE", role);
        command.envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut agent = Agent::new(command.spawn().unwrap());
        let ready = agent.wait_for("ready", |line| line["kind"] == "ready");
        agent.pid = self.outer(ready["pid"].as_u64().unwrap());
        agent
    }

    /// The id, outside, of what has this id in the room.
    pub fn outer(&self, inner: u64) -> u32 {
        let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(self.init);
        let ids = std::fs::read_dir("/proc").unwrap().flatten();
        ids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| namespace(*pid) == own)
            .find(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
                    let line = status.lines().find(|line| line.starts_with("NSpid:"));
                    line.and_then(|line| line.split_ascii_whitespace().next_back()) == Some(&inner.to_string())
                })
            })
            .unwrap()
    }

    pub fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// The length of a file that an application writes to, as a measure of its progress.
    pub fn progress(&self, name: &str) -> u64 {
        std::fs::metadata(self.directory.path().join(name)).map_or(0, |file| file.len())
    }

    /// Waits until the application has gone on.
    pub fn goes_on(&self, name: &str) {
        let before = self.progress(name);
        until("the application to go on", || (self.progress(name) > before + 20).then_some(()));
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // The init's end is the end of everything in the room.
        kill(self.init, "KILL");
        let _ = self.holder.wait();
    }
}

/// Sends a signal.
pub fn kill(pid: u32, signal: &str) {
    let status = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -{signal} {pid}");
}

/// The state letter of a process.
pub fn state(pid: u32) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ")?.1.chars().next()
}

/// Whether something traces a process.
pub fn is_traced(pid: u32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
}

/// An application in the room; nsenter is its parent, and must end first, because it stops with
/// its child and then reaps nothing, for which the end of the room would wait.
pub struct App(pub Child);

impl App {
    /// Writes a line to its standard input, for which it waits.
    pub fn go(&mut self) {
        writeln!(self.0.stdin.as_mut().unwrap(), "go").unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An agent in the room.
pub struct Agent {
    child: Child,
    /// Its id outside.
    pub pid: u32,
    lines: Arc<(Mutex<Vec<Value>>, Condvar)>,
}

impl Agent {
    fn new(mut child: Child) -> Self {
        let lines = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let out = BufReader::new(child.stdout.take().unwrap());
        let shared = lines.clone();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Ok(line) = serde_json::from_str(&line) {
                    shared.0.lock().unwrap().push(line);
                    shared.1.notify_all();
                }
            }
        });
        Self { child, pid: 0, lines }
    }

    /// Waits for a line.
    pub fn wait_for(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        self.wait_for_count(what, 1, matches).remove(0)
    }

    /// Waits for so many lines.
    pub fn wait_for_count(&self, what: &str, count: usize, matches: impl Fn(&Value) -> bool) -> Vec<Value> {
        let (lines, changed) = &*self.lines;
        let mut lines = lines.lock().unwrap();
        let begun = Instant::now();
        loop {
            let found: Vec<Value> = lines.iter().filter(|line| matches(line)).cloned().collect();
            if found.len() >= count {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "{} of {count} {what}; seen: {lines:#?}", found.len());
            lines = changed.wait_timeout(lines, Duration::from_millis(100)).unwrap().0;
        }
    }

    /// Everything so far.
    pub fn seen(&self, matches: impl Fn(&Value) -> bool) -> Vec<Value> {
        self.lines.0.lock().unwrap().iter().filter(|line| matches(line)).cloned().collect()
    }

    pub fn tell(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    /// Asks for the families until they satisfy.
    pub fn families(&mut self, matches: impl Fn(&Value) -> bool) -> Value {
        until("the families to say so", || {
            let before = self.seen(|line| line["kind"] == "families").len();
            self.tell("families");
            let answer = self.wait_for_count("families", before + 1, |line| line["kind"] == "families").remove(before);
            matches(&answer).then_some(answer)
        })
    }

    pub fn wait(&mut self) {
        let _ = self.child.wait();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // nsenter; what it started ends with the room.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
