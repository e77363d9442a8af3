//! The demo is a test: it judges every step itself and ends with 0 only if all of them happened.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// One demo at a time: its network has one name.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn every_step_of_the_demo_happens() {
    let _turn = TURN.lock().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tasuki-demo")).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the demo ended with {}:\n{out}\n{err}", output.status);
    nothing_is_left();
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing_behind() {
    let _turn = TURN.lock().unwrap();
    let mut demo =
        Command::new(env!("CARGO_BIN_EXE_tasuki-demo")).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map_while(Result::ok);
    // Engine, cloud, controller and the customer's containers run by then.
    assert!(lines.any(|line| line.contains("every task has the verdict")), "the demo ended by itself");
    kill(Pid::from_raw(demo.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    lines.for_each(drop);
    assert_eq!(demo.wait().unwrap().code(), Some(1));
    nothing_is_left();
}

/// No network, mount or process of the local cloud.
fn nothing_is_left() {
    let devices = std::fs::read_to_string("/proc/net/dev").unwrap();
    assert!(!devices.contains("tasuki-cloud"), "{devices}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let left: Vec<_> = mounts.lines().filter(|line| line.contains("/tasuki-") && line.contains("/docker/")).collect();
    assert!(left.is_empty(), "{left:#?}");
}
