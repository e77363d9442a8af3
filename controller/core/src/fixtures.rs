//! Builders for tests: a small world with everything in its usual state.

use crate::action::{GatewaySpec, OWNER_TAG, SIDECAR};
use crate::desired::Desired;
use crate::fleet::*;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;
use tasuki_api::agent::{AgentKind, Heartbeat, SensorState, Usage};
use tasuki_api::coverage::Depth;
use tasuki_api::desired::{Document, Metadata, Object, RuntimeMonitorSpec};

pub const CLUSTER: &str = "arn:aws:ecs:eu-west-1:111122223333:cluster/prod";
pub const VERSION: &str = "1.4.2";

/// Seconds after the beginning of the tests' time.
pub fn at(seconds: i64) -> Timestamp {
    "2026-11-24T12:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
}

pub fn scope() -> ScopeId {
    ScopeId { account: "111122223333".into(), region: "eu-west-1".into() }
}

pub fn cluster() -> Change {
    Change::Cluster(Box::new(Cluster {
        arn: CLUSTER.into(),
        name: "prod".into(),
        scope: scope(),
        aws_scope: "prod-accounts".into(),
        tags: BTreeMap::new(),
        capacity_providers: vec![],
    }))
}

pub fn task_arn(id: &str) -> Str {
    format!("arn:aws:ecs:eu-west-1:111122223333:task/prod/{id}").into()
}
pub fn service_arn(name: &str) -> Str {
    format!("arn:aws:ecs:eu-west-1:111122223333:service/prod/{name}").into()
}
pub fn node_arn(id: &str) -> Str {
    format!("arn:aws:ecs:eu-west-1:111122223333:container-instance/prod/{id}").into()
}
pub fn definition_arn(name: &str) -> Str {
    format!("arn:aws:ecs:eu-west-1:111122223333:task-definition/{name}").into()
}

pub fn container(name: &str) -> Container {
    Container {
        name: name.into(),
        arn: format!("arn:c/{name}").into(),
        runtime_id: Some("r".into()),
        image: "img".into(),
        image_digest: None,
        status: "RUNNING".into(),
        exit_code: None,
        reason: None,
    }
}

/// A running Fargate task of a service, started at second 0.
pub fn task(id: &str, service: &str) -> Task {
    Task {
        arn: task_arn(id),
        cluster: CLUSTER.into(),
        group: format!("service:{service}").into(),
        started_by: None,
        definition: definition_arn(&format!("{service}:1")),
        launch: LaunchType::Fargate,
        platform_version: Some("1.4.0".into()),
        platform_family: Some("Linux".into()),
        architecture: Some("x86_64".into()),
        node: None,
        containers: vec![container("app")],
        status: TaskStatus::Running,
        desired_stopped: false,
        version: 3,
        created_at: Some(at(0)),
        started_at: Some(at(0)),
        stopped_at: None,
        stop_code: None,
        stopped_reason: None,
        address: None,
    }
}

pub fn on_node(mut task: Task, node: &str) -> Task {
    (task.launch, task.node) = (LaunchType::Ec2, Some(node_arn(node)));
    task
}

pub fn with_sidecar(mut task: Task) -> Task {
    task.containers.push(container(SIDECAR));
    task
}

pub fn service(name: &str) -> Service {
    let definition = definition_arn(&format!("{name}:1"));
    Service {
        arn: service_arn(name),
        cluster: CLUSTER.into(),
        name: name.into(),
        active: true,
        controller: DeploymentController::Ecs,
        strategy: Strategy::Rolling,
        daemon: false,
        launch: LaunchType::Fargate,
        desired: 2,
        running: 2,
        minimum_healthy: 100,
        maximum: 200,
        has_hooks: false,
        express: false,
        deployments: vec![deployment(&definition, RolloutState::Completed)],
        definition,
        tags: BTreeMap::new(),
        platform_version: None,
        subnets: vec![],
        security_groups: vec![],
        events: vec![],
        created_at: Some(at(0)),
    }
}

pub fn deployment(definition: &Str, rollout: RolloutState) -> Deployment {
    Deployment {
        id: format!("ecs-svc/{}", definition.len()).into(),
        primary: true,
        definition: definition.clone(),
        rollout,
        rollout_reason: None,
        desired: 2,
        pending: 0,
        running: 2,
        failed: 0,
        created_at: Some(at(0)),
    }
}

