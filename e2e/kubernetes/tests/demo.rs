//! The demo is a test: it judges every step itself and ends with 0 only if all of them happened.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests are tests")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// Each has a machine's worth of work.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn every_step_of_the_demo_happens() {
    let _turn = TURN.lock().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tasuki-demo-kubernetes"));
    let output = command.args(["--benign", "10"]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the demo ended with {}:\n{out}\n{err}", output.status);
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing_behind() {
    let _turn = TURN.lock().unwrap();
    let room = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tasuki-demo-kubernetes"));
    command.env("TMPDIR", room.path()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut demo = command.spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map_while(Result::ok);
    // Plane, nodes and the customer's pods run by then.
    let line = lines.find(|line| line.contains("web-node-1 runs at 10.202.")).expect("the demo ended by itself");
    let number = line.rsplit("10.202.").next().unwrap().split('.').next().unwrap();
    kill(Pid::from_raw(demo.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    lines.for_each(drop);
    assert_eq!(demo.wait().unwrap().code(), Some(1));

    let files: Vec<_> = std::fs::read_dir(room.path()).unwrap().collect();
    assert!(files.is_empty(), "{files:?}");
    assert!(!Path::new("/sys/class/net").join(format!("tsk-test-k{number}")).exists());
    let room = room.path().to_str().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(room), "{mounts}");
    let left: Vec<String> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|process| std::fs::read(process.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(room))
        .collect();
    assert!(left.is_empty(), "{left:#?}");
}
