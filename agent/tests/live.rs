//! The live half, on this machine: a process in a cgroup that is named as a container's, an ECS
//! agent that names it, its program's hash, and its end. Needs root, as the agent does.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use axum::Json;
use axum::routing::get;
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tasuki_agent::detect::{Engine, EngineCell};
use tasuki_agent::event::{CgroupId, Event, EventKind, Exec, ProcessKey};
use tasuki_agent::pipeline::{Pipeline, clock, world::World};
use tasuki_agent::process::snapshot;
use tasuki_agent::workload::Source;
use tasuki_api::agent::Policy;
use tasuki_api::coverage::Depth;
use tasuki_api::desired::Response;
use tasuki_api::finding::{Agent, Finding};

/// A cgroup that is removed, with its process, whatever becomes of the test.
struct Cgroup {
    path: PathBuf,
    child: Option<Child>,
}

impl Cgroup {
    fn make(id: &str) -> Self {
        let roots = tasuki_agent::workload::cgroup::Cgroups::of_this_machine();
        let path = roots.roots()[0].join("docker").join(id);
        std::fs::create_dir_all(&path).unwrap();
        Self { path, child: None }
    }

    fn id(&self) -> CgroupId {
        CgroupId(std::fs::metadata(&self.path).unwrap().ino())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir(&self.path);
        // Fails where somebody else's containers are below it, and then it must stay.
        let _ = std::fs::remove_dir(self.path.parent().unwrap());
    }
}

fn introspection(id: &str) -> String {
    let tasks = json!({ "Tasks": [{ "Arn": "arn:aws:ecs:eu-west-1:111122223333:task/prod/abc", "KnownStatus": "RUNNING",
        "Family": "shop", "Version": "3", "Containers": [{ "DockerId": id, "Name": "web", "Image": "shop:3" }] }] });
    let metadata = json!({ "Cluster": "prod", "ContainerInstanceArn": "arn:node", "Version": "x" });
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let router = axum::Router::new()
                .route("/v1/tasks", get(move || async move { Json(tasks) }))
                .route("/v1/metadata", get(move || async move { Json(metadata) }));
            axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), router).await.unwrap();
        });
    });
    format!("http://{address}")
}

/// Starts a program that is called like a miner in a mount namespace of its own, as a container's
/// process would be, and waits until it runs.
fn start(cgroup: &mut Cgroup, program: &str) -> (u32, ProcessKey) {
    let child = Command::new("unshare").args(["-m", program]).stdin(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    cgroup.child = Some(child);
    std::fs::write(cgroup.path.join("cgroup.procs"), pid.to_string()).unwrap();
    let exe = format!("/proc/{pid}/exe");
    while std::fs::read_link(&exe).unwrap() != std::path::Path::new(program) {
        std::thread::yield_now();
    }
    (pid, snapshot::key_of(pid).unwrap())
}

#[test]
fn a_miner_in_a_container_is_named_hashed_and_ended() {
    let id = format!("{:064x}", 0x7a5u64 << 20 | u64::from(std::process::id()));
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("xmrig");
    std::fs::copy("/bin/cat", &program).unwrap();
    let program = program.to_str().unwrap();
    let mut cgroup = Cgroup::make(&id);
    let world = World::live(Source::Introspection(introspection(&id))).unwrap();
    let tasks = world.workloads.tasks_handle();
    let (pid, key) = start(&mut cgroup, program);

    let mut policy = Policy::default();
    policy.response.insert("Impact:Runtime/CryptoMinerExecuted".into(), Response::Kill);
    let (sink, found) = std::sync::mpsc::channel::<Finding>();
    let agent = Agent { version: "0".into(), depth: Depth::Full, sensor: "test".into() };
    let engine = EngineCell::new(Engine::compile(&policy).unwrap());
    let pipeline = Pipeline::new(world, engine, agent, Box::new(sink), 1);
    let (output, events) = std::sync::mpsc::sync_channel(4);
    let worker = std::thread::spawn(move || pipeline.run(&events));
    let exec = Exec {
        parent: snapshot::key_of(std::process::id()).unwrap(),
        filename: program.to_owned(),
        arguments: vec![program.to_owned()],
        file: snapshot::file_id(&format!("/proc/{pid}/exe")),
        mount_namespace: tasuki_agent::workload::cgroup::namespace_of(pid, "mnt").unwrap(),
        pid_namespace: tasuki_agent::workload::cgroup::namespace_of(pid, "pid").unwrap(),
        ..Exec::default()
    };
    let kind = EventKind::Exec(Box::new(exec));
    output
        .send(vec![Event { time: clock::since_boot(), process: Some(key), cgroup: Some(cgroup.id()), kind }])
        .unwrap();

    let finding = loop {
        let finding = found.recv_timeout(Duration::from_secs(60)).unwrap();
        if finding.kind == "Impact:Runtime/CryptoMinerExecuted" {
            break finding;
        }
    };
    let container = finding.resource.container.unwrap();
    assert_eq!((container.name.as_str(), container.id.as_str()), ("web", id.as_str()));
    assert_eq!(finding.resource.cluster.as_deref(), Some("prod"));
    let process = finding.process.unwrap();
    let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &std::fs::read("/bin/cat").unwrap());
    assert_eq!(process.sha256, Some(hex::encode(expected)));
    assert_eq!(process.user.as_deref(), Some("root"));
    assert_eq!(finding.response.done, Some(true), "{:?}", finding.response);
    let mut child = cgroup.child.take().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(tasks.tasks(), ["arn:aws:ecs:eu-west-1:111122223333:task/prod/abc"]);
    drop(output);
    worker.join().unwrap();
}
