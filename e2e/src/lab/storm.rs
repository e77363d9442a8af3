//! Fork and exec on every core at once.

use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `SECONDS`: prints how many programs ran.
pub fn run(args: &[String]) -> io::Result<()> {
    let seconds = args.first().and_then(|text| text.parse().ok());
    let seconds = seconds.ok_or_else(|| io::Error::other("usage: storm SECONDS"))?;
    let until = Instant::now() + Duration::from_secs(seconds);
    // Twice as many as cores: while one waits for its child another forks.
    let threads = std::thread::available_parallelism()?.get() * 2;
    let workers: Vec<_> = (0..threads).map(|_| std::thread::spawn(move || work(until))).collect();
    let mut ran = 0;
    for worker in workers {
        ran += worker.join().map_err(|_| io::Error::other("a worker of the storm broke"))??;
    }
    println!("{ran}");
    Ok(())
}

fn work(until: Instant) -> io::Result<u64> {
    let mut ran = 0;
    while Instant::now() < until {
        let mut program = Command::new("/bin/busybox");
        program.arg("true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ran += 1;
    }
    Ok(ran)
}
