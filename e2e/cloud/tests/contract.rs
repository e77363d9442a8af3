//! The real AWS CLI against the binary; each response held against botocore's models.

use std::process::Command;

#[test]
fn the_aws_cli_finds_what_the_models_promise() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../contract/run.sh");
    let output = Command::new(script).arg(env!("CARGO_BIN_EXE_tasuki-cloud")).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("operations called"), "{text}");
}
