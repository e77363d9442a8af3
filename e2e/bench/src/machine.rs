//! What this machine is, and what a process on it takes.

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

/// Kernel, processor, cores, memory.
pub fn describe() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
    let model = model.trim_start_matches([' ', '\t', ':']).trim();
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let memory = read("/proc/meminfo");
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or("").trim();
    let mib = memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024;
    let model = if model.is_empty() { "processor without a name" } else { model };
    format!("{model}, {cores} cores, {mib} MiB, Linux {kernel} ({})", std::env::consts::ARCH)
}

/// The commit that lies in the working directory.
pub fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    if text.is_empty() { "unknown".to_owned() } else { text }
}

/// Load average of the last minute.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// A field of /proc/PID/status in MiB.
fn status_mib(pid: u32, field: &str) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: f64 = line.trim_start_matches(':').split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}

/// Resident memory, MiB.
pub fn resident(pid: u32) -> Result<f64> {
    status_mib(pid, "VmRSS").with_context(|| format!("process {pid} is gone"))
}

/// The most that was ever resident, MiB.
pub fn peak(pid: u32) -> Result<f64> {
    status_mib(pid, "VmHWM").with_context(|| format!("process {pid} is gone"))
}

/// Processor time of a process, its ended threads included, seconds.
pub fn processor_seconds(pid: u32) -> Result<f64> {
    let text =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    // Fields 14 and 15 of proc(5); the name before them may hold spaces.
    let after = text.rsplit_once(')').map(|(_, after)| after).unwrap_or_default();
    let ticks: f64 = after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the machine has no clock tick")?;
    Ok(ticks / per_second as f64)
}

/// How long ago a process began, seconds.
pub fn age(pid: u32) -> Result<f64> {
    let text =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    // Field 22 of proc(5), in ticks since the machine began; as in `processor_seconds`.
    let after = text.rsplit_once(')').map(|(_, after)| after).unwrap_or_default();
    let began: f64 = after.split_whitespace().nth(19).and_then(|field| field.parse().ok()).context("no start time")?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the machine has no clock tick")?;
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    let now: f64 = uptime.split(' ').next().and_then(|text| text.parse().ok()).context("no uptime")?;
    Ok(now - began / per_second as f64)
}

/// Processor time of a process's first thread, nanoseconds.
pub fn first_thread_ns(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))
        .with_context(|| format!("process {pid} is gone, or the kernel keeps no schedstat"))?;
    text.split(' ').next().and_then(|text| text.parse().ok()).context("schedstat has another form")
}

/// Children of a process's first thread.
pub fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Processes whose command line begins with this program's name.
pub fn running(program: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).next() == Some(program.as_bytes())
    })
    .collect()
}

/// This program, to be run as a part.
pub fn part(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(own()?);
    command.arg("part").args(words);
    Ok(command)
}

/// Path of this program.
pub fn own() -> Result<PathBuf> {
    std::env::current_exe().context("this program's own path is unknown")
}

/// Runs a command to its end and parses what it printed.
pub fn answer(mut command: Command) -> Result<Value> {
    let output = command.output().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    anyhow::ensure!(
        output.status.success(),
        "{:?} ended with {}: {}",
        command.get_args().collect::<Vec<_>>(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).with_context(|| format!("{:?} printed: {text}", command.get_program()))
}

/// A number of an answer.
pub fn number(value: &Value, name: &str) -> Result<f64> {
    value.get(name).and_then(Value::as_f64).with_context(|| format!("the answer has no number `{name}`: {value}"))
}
