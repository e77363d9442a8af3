//! Loops of one system call each, and of fork+exec+exit, pinned to one core.

use crate::machine;
use crate::stats::median;
use anyhow::{Context, Result};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The loops, as the answer of [`part`] names them.
pub const NAMES: [&str; 4] = ["getppid", "read", "pipe", "exec"];
/// Parts of a loop, of whose times the median counts: an interruption spoils one.
const CHUNKS: usize = 20;

/// Nanoseconds for one turn of each loop, on core `core`. `scale` is thousands of system calls in
/// a chunk.
pub fn part(core: usize, scale: usize) -> Result<Value> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(Pid::from_raw(0), &cores).with_context(|| format!("cannot stay on core {core}"))?;
    // A sensor that follows processes needs a moment to meet this one.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let turns = scale * 1000;
    let getppid = each(turns, || {
        std::hint::black_box(nix::unistd::getppid());
        Ok(())
    })?;
    let zero = std::fs::File::open("/dev/zero")?;
    let mut byte = [0_u8];
    let read = each(turns, || Ok(rustix::io::read(&zero, &mut byte).map(drop)?))?;
    let (reader, writer) = nix::unistd::pipe()?;
    let pipe = each(turns / 2, || {
        rustix::io::write(&writer, &[1])?;
        Ok(rustix::io::read(&reader, &mut byte).map(drop)?)
    })?;
    // Static, so that it is the exec that is measured and not the dynamic linker.
    let exec = each((scale * 4).max(4), || {
        let mut command = Command::new("/bin/busybox");
        command.arg("true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().context("/bin/busybox is missing (apt-get install busybox-static)")?;
        anyhow::ensure!(status.success(), "/bin/busybox true ended with {status}");
        Ok(())
    })?;
    Ok(json!({"getppid": getppid, "read": read, "pipe": pipe, "exec": exec}))
}

fn each(turns: usize, mut turn: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut chunks = Vec::with_capacity(CHUNKS);
    for _ in 0..CHUNKS {
        let began = Instant::now();
        for _ in 0..turns {
            turn()?;
        }
        chunks.push(began.elapsed().as_nanos() as f64 / turns as f64);
    }
    Ok(median(&chunks))
}

/// Times of an answer of [`part`], in the order of [`NAMES`].
pub fn times(answer: &Value) -> Result<Vec<f64>> {
    NAMES.iter().map(|name| machine::number(answer, name)).collect()
}
