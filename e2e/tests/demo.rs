//! The demo is a test: it judges every step itself and ends with 0 only if all of them happened.

use std::process::Command;

#[test]
fn every_step_of_the_demo_happens() {
    let output = Command::new(env!("CARGO_BIN_EXE_tasuki-demo")).args(["--benign", "10"]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the demo ended with {}:\n{out}\n{err}", output.status);
}
