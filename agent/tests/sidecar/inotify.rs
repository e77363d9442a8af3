//! The inotify sensor, with a container that has a root of its own.

use crate::room::{App, Room, until};
use serde_json::Value;

fn is(line: &Value, operation: &str, path: &str) -> bool {
    line["kind"] == "file" && line["operation"] == operation && line["path"] == path
}

#[test]
fn sensitive_files_in_another_root_are_watched() {
    let room = Room::new();
    let root = room.path("root");
    for directory in ["etc/cron.d", "root", "home/dev/.ssh"] {
        std::fs::create_dir_all(format!("{root}/{directory}")).unwrap();
    }
    for file in ["etc/passwd", "etc/shadow"] {
        std::fs::write(format!("{root}/{file}"), "x\n").unwrap();
    }
    // A process whose root is the directory, as a container's is. It needs nothing in there.
    let script = format!("import os, time\nos.chroot({root:?})\nopen('/ready', 'w').close()\ntime.sleep(1000)");
    let _app = App(room.command("python3").args(["-c", &script]).spawn().unwrap());
    until("the container", || std::fs::metadata(format!("{root}/ready")).ok());
    let mut agent = room.agent("inotify", &[]);
    std::fs::write(format!("{root}/etc/passwd"), "evil\n").unwrap();
    agent.wait_for("the write", |line| is(line, "Write", "/etc/passwd"));
    std::fs::write(format!("{root}/etc/cron.d/job"), "* * * * *\n").unwrap();
    agent.wait_for("the new file", |line| is(line, "Create", "/etc/cron.d/job"));
    std::fs::write(format!("{root}/home/dev/.ssh/authorized_keys"), "ssh-ed25519\n").unwrap();
    agent.wait_for("the key", |line| is(line, "Write", "/home/dev/.ssh/authorized_keys"));
    std::fs::rename(format!("{root}/etc/cron.d/job"), format!("{root}/etc/ld.so.preload")).unwrap();
    agent.wait_for("the rename", |line| is(line, "Rename", "/etc/ld.so.preload"));
    std::fs::read(format!("{root}/etc/shadow")).unwrap();
    agent.wait_for("the reading", |line| is(line, "Open", "/etc/shadow"));
    // A directory that comes later is found by itself.
    std::fs::create_dir(format!("{root}/root/.ssh")).unwrap();
    until("the new directory to be watched", || {
        std::fs::write(format!("{root}/root/.ssh/key"), "x").unwrap();
        (!agent.seen(|line| is(line, "Write", "/root/.ssh/key")).is_empty()).then_some(())
    });
    std::fs::write(format!("{root}/etc/motd"), "harmless\n").unwrap();
    let families = agent.families(|answer| answer["families"][0]["counters"]["filtered"].as_u64() > Some(0));
    assert_eq!(families["state"]["whole"], true);
    assert!(agent.seen(|line| line["path"] == "/etc/motd").is_empty());
    assert!(agent.seen(|line| line["kind"] == "file").iter().all(|line| line["pid"].is_null()));
}
