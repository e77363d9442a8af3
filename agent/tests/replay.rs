//! Recordings: what was recorded is found again, byte for byte, and rules can be tried on it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use tasuki_agent::detect::{Engine, EngineCell};
use tasuki_agent::event::{CgroupId, Event, EventKind, Exec, FileId, ProcessKey};
use tasuki_agent::pipeline::Pipeline;
use tasuki_agent::pipeline::world::World;
use tasuki_agent::sensor::replay::{self, Recorder};
use tasuki_agent::workload::{ContainerPath, Description, TaskNames};
use tasuki_api::agent::Policy;
use tasuki_api::coverage::Depth;
use tasuki_api::desired::{DetectionRuleSpec, Response, RuleFinding};
use tasuki_api::finding::{Agent, Finding, Severity};

fn exec(pid: u32, time: u64, line: &str) -> Event {
    let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let exec = Exec {
        parent: ProcessKey { pid: 10, start: 0 },
        filename: arguments[0].clone(),
        arguments,
        file: Some(FileId { inode: u64::from(pid), links: 1, ..FileId::default() }),
        mount_namespace: 5,
        pid_namespace: 6,
        ..Exec::default()
    };
    let process = Some(ProcessKey { pid, start: time - time % 10_000_000 });
    Event { time, process, cgroup: Some(CgroupId(7)), kind: EventKind::Exec(Box::new(exec)) }
}

fn agent() -> Agent {
    Agent { version: "0".into(), depth: Depth::Full, sensor: "replay".into() }
}

fn world() -> World {
    let mut world = World::recorded(1_700_000_000_000_000_000, Some(1)).unwrap();
    let path = ContainerPath { id: "ab".repeat(32), task_id: Some("t".into()), pod_uid: None };
    let arn = "arn:aws:ecs:eu-west-1:111122223333:task/prod/t".to_owned();
    let task = Some(Arc::new(TaskNames { arn, definition: Some("shop:1".into()), ..TaskNames::default() }));
    world.workloads.learn_names(Description {
        id: path.id.clone(),
        name: "web".into(),
        task,
        ..Description::default()
    });
    world.workloads.learn(CgroupId(7), Some(Arc::new(path)));
    world
}

fn record(directory: &Path) -> PathBuf {
    let path = directory.join("events.jsonl");
    let world = world();
    let recorder = Recorder::create(&path, &world).unwrap();
    let (sink, _found) = std::sync::mpsc::channel();
    let engine = EngineCell::new(Engine::compile(&Policy::default()).unwrap());
    let mut pipeline = Pipeline::new(world, engine, agent(), Box::new(sink), 0).with_recorder(recorder);
    pipeline.take(&[exec(20, 1_000_000_000, "/bin/true"), exec(21, 2_000_000_000, "/opt/xmrig --coin=monero")]);
    pipeline.take(&[exec(22, 3_000_000_000, "/opt/xmrig"), exec(23, 70_000_000_000, "/opt/xmrig")]);
    pipeline.finish();
    path
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tasuki-agent")).args(arguments).env("RUST_LOG", "error").output().unwrap()
}

#[test]
fn the_same_bytes_give_the_same_findings() {
    let directory = tempfile::tempdir().unwrap();
    let path = record(directory.path());
    let arguments = ["run", "--events", path.to_str().unwrap()];
    let (one, two) = (run(&arguments), run(&arguments));
    assert!(one.status.success(), "{}", String::from_utf8_lossy(&one.stderr));
    assert_eq!(one.stdout, two.stdout);
    let findings: Vec<Finding> =
        one.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let counts: Vec<u64> = findings.iter().map(|finding| finding.count).collect();
    assert_eq!(counts, [1, 3], "at once, and again after a minute");
    assert_eq!(findings[0].id, findings[1].id);
    let resource = &findings[0].resource;
    assert_eq!(resource.container.as_ref().unwrap().name, "web");
    assert_eq!((resource.account.as_deref(), resource.region.as_deref()), (Some("111122223333"), Some("eu-west-1")));
    assert_eq!(findings[0].process.as_ref().unwrap().executable, "/opt/xmrig");
    assert_eq!(findings[0].first_seen.to_string(), "2023-11-14T22:13:22Z");
}

