//! The supervisor: restarts, and its promise to exit 0 within 2 s.

use crate::room::{kill, until};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};

/// A supervisor in its own process, over a shell script.
struct Supervisor {
    child: Child,
    directory: tempfile::TempDir,
}

impl Supervisor {
    fn start(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = script.replace("$DIR", &directory.path().display().to_string());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["role", "--exact", "--nocapture"]).env("TASUKI_ROLE", "supervisor").env("TASUKI_SCRIPT", script);
        // libtest has threads besides the one that plays the role; they must not take its signals.
        // SAFETY: between fork and exec only async-signal-safe system calls are made.
        unsafe {
            command.pre_exec(|| {
                let mut signals = SigSet::empty();
                for signal in [Signal::SIGTERM, Signal::SIGCHLD] {
                    signals.add(signal);
                }
                Ok(sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None)?)
            });
        }
        Self { child: command.spawn().unwrap(), directory }
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn wait_for_lines(&self, count: usize) -> Vec<String> {
        until("the child's lines", || Some(self.lines()).filter(|lines| lines.len() >= count))
    }

    fn terminate(&mut self) -> (ExitStatus, std::time::Duration) {
        kill(self.child.id(), "TERM");
        let begun = std::time::Instant::now();
        (self.child.wait().unwrap(), begun.elapsed())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gone(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_err() || stat.is_ok_and(|text| text.contains(") Z "))
}

#[test]
fn a_child_that_crashes_is_started_again_and_told_why() {
    let script = "echo \"$TASUKI_RESTARTS ${TASUKI_LAST_EXIT-none}\" >> $DIR/log; \
                  case $TASUKI_RESTARTS in 0) exit 101;; 1) kill -9 $$;; esac; exec sleep 1000";
    let mut supervisor = Supervisor::start(script);
    assert_eq!(supervisor.wait_for_lines(3), ["0 none", "1 exit code 101", "2 signal 9 (SIGKILL)"]);
    assert_eq!(supervisor.terminate().0.code(), Some(0));
}

#[test]
fn a_child_that_ignores_sigterm_is_killed_and_the_exit_is_0_within_2_s() {
    let mut supervisor = Supervisor::start("trap '' TERM; echo $$ >> $DIR/log; while :; do sleep 1; done");
    let child = supervisor.wait_for_lines(1).remove(0);
    let (status, took) = supervisor.terminate();
    assert_eq!(status.code(), Some(0));
    // The promise itself, and so the one time that a test here measures.
    assert!(took < std::time::Duration::from_secs(2), "{took:?}");
    assert!(gone(&child));
}

#[test]
fn sigterm_reaches_the_child_with_a_clean_signal_mask() {
    let script = "trap 'echo asked >> $DIR/log; exit 3' TERM; echo up >> $DIR/log; while :; do sleep 0.1; done";
    let mut supervisor = Supervisor::start(script);
    supervisor.wait_for_lines(1);
    assert_eq!(supervisor.terminate().0.code(), Some(0));
    assert_eq!(supervisor.lines(), ["up", "asked"]);
}

#[test]
fn sigterm_while_waiting_for_a_restart_is_obeyed() {
    let mut supervisor = Supervisor::start("echo $TASUKI_RESTARTS >> $DIR/log; exit 1");
    supervisor.wait_for_lines(4);
    assert_eq!(supervisor.terminate().0.code(), Some(0));
}

#[test]
fn orphans_are_reaped_and_the_child_dies_with_its_supervisor() {
    let mut supervisor =
        Supervisor::start("(sh -c 'echo $$ >> $DIR/log; sleep 0.2' &); echo $$ >> $DIR/log; exec sleep 1000");
    let pids = supervisor.wait_for_lines(2);
    until("the orphan to be reaped", || {
        pids.iter().any(|pid| std::fs::metadata(format!("/proc/{pid}")).is_err()).then_some(())
    });
    supervisor.child.kill().unwrap();
    supervisor.child.wait().unwrap();
    until("the child to die too", || pids.iter().all(|pid| gone(pid)).then_some(()));
}

#[test]
fn the_key_outlives_the_child_and_is_nobody_elses() {
    let script = "test -s $TASUKI_KEY_HOME || echo \"made by $TASUKI_RESTARTS\" > $TASUKI_KEY_HOME; \
                  cat $TASUKI_KEY_HOME >> $DIR/log; echo $TASUKI_KEY_HOME >> $DIR/log; ls -l /proc/self/fd | grep -c memfd:tasuki-key >> $DIR/log; \
                  case $TASUKI_RESTARTS in 0) kill -9 $$;; esac; exec sleep 1000";
    let mut supervisor = Supervisor::start(script);
    let lines = supervisor.wait_for_lines(6);
    assert_eq!([&lines[0], &lines[3]], ["made by 0", "made by 0"]);
    assert_eq!(lines[1], lines[4]);
    assert!(lines[1].starts_with(&format!("/proc/{}/fd/", supervisor.child.id())), "{lines:?}");
    assert_eq!(lines[2], "0", "the child opens it by its path and inherits nothing");
    assert_eq!(supervisor.terminate().0.code(), Some(0));
    assert!(std::fs::File::open(&lines[1]).is_err(), "it is gone with the supervisor");
}
