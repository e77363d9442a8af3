//! What one event costs between sensor and finding: `cargo run --release --example detect_cost`.
//!
//! Prints nanoseconds per event for facts and rules together, for events that match nothing.

use std::sync::Arc;
use std::time::Instant;
use tasuki_agent::detect::{Engine, EngineCell};
use tasuki_agent::event::{CgroupId, Connect, Event, EventKind, Exec, FileId, ProcessKey, Stdio, Transport};
use tasuki_agent::pipeline::Pipeline;
use tasuki_agent::pipeline::world::World;
use tasuki_agent::workload::ContainerPath;
use tasuki_api::agent::Policy;
use tasuki_api::coverage::Depth;
use tasuki_api::finding::{Agent, Finding};

const EVENTS: u32 = 20_000;

fn key(pid: u32) -> ProcessKey {
    ProcessKey { pid, start: u64::from(pid) * 10_000_000 }
}

fn exec(pid: u32, cgroup: u64) -> EventKind {
    let words = ["sh", "-c", "curl -fsS http://localhost:8080/health || exit 1"];
    EventKind::Exec(Box::new(Exec {
        parent: key(if cgroup == 7 { 10 } else { 1 }),
        filename: "/bin/sh".to_owned(),
        executable: Some("/usr/bin/dash".to_owned()),
        arguments: words.map(str::to_owned).to_vec(),
        cwd: Some("/app".to_owned()),
        file: Some(FileId { device: 1, inode: 42, ctime: 1, size: 125_688, links: 1, ..FileId::default() }),
        stdio: [Stdio::Pipe; 3],
        mount_namespace: cgroup,
        pid_namespace: cgroup,
        namespace_pid: pid,
        ..Exec::default()
    }))
}

fn measure(name: &str, kind: impl Fn(u32) -> EventKind, cgroup: u64) -> Result<(), Box<dyn std::error::Error>> {
    let mut world = World::recorded(0, None)?;
    world
        .workloads
        .learn(CgroupId(7), Some(Arc::new(ContainerPath { id: "c".repeat(64), ..ContainerPath::default() })));
    world.workloads.learn(CgroupId(1), None);
    let engine = EngineCell::new(Engine::compile(&Policy::default())?);
    let agent = Agent { version: "0".into(), depth: Depth::Full, sensor: "replay".into() };
    let (sink, found) = std::sync::mpsc::channel::<Finding>();
    let mut pipeline = Pipeline::new(world, engine, agent, Box::new(sink), 0);
    let event = |pid: u32, kind| Event {
        time: u64::from(pid) * 1_000_000,
        process: Some(key(pid)),
        cgroup: Some(CgroupId(cgroup)),
        kind,
    };
    pipeline.take(&[event(10, exec(10, cgroup))]);
    let events: Vec<Event> = (0..EVENTS).map(|n| event(100 + n, kind(100 + n))).collect();
    let start = Instant::now();
    events.chunks(256).for_each(|batch| pipeline.take(batch));
    let each = start.elapsed().as_nanos() / u128::from(EVENTS);
    pipeline.finish();
    println!("{name:<28} {each:>8} ns an event, {} findings", found.try_iter().count());
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let connect = |_| {
        EventKind::Connect(Connect { transport: Transport::Tcp, local: None, remote: ([192, 0, 2, 1], 443).into() })
    };
    measure("exec in a container", |pid| exec(pid, 7), 7)?;
    measure("exec on the host", |pid| exec(pid, 1), 1)?;
    measure("fork", |pid| EventKind::Fork { child: key(pid + 1) }, 7)?;
    measure("exit", |_| EventKind::Exit { code: 0 }, 7)?;
    measure("connect in a container", connect, 7)
}
