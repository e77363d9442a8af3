//! What the test binary does inside a room.

use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{BufRead, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use tasuki_agent::event::{Event, EventKind};
use tasuki_agent::sensor::Sensor;
use tasuki_agent::sensor::inotify::InotifySensor;
use tasuki_agent::sensor::network::NetworkSensor;
use tasuki_agent::sensor::outbox::Outbox;
use tasuki_agent::sensor::ptrace::{Limits, PtraceConfig, PtraceSensor, WatchdogCommand, watchdog_main};
use tasuki_agent::supervisor::run_program;

/// Plays a role to its end.
pub fn play(role: &str) {
    match role {
        "watchdog" => {
            let agent = std::env::args().next_back().unwrap().parse().unwrap();
            watchdog_main(agent).unwrap();
        }
        "ptrace" => agent(|output| Box::new(PtraceSensor::start(config(), Outbox::new(output)).unwrap())),
        "network" => agent(|output| Box::new(NetworkSensor::start(Outbox::new(output)).unwrap())),
        "inotify" => agent(|output| Box::new(InotifySensor::start(Outbox::new(output)).unwrap())),
        "flood" => flood(),
        "supervisor" => {
            let script = std::env::var_os("TASUKI_SCRIPT").unwrap();
            run_program(&"/bin/sh".into(), &["-c".into(), script]).unwrap();
        }
        role => panic!("no role {role}"),
    }
}

/// As many TCP segments over loopback as go, until standard input ends.
fn flood() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    sender.set_nodelay(true).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    std::thread::spawn(move || while receiver.read(&mut [0; 4096]).unwrap() > 0 {});
    std::thread::spawn(move || {
        loop {
            sender.write_all(b"x").unwrap();
        }
    });
    while std::io::stdin().read(&mut [0; 64]).unwrap() > 0 {}
}

fn config() -> PtraceConfig {
    let mut limits = Limits::default();
    if let Ok(limit) = std::env::var("TASUKI_LIMIT") {
        limits.signals_per_second = limit.parse().unwrap();
        limits.threads_per_second = limit.parse().unwrap();
    }
    if let Ok(threads) = std::env::var("TASUKI_THREADS") {
        limits.threads = threads.parse().unwrap();
    }
    let exe = std::env::current_exe().unwrap();
    let arguments = ["TASUKI_ROLE=watchdog".into(), exe.into_os_string()]
        .into_iter()
        .chain(["role", "--exact", "--nocapture"].map(OsString::from))
        .collect();
    PtraceConfig { watchdog: Some(WatchdogCommand { program: "/usr/bin/env".into(), arguments }), limits }
}

/// Prints each event as a line of JSON, and obeys `families` and `stop` on standard input.
fn agent(start: impl FnOnce(tasuki_agent::sensor::Output) -> Box<dyn Sensor>) {
    let (output, events) = sync_channel::<Vec<Event>>(1024);
    let mut sensor = start(output);
    say(&json!({"kind": "ready", "pid": std::process::id(), "whole": sensor.state().whole}));
    let printer = std::thread::spawn(move || {
        for event in events.into_iter().flatten() {
            say(&line(&event));
        }
    });
    for command in std::io::stdin().lock().lines() {
        match command.unwrap().as_str() {
            "families" => say(&json!({
                "kind": "families", "state": sensor.state(), "families": sensor.families(),
            })),
            "stop" => {
                sensor.stop();
                say(&json!({"kind": "stopped", "state": sensor.state()}));
            }
            command => panic!("no command {command}"),
        }
    }
    drop(sensor);
    printer.join().unwrap();
}

fn say(line: &Value) {
    // A new line first: libtest's own output may have left one unfinished.
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{line}").unwrap();
}

fn line(event: &Event) -> Value {
    let pid = event.process.map(|process| process.pid);
    match &event.kind {
        EventKind::Exec(exec) => json!({
            "kind": "exec", "pid": pid, "parent": exec.parent.pid, "arguments": exec.arguments,
            "filename": exec.filename, "executable": exec.executable, "script": exec.script, "cwd": exec.cwd,
            "memfd": exec.memfd, "stdio": format!("{:?}", exec.stdio), "euid": exec.credentials.euid,
            "previous": exec.previous_euid, "mounts": format!("mnt:[{}]", exec.mount_namespace),
            "pids": format!("pid:[{}]", exec.pid_namespace), "environment": exec.environment, "name": exec.name,
        }),
        EventKind::Fork { child } => json!({"kind": "fork", "pid": pid, "child": child.pid}),
        EventKind::Exit { code } => json!({"kind": "exit", "pid": pid, "code": code}),
        EventKind::Dns(packet) => json!({
            "kind": "dns", "pid": pid, "server": packet.server, "client": packet.client, "answer": packet.answer,
            "payload": String::from_utf8_lossy(&packet.payload),
        }),
        EventKind::File(file) => json!({
            "kind": "file", "pid": pid, "operation": format!("{:?}", file.operation), "path": file.path,
        }),
        other => json!({"kind": "other", "pid": pid, "text": format!("{other:?}")}),
    }
}
