//! Every built-in rule, tried on events that must match and on events that must not, through the
//! whole pipeline. The cases are in agent/rules/tests, one file per rule file; this reads them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use tasuki_agent::detect::{Engine, EngineCell};
use tasuki_agent::event::{
    CgroupId, Connect, Credentials, DnsPacket, Event, EventKind, Exec, FileEvent, FileId, FileOperation, ProcessKey,
    Stdio, Transport,
};
use tasuki_agent::pipeline::Pipeline;
use tasuki_agent::pipeline::world::World;
use tasuki_agent::workload::{ContainerPath, Description};
use tasuki_api::agent::Policy;
use tasuki_api::coverage::Depth;
use tasuki_api::finding::{Agent, Finding};

const SECOND: u64 = 1_000_000_000;
/// The container's cgroup; its first process is PID 10, which runs /app/server.
const CONTAINER: CgroupId = CgroupId(7);
const HOST: CgroupId = CgroupId(1);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    it: String,
    #[serde(default)]
    policy: Policy,
    events: Vec<Step>,
    #[serde(default)]
    finds: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Words {
    Line(String),
    List(Vec<String>),
}

/// One event in short form; exactly one of the first group is given.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Step {
    exec: Option<Words>,
    connect: Option<SocketAddr>,
    listen: Option<u16>,
    ask: Option<String>,
    answer: Option<String>,
    write: Option<String>,
    file: Option<FileEvent>,
    become_root: bool,
    exit: bool,
    /// Seconds that pass before the event.
    wait: u64,

    pid: Option<u32>,
    parent: Option<u32>,
    host: bool,
    unseen: bool,
    path: Option<String>,
    script: Option<String>,
    cwd: Option<String>,
    uid: u32,
    euid: Option<u32>,
    previous_euid: Option<u32>,
    memfd: bool,
    inode: u64,
    links: Option<u32>,
    mode: u32,
    upper: Option<bool>,
    /// Seconds after the container's start at which the file was last changed.
    ctime: Option<i64>,
    env: BTreeMap<String, String>,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    addresses: Vec<IpAddr>,
    saw_root: bool,
}

fn key(pid: u32) -> ProcessKey {
    ProcessKey { pid, start: 100 * SECOND + u64::from(pid) * 10_000_000 }
}

fn dns(id: u16, name: &str, answers: &[IpAddr]) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend(if answers.is_empty() { [0x01, 0x00] } else { [0x81, 0x80] });
    bytes.extend([0, 1]);
    bytes.extend(u16::try_from(answers.len()).unwrap().to_be_bytes());
    bytes.extend([0; 4]);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    for answer in answers {
        let IpAddr::V4(v4) = answer else { panic!("only A records here") };
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        bytes.extend(v4.octets());
    }
    bytes
}

impl Step {
    fn event(self, time: u64) -> Event {
        let pid = self.pid.unwrap_or(20);
        let cgroup = Some(if self.host { HOST } else { CONTAINER });
        let process = (!self.unseen).then(|| key(pid));
        let server: SocketAddr = "10.0.0.2:53".parse().unwrap();
        let client: IpAddr = "10.0.0.9".parse().unwrap();
        let packet = |answer: bool, payload| EventKind::Dns(Box::new(DnsPacket { server, client, answer, payload }));
        let kind = if self.exec.is_some() {
            EventKind::Exec(Box::new(self.program(pid)))
        } else if let Some(remote) = self.connect {
            EventKind::Connect(Connect { transport: Transport::Tcp, local: None, remote })
        } else if let Some(port) = self.listen {
            EventKind::Listen { transport: Transport::Tcp, local: ([0, 0, 0, 0], port).into() }
        } else if let Some(name) = &self.ask {
            packet(false, dns(1, name, &[]))
        } else if let Some(name) = &self.answer {
            packet(true, dns(1, name, &self.addresses))
        } else if let Some(path) = &self.write {
            let file = (self.inode != 0).then(|| FileId { inode: self.inode, ..FileId::default() });
            let (operation, path, target) = (FileOperation::Write, path.clone(), None);
            EventKind::File(Box::new(FileEvent { operation, path, target, file }))
        } else if let Some(file) = self.file {
            EventKind::File(Box::new(file))
        } else if self.become_root {
            let old = Credentials { uid: self.uid, euid: self.uid, ..Credentials::default() };
            let new = Credentials { euid: 0, capabilities: u64::MAX, ..old };
            EventKind::Credentials { old, new }
        } else {
            assert!(self.exit, "an event without a kind");
            EventKind::Exit { code: 0 }
        };
        Event { time, process, cgroup, kind }
    }

    fn program(&self, pid: u32) -> Exec {
        let arguments: Vec<String> = match self.exec.as_ref().unwrap() {
            Words::Line(line) => line.split_whitespace().map(str::to_owned).collect(),
            Words::List(list) => list.clone(),
        };
        let path = self.path.clone().unwrap_or_else(|| match &arguments[0] {
            first if first.starts_with('/') => first.clone(),
            first => format!("/usr/bin/{}", first.trim_start_matches('-')),
        });
        let euid = self.euid.unwrap_or(self.uid);
        Exec {
            parent: key(self.parent.unwrap_or(10)),
            namespace_pid: pid,
            filename: path.clone(),
            executable: Some(path),
            script: self.script.clone(),
            arguments,
            cwd: self.cwd.clone(),
            environment: self.env.clone().into_iter().collect(),
            credentials: Credentials { uid: self.uid, euid, ..Credentials::default() },
            previous_euid: self.previous_euid.unwrap_or(euid),
            file: Some(FileId {
                inode: if self.inode == 0 { 1_000 + u64::from(pid) } else { self.inode },
                ctime: self.ctime.map_or(1, |seconds| (100 + seconds) * 1_000_000_000),
                links: self.links.unwrap_or(1),
                mode: self.mode,
                upper: self.upper,
                ..FileId::default()
            }),
            memfd: self.memfd,
            stdio: [self.stdin.unwrap_or(Stdio::Other), self.stdout.unwrap_or(Stdio::Other), Stdio::Other],
            mount_namespace: if self.host { 1 } else { 5 },
            pid_namespace: if self.host { 1 } else { 6 },
            ..Exec::default()
        }
    }
}