#[test]
fn a_rule_of_the_user_s_is_tried_on_a_recording() {
    let directory = tempfile::tempdir().unwrap();
    let events = record(directory.path());
    let rule = directory.path().join("TrueExecuted.yaml");
    let text = "title: Seen\nlogsource: {product: linux, category: process_creation}\n\
                detection: {s: {Image|endswith: /true}, condition: s}\nlevel: low\n";
    std::fs::write(&rule, text).unwrap();
    let output = run(&["rules", "test", "--events", events.to_str().unwrap(), rule.to_str().unwrap()]);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(
        printed.starts_with("4 events, 2 findings") && printed.contains("Custom:Runtime/TrueExecuted"),
        "{printed}"
    );
    std::fs::write(&rule, text.replace("Image", "Imgae")).unwrap();
    let output = run(&["rules", "test", "--events", events.to_str().unwrap(), rule.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("\"Imgae|endswith\"") || error.contains("\"Imgae\" is no fact"), "{error}");
}

#[test]
fn a_file_that_is_no_recording_is_refused_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.jsonl");
    std::fs::write(&path, "{\"header\":{\"version\":1}}\nnonsense\n").unwrap();
    let output = run(&["run", "--events", path.to_str().unwrap()]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("x.jsonl:2: not a line of a recording"));
    std::fs::write(&path, "{\"header\":{\"version\":99}}\n").unwrap();
    assert!(matches!(replay::world(&path), Err(replay::RecordingError::Version { found: 99, .. })));
}

#[test]
fn a_policy_is_swapped_between_two_events_and_each_meets_exactly_one() {
    let (sink, found) = std::sync::mpsc::channel();
    let cell = EngineCell::new(Engine::compile(&Policy::default()).unwrap());
    let mut pipeline = Pipeline::new(world(), cell.clone(), agent(), Box::new(sink), 0);
    pipeline.take(&[exec(21, 1_000_000_000, "/opt/xmrig")]);
    let kind = "Impact:Runtime/CryptoMinerExecuted".to_owned();
    let mut policy = Policy { serial: 2, ..Policy::default() };
    policy.rules.severity.insert(kind.clone(), Severity::Critical);
    policy.response.insert(kind.clone(), Response::Kill);
    cell.swap(Engine::compile(&policy).unwrap());
    pipeline.take(&[exec(22, 2_000_000_000, "/opt/xmrig")]);
    policy.rules.disable.push(kind);
    cell.swap(Engine::compile(&policy).unwrap());
    pipeline.take(&[exec(23, 3_000_000_000, "/opt/xmrig")]);
    pipeline.finish();
    let findings: Vec<Finding> = found.try_iter().collect();
    let severities: Vec<Severity> = findings.iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Severity::High, Severity::Critical]);
    let response = &findings[1].response;
    assert_eq!((response.wanted, response.done), (Response::Kill, Some(false)), "nothing is done about a recording");
}

#[test]
fn a_correlation_counts_over_the_events_own_time() {
    let sigma = "title: Base\nname: base\nid: base\nlogsource: {product: linux, category: process_creation}\n\
                 detection: {s: {Image|endswith: /id}, condition: s}\nlevel: low\n---\n\
                 title: Many\nid: many\ncorrelation:\n  type: event_count\n  rules: [base]\n  group-by: [container.id]\n  \
                 timespan: 60s\n  condition: {gte: 3}\nlevel: high\n";
    let many = |seconds: &[u64]| {
        let (sink, found) = std::sync::mpsc::channel();
        let engine = Engine::compile(&engine_policy(sigma)).unwrap();
        assert!(engine.problems().is_empty(), "{:?}", engine.problems());
        let mut pipeline = Pipeline::new(world(), EngineCell::new(engine), agent(), Box::new(sink), 0);
        for second in seconds {
            pipeline.take(&[exec(30, second * 1_000_000_000, "/usr/bin/id")]);
        }
        pipeline.finish();
        found.try_iter().filter(|finding: &Finding| finding.kind == "Custom:Runtime/Many").count()
    };
    assert_eq!(many(&[1, 2, 3]), 1);
    assert_eq!(many(&[1, 100, 200]), 0);
}

fn engine_policy(sigma: &str) -> Policy {
    let finding = RuleFinding { kind: "Custom:Runtime/Many".into(), severity: None };
    Policy {
        custom: vec![DetectionRuleSpec { sigma: sigma.into(), finding, response: Response::Alert }],
        ..Policy::default()
    }
}

#[test]
fn a_broken_rule_is_named_and_leaves_the_others_in_force() {
    let engine = Engine::compile(&engine_policy("title: [")).unwrap();
    assert_eq!(engine.problems()[0].kind, "Custom:Runtime/Many");
    assert_eq!(engine.rules().len(), Engine::compile(&Policy::default()).unwrap().rules().len());
    assert!(engine.unavailable(&[]).iter().any(|one| one.kind == "Custom:Runtime/Many"));
}
