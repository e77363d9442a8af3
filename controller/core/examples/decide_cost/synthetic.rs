//! A fleet as large as the largest customer's: half of the clusters on EC2, half on Fargate.

use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;
use tasuki_api::agent::{AgentKind, Heartbeat, SensorState, Usage};
use tasuki_api::coverage::Depth;
use tasuki_api::desired::{Document, Metadata, Object, RuntimeMonitorSpec};
use tasuki_core::action::{GatewaySpec, OWNER_TAG, SIDECAR};
use tasuki_core::decide::Decider;
use tasuki_core::desired::Desired;
use tasuki_core::fleet::*;
use tasuki_core::memory::Memory;

/// Nodes in a cluster.
const NODES: usize = 5;
/// Services in a cluster.
const SERVICES: usize = 10;

/// The fleet.
pub fn fleet(tasks: usize, clusters: usize, now: Timestamp) -> Fleet {
    let mut fleet = Fleet::new(now - SignedDuration::from_hours(1));
    for c in 0..clusters {
        fill(&mut fleet, c, tasks / clusters, now);
    }
    fleet
}

/// A decider with one monitor on everything, which has decided nothing.
pub fn decider() -> Decider {
    let (desired, problems) = Desired::compile(&[monitor()], GatewaySpec::default(), false, |_| "policy".to_owned());
    assert!(problems.is_empty(), "{problems:?}");
    Decider::new(Arc::new(desired), Memory::default())
}

/// A change in cluster `c`: of a `task`, a `service`, a `node`, or a node's `heartbeat`.
pub fn change(kind: &str, c: usize, version: usize, tasks: usize, now: Timestamp) -> Change {
    match kind {
        "task" => Change::Task(Box::new(task(c, 3, now, version as i64))),
        "service" => {
            let running = u32::try_from(version).unwrap_or(u32::MAX);
            Change::Service(Box::new(Service { running, ..service(c, 1) }))
        }
        "node" => Change::Node(Box::new(Node { version: version as i64, ..node(c, 1) })),
        // Even clusters have nodes.
        _ => Change::Agent(Box::new(report(c - c % 2, 0, tasks, now))),
    }
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
        turned_at: None,
        attributes: BTreeMap::from([("ecs.os-type".to_owned(), "linux".to_owned())]),
        taints: Vec::new(),
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
        heartbeat_seconds: 15,
        address_verified: true,
        signed: true,
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
