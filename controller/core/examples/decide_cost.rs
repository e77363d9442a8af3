//! What deciding costs: 100 000 tasks in 1 000 clusters, in full and for one change.
//!
//! `cargo run --release -p tasuki-core --example decide_cost [TASKS] [CLUSTERS]`

use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tasuki_api::agent::{AgentKind, Heartbeat, SensorState, Usage};
use tasuki_api::coverage::Depth;
use tasuki_api::desired::{Document, Metadata, Object, RuntimeMonitorSpec};
use tasuki_core::action::{GatewaySpec, OWNER_TAG, SIDECAR};
use tasuki_core::decide::Decider;
use tasuki_core::desired::Desired;
use tasuki_core::fleet::*;
use tasuki_core::memory::Memory;

const NODES: usize = 5;
const SERVICES: usize = 10;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<usize>().ok());
    let (tasks, clusters) = (numbers.next().unwrap_or(100_000), numbers.next().unwrap_or(1_000));
    let now = Timestamp::now();
    let mut fleet = Fleet::new(now - SignedDuration::from_hours(1));

    let began = Instant::now();
    for c in 0..clusters {
        fill(&mut fleet, c, tasks / clusters, now);
    }
    let filled = began.elapsed();
    println!(
        "{} tasks, {} agents, {clusters} clusters; filling {filled:?}, {} MiB resident",
        fleet.task_count(),
        fleet.agent_count(),
        resident()
    );

    let gateway = GatewaySpec::default();
    let (desired, problems) = Desired::compile(&[monitor()], gateway, false, |_| "policy".to_owned());
    println!("problems: {}", problems.len());
    let mut decider = Decider::new(Arc::new(desired), Memory::default());
    let first = time(1, || drop(decider.decide_all(&fleet, now)));
    println!("first decision {first:?}");
    let full = time(15, || drop(decider.decide_all(&fleet, now)));
    println!("full decision, median of 15: {full:?}");
    let counts = decider.tally().counts(None);
    println!("{counts:?}");

    let mut versions = 100;
    let mut one = |what: &str, mut change: Box<dyn FnMut(usize, i64) -> Change>| {
        let (mut apply, mut decide) = (Vec::new(), Vec::new());
        for i in 0..2_000 {
            versions += 1;
            let change = change(i % clusters, versions);
            let start = Instant::now();
            let applied = fleet.apply(change, now);
            apply.push(start.elapsed());
            let start = Instant::now();
            drop(decider.decide(&fleet, &applied, now));
            decide.push(start.elapsed());
        }
        println!(
            "{what}: apply {:?}, decide {:?} (p99 {:?})",
            median(&mut apply),
            median(&mut decide),
            p99(&mut decide)
        );
    };
    one("one task", Box::new(move |c, version| Change::Task(Box::new(task(c, 3, now, version)))));
    one(
        "one unchanged node heartbeat",
        Box::new(move |c, _| Change::Agent(Box::new(report(c, 0, tasks / clusters, now)))),
    );
    one(
        "one service",
        Box::new(move |c, version| {
            let mut service = service(c, 1);
            service.running = version as u32;
            Change::Service(Box::new(service))
        }),
    );
    one(
        "one node (its whole cluster)",
        Box::new(move |c, version| {
            let mut node = node(c, 1);
            node.version = version;
            Change::Node(Box::new(node))
        }),
    );
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}
fn p99(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() * 99 / 100]
}