pub fn daemon_service(name: &str, definition: &str) -> Service {
    let mut service = service(name);
    service.definition = definition_arn(definition);
    service.deployments = vec![deployment(&service.definition, RolloutState::Completed)];
    (service.daemon, service.launch) = (true, LaunchType::Ec2);
    service.tags.insert(OWNER_TAG.into(), "prod".into());
    service
}

pub fn node(id: &str) -> Node {
    Node {
        arn: node_arn(id),
        cluster: CLUSTER.into(),
        instance_id: None,
        active: true,
        connected: true,
        turned_at: None,
        attributes: BTreeMap::from([("ecs.os-type".to_owned(), "linux".to_owned())]),
        taints: Vec::new(),
        free_memory: 1024,
        free_cpu: 1024,
        launch: LaunchType::Ec2,
        version: 1,
    }
}

pub fn heartbeat(now: Timestamp, tasks: &[&str]) -> Heartbeat {
    Heartbeat {
        time: now,
        started_at: at(0),
        version: VERSION.into(),
        sensors: vec![SensorState { name: "ebpf".into(), whole: true, detail: None }],
        depth: Depth::Full,
        kernel: "6.1".into(),
        policy: "policy".into(),
        tasks: tasks.iter().map(|id| task_arn(id).to_string()).collect(),
        families: vec![],
        unavailable: vec![],
        usage: Usage::default(),
        restarts: 0,
        last_exit: None,
    }
}

pub fn sidecar_report(id: &str, now: Timestamp) -> AgentReport {
    AgentReport {
        task: task_arn(id),
        kind: AgentKind::Sidecar,
        node: None,
        image_digest: None,
        received_at: now,
        conflict: None,
        heartbeat_seconds: 60,
        address_verified: true,
        signed: true,
        heartbeat: heartbeat(now, &[id]),
    }
}

pub fn node_report(id: &str, node: &str, tasks: &[&str], now: Timestamp) -> AgentReport {
    AgentReport {
        kind: AgentKind::Node,
        node: Some(node_arn(node)),
        heartbeat_seconds: 15,
        heartbeat: heartbeat(now, tasks),
        ..sidecar_report(id, now)
    }
}

/// A monitor on everything, in Enforce, with an agent; `edit` changes it.
pub fn monitor(name: &str, edit: impl FnOnce(&mut serde_json::Value)) -> Document {
    let mut spec = serde_json::json!({
        "mode": "Enforce",
        "targets": {"ecs": {}},
        "agent": {
            "version": VERSION,
            "image": {"repository": "111122223333.dkr.ecr.{region}.amazonaws.com/tasuki-agent",
                      "digest": format!("sha256:{}", "a".repeat(64))},
        },
        "rollout": {"waves": [
            {"name": "canary", "take": "10%", "soak": "10m"},
            {"name": "rest", "take": "100%", "maxUnavailable": "50%"},
        ]},
    });
    edit(&mut spec);
    let spec: RuntimeMonitorSpec = serde_json::from_value(spec).unwrap();
    let metadata = Metadata { name: name.into(), ..Metadata::default() };
    Document::RuntimeMonitor(Box::new(Object { metadata, spec }))
}

pub fn desired(documents: &[Document]) -> Arc<Desired> {
    let gateway = GatewaySpec { url: "https://gateway:8443".into(), ca: "ca".into(), policy_key: "key".into() };
    Arc::new(Desired::compile(documents, gateway, false, |_| "policy".to_owned()).0)
}

/// A described cluster and these changes.
pub fn fleet(changes: Vec<Change>) -> Fleet {
    let mut fleet = Fleet::new(at(-3600));
    fleet.apply(cluster(), at(0));
    for change in changes {
        fleet.apply(change, at(0));
    }
    fleet
}

pub fn of_task(task: Task) -> Change {
    Change::Task(Box::new(task))
}
pub fn read_task(task: Task, read_at: i64) -> Change {
    Change::TaskRead { read_at: at(read_at), task: Box::new(task) }
}
pub fn read_node(node: Node, read_at: i64) -> Change {
    Change::NodeRead { read_at: at(read_at), node: Box::new(node) }
}
pub fn of_service(service: Service) -> Change {
    Change::Service(Box::new(service))
}
pub fn of_node(node: Node) -> Change {
    Change::Node(Box::new(node))
}
pub fn of_agent(report: AgentReport) -> Change {
    Change::Agent(Box::new(report))
}
