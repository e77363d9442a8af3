//! New programs, executed one by one, with the time just before each.

use std::io::{self, Write};
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
    let own = std::env::current_exe()?;
    let mut out = io::stdout().lock();
    for number in from..from + count {
        let path = format!("{DIRECTORY}/program-{number}");
        std::fs::copy(&own, &path)?;
        std::thread::sleep(Duration::from_millis(pace));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
        let mut program = Command::new(&path);
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // It knows no part of this name and says so; that it ran is all that is wanted.
        program.status()?;
        writeln!(out, "{path} {}", now.as_micros())?;
    }
    Ok(())
}