fn run(case: Case) -> Vec<Finding> {
    // Most cases need no policy of their own, and compiling one takes a debug build a while.
    static DEFAULT: LazyLock<EngineCell> =
        LazyLock::new(|| EngineCell::new(Engine::compile(&Policy::default()).unwrap()));
    let engine = match case.policy == Policy::default() {
        true => DEFAULT.clone(),
        false => EngineCell::new(Engine::compile(&case.policy).unwrap()),
    };
    let problems = engine.load().problems().to_vec();
    assert!(problems.is_empty(), "{}: {problems:?}", case.it);
    let mut world = World::recorded(0, Some(1)).unwrap();
    let id = "c0ffee".repeat(10);
    let path = ContainerPath { id: id.clone(), task_id: None, pod_uid: None };
    world.workloads.learn(CONTAINER, Some(Arc::new(path)));
    world.workloads.learn(HOST, None);
    world.workloads.learn_names(Description { id, name: "web".into(), ..Description::default() });
    // Inode 666 is the file whose hash a case lists.
    let bad = FileId { inode: 666, ctime: 1, links: 1, ..FileId::default() };
    world.hasher.learn(&bad, [0x66; 32]);
    let (sink, found) = std::sync::mpsc::channel();
    let agent = Agent { version: "0".into(), depth: Depth::Full, sensor: "replay".into() };
    let mut pipeline = Pipeline::new(world, engine, agent, Box::new(sink), 0);
    let mut time = 101 * SECOND;
    let first = [
        Step {
            exec: Some(Words::Line("containerd-shim".into())),
            pid: Some(5),
            parent: Some(1),
            host: true,
            ..Step::default()
        },
        Step { exec: Some(Words::Line("/app/server".into())), pid: Some(10), parent: Some(5), ..Step::default() },
    ];
    for step in first.into_iter().chain(case.events) {
        time += SECOND * step.wait + SECOND / 100;
        pipeline.take(&[step.event(time)]);
    }
    pipeline.finish();
    found.try_iter().collect()
}

/// Through JSON, in whose form enums are written in recordings too.
fn read(text: &str) -> Result<Vec<Case>, Box<dyn std::error::Error>> {
    Ok(serde_json::from_value(serde_yaml::from_str(text)?)?)
}

fn check(file: &Path) -> usize {
    let text = std::fs::read_to_string(file).unwrap();
    let cases = read(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let count = cases.len();
    let mut wrong = Vec::new();
    for case in cases {
        let (it, expected) = (case.it.clone(), case.finds.clone());
        let found = run(case);
        let kinds: BTreeSet<String> = found.iter().map(|finding| finding.kind.clone()).collect();
        if kinds != expected {
            wrong.push(format!("{}: {it}\n  expected {expected:?}\n  found    {kinds:?}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    count
}

#[test]
fn every_rule_matches_what_it_must_and_nothing_else() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("rules/tests");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let results: Vec<_> = files.iter().map(|file| (file, std::panic::catch_unwind(|| check(file)))).collect();
    let failed: Vec<_> = results.iter().filter(|(_, result)| result.is_err()).map(|(file, _)| file).collect();
    assert!(failed.is_empty(), "see above: {failed:?}");
    let cases: usize = results.into_iter().map(|(_, result)| result.unwrap()).sum();
    assert!(cases >= 60, "only {cases} cases");
}

#[test]
fn a_finding_about_a_question_carries_its_answer() {
    let case = r#"[{"it": "x", "events": [{"ask": "gulf.moneroocean.stream", "pid": 10},
        {"answer": "gulf.moneroocean.stream", "addresses": ["203.0.113.9"], "unseen": true},
        {"exec": "/bin/true", "pid": 30}]}]"#;
    let found = run(read(case).unwrap().remove(0));
    assert_eq!(found.len(), 1, "{found:?}");
    let dns = found[0].dns.as_ref().unwrap();
    assert_eq!(
        (dns.question.as_str(), dns.answers.as_slice()),
        ("gulf.moneroocean.stream", &["203.0.113.9".parse().unwrap()][..])
    );
    assert_eq!(found[0].process.as_ref().unwrap().executable, "/app/server");
}

#[test]
fn every_rule_file_has_cases_that_match_and_cases_that_do_not() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("rules");
    let mut tested = BTreeSet::new();
    for entry in std::fs::read_dir(rules.join("tests")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let cases = read(&text).unwrap();
        tested.extend(cases.into_iter().flat_map(|case| case.finds));
    }
    let engine = Engine::compile(&Policy::default()).unwrap();
    for rule in engine.rules() {
        assert!(tested.contains(&rule.kind), "no case finds {}", rule.kind);
    }
    for entry in std::fs::read_dir(&rules).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let cases = rules.join("tests").join(path.file_name().unwrap());
            let text = std::fs::read_to_string(&cases).unwrap_or_else(|_| panic!("{} is missing", cases.display()));
            let cases = read(&text).unwrap();
            assert!(cases.iter().any(|case| case.finds.is_empty()), "{}: no case that finds nothing", path.display());
        }
    }
}
