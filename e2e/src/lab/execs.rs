//! New programs, executed one by one, with the time just before each.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DIRECTORY: &str = "/tmp/execs";

/// `FROM COUNT PACE_MS`: prints `PATH MICROSECONDS` (since 1970) for each.
pub fn run(args: &[String]) -> io::Result<()> {
    let number = |at: usize| args.get(at).and_then(|text| text.parse::<u64>().ok());
    let (Some(from), Some(count), Some(pace)) = (number(0), number(1), number(2)) else {
        return Err(io::Error::other("usage: execs FROM COUNT PACE_MS"));
    };
    std::fs::create_dir_all(DIRECTORY)?;
    let mut out = io::stdout().lock();
    for number in from..from + count {
        let path = format!("{DIRECTORY}/program-{number}");
        // Small and static, so that hashing two hundred of them stays within the agent's budget.
        std::fs::copy("/bin/busybox", &path)?;
        std::thread::sleep(Duration::from_millis(pace));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
        let mut program = Command::new(&path);
        // Long enough for an agent that comes a few milliseconds later to read the program.
        program.arg0("sleep").arg("0.05").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        program.status()?;
        writeln!(out, "{path} {}", now.as_micros())?;
    }
    Ok(())
}