fn time(rounds: usize, mut work: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    median(&mut times)
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn arn(kind: &str, cluster: usize, id: &str) -> Str {
    format!("arn:aws:ecs:eu-west-1:111122223333:{kind}/cluster-{cluster:04}/{id}").into()
}
fn cluster_arn(cluster: usize) -> Str {
    format!("arn:aws:ecs:eu-west-1:111122223333:cluster/cluster-{cluster:04}").into()
}

/// Odd clusters run on Fargate, even ones on EC2.
fn fill(fleet: &mut Fleet, c: usize, tasks: usize, now: Timestamp) {
    let mut put = |change| drop(fleet.apply(change, now));
    put(Change::Cluster(Box::new(Cluster {
        arn: cluster_arn(c),
        name: format!("cluster-{c:04}").into(),
        scope: ScopeId { account: "111122223333".into(), region: "eu-west-1".into() },
        aws_scope: "prod".into(),
        tags: BTreeMap::new(),
        capacity_providers: vec![],
    })));
    for s in 0..SERVICES {
        put(Change::Service(Box::new(service(c, s))));
    }
    for t in 0..tasks {
        put(Change::Task(Box::new(task(c, t, now, 3))));
    }
    if c.is_multiple_of(2) {
        let mut daemon = service(c, 0);
        (daemon.arn, daemon.name, daemon.daemon) = (arn("service", c, "tasuki"), "tasuki".into(), true);
        daemon.tags.insert(OWNER_TAG.into(), "prod".into());
        put(Change::Service(Box::new(daemon)));
        for n in 0..NODES {
            put(Change::Node(Box::new(node(c, n))));
            let mut agent = task(c, n, now, 3);
            agent.arn = arn("task", c, &format!("agent-{n}"));
            agent.group = "service:tasuki".into();
            put(Change::Task(Box::new(agent)));
            put(Change::Agent(Box::new(report(c, n, tasks, now))));
        }
    } else {
        for t in (0..tasks).filter(|t| !t.is_multiple_of(10)) {
            let mut report = report(c, 0, 0, now);
            (report.task, report.kind, report.node) = (arn("task", c, &id(t)), AgentKind::Sidecar, None);
            report.heartbeat.tasks = vec![report.task.to_string()];
            put(Change::Agent(Box::new(report)));
        }
    }
}

fn id(t: usize) -> String {
    format!("{:032x}", t.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn service(c: usize, s: usize) -> Service {
    let definition: Str = format!("arn:aws:ecs:eu-west-1:111122223333:task-definition/service-{s}:1").into();
    Service {
        arn: arn("service", c, &format!("service-{s}")),
        cluster: cluster_arn(c),
        name: format!("service-{s}").into(),
        definition,
        active: true,
        controller: DeploymentController::Ecs,
        strategy: Strategy::Rolling,
        daemon: false,
        launch: if c.is_multiple_of(2) { LaunchType::Ec2 } else { LaunchType::Fargate },
        desired: 10,
        running: 10,
        minimum_healthy: 100,
        maximum: 200,
        has_hooks: false,
        express: false,
        deployments: vec![],
        tags: BTreeMap::from([("env".to_owned(), "prod".to_owned())]),
        platform_version: None,
        subnets: vec![],
        security_groups: vec![],
        events: vec![],
        created_at: None,
    }
}

fn task(c: usize, t: usize, now: Timestamp, version: i64) -> Task {
    let service = t % SERVICES;
    let fargate = !c.is_multiple_of(2);
    let container = |name: &str| Container {
        name: name.into(),
        arn: format!("arn:aws:ecs:eu-west-1:111122223333:container/cluster-{c:04}/{}/{name}", id(t)).into(),
        runtime_id: Some(id(t).into()),
        image: format!("111122223333.dkr.ecr.eu-west-1.amazonaws.com/service-{service}:1").into(),
        image_digest: Some(format!("sha256:{service:064x}").into()),
        status: "RUNNING".into(),
        exit_code: None,
        reason: None,
    };
    let mut containers = vec![container("app")];
    if fargate && !t.is_multiple_of(10) {
        containers.push(container(SIDECAR));
    }
    Task {
        arn: arn("task", c, &id(t)),
        cluster: cluster_arn(c),
        group: format!("service:service-{service}").into(),
        started_by: Some(format!("ecs-svc/{service:019}").into()),
        definition: format!("arn:aws:ecs:eu-west-1:111122223333:task-definition/service-{service}:1").into(),
        launch: if fargate { LaunchType::Fargate } else { LaunchType::Ec2 },
        platform_version: fargate.then(|| "1.4.0".into()),
        platform_family: Some("Linux".into()),
        architecture: Some("x86_64".into()),
        node: (!fargate).then(|| arn("container-instance", c, &(t % NODES).to_string())),
        containers,
        status: TaskStatus::Running,
        desired_stopped: false,
        version,
        created_at: Some(now - SignedDuration::from_mins(30)),
        started_at: Some(now - SignedDuration::from_mins(30)),
        stopped_at: None,
        stop_code: None,
        stopped_reason: None,
        address: None,
    }
}

fn node(c: usize, n: usize) -> Node {
    Node {
        arn: arn("container-instance", c, &n.to_string()),
        cluster: cluster_arn(c),
        instance_id: Some(format!("i-{n:017}").into()),
        active: true,
        connected: true,
        attributes: BTreeMap::from([("ecs.os-type".to_owned(), "linux".to_owned())]),
        free_memory: 1024,
        free_cpu: 512,
        launch: LaunchType::Ec2,
        version: 1,
    }
}

fn report(c: usize, n: usize, tasks: usize, now: Timestamp) -> AgentReport {
    AgentReport {
        task: arn("task", c, &format!("agent-{n}")),
        kind: AgentKind::Node,
        node: Some(arn("container-instance", c, &n.to_string())),
        image_digest: None,
        received_at: now,
        conflict: None,
        heartbeat: Heartbeat {
            time: now,
            started_at: now,
            version: "1.4.2".into(),
            sensors: vec![SensorState { name: "ebpf".into(), whole: true, detail: None }],
            depth: Depth::Full,
            kernel: "6.1.0".into(),
            policy: "policy".into(),
            tasks: (0..tasks).filter(|t| t % NODES == n).map(|t| arn("task", c, &id(t)).to_string()).collect(),
            families: vec![],
            unavailable: vec![],
            usage: Usage::default(),
            restarts: 0,
            last_exit: None,
        },
    }
}

fn monitor() -> Document {
    let spec: RuntimeMonitorSpec = serde_json::from_value(serde_json::json!({
        "mode": "Enforce",
        "targets": {"ecs": {"clusters": {"include": ["cluster-*"]}, "tags": {"include": {"env": ["prod"]}}}},
        "agent": {"version": "1.4.2", "minimumVersion": "1.3.0",
            "image": {"repository": "111122223333.dkr.ecr.{region}.amazonaws.com/tasuki-agent", "digest": format!("sha256:{}", "a".repeat(64))}},
        "ecs": {"fargate": {"delivery": "Live"}},
    }))
    .unwrap_or_default();
    let metadata = Metadata { name: "prod".into(), ..Metadata::default() };
    Document::RuntimeMonitor(Box::new(Object { metadata, spec }))
}
