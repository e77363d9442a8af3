//! The local cloud's tasks as real containers: what ECS shares is shared, what Fargate refuses is
//! not given, order and endings are as the contract of the runtime says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::time::Duration;
use tasuki_cloud::runtime::docker::{Docker, Options};
use tasuki_cloud::runtime::*;
use tasuki_e2e::dockerd::{Cgroups, Dockerd};
use tasuki_e2e::image;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

fn container(name: &str, command: &[&str]) -> ContainerSpec {
    ContainerSpec {
        name: name.to_owned(),
        container_arn: format!("arn:{name}"),
        image: "shop:1".to_owned(),
        essential: true,
        entry_point: None,
        command: Some(command.iter().map(|word| (*word).to_owned()).collect()),
        environment: vec![],
        working_directory: None,
        user: None,
        privileged: false,
        readonly_root_filesystem: false,
        cpu: 0,
        memory: None,
        memory_reservation: None,
        capabilities_add: vec![],
        capabilities_drop: vec![],
        init_process_enabled: false,
        shared_memory_size: None,
        devices: vec![],
        tmpfs: vec![],
        max_swap: None,
        swappiness: None,
        mount_points: vec![],
        volumes_from: vec![],
        port_mappings: vec![],
        depends_on: vec![],
        start_timeout: None,
        stop_timeout: Duration::from_secs(2),
        health_check: None,
        restart_policy: None,
        labels: BTreeMap::new(),
        system_controls: vec![],
        ulimits: vec![],
        docker_security_options: vec![],
        links: vec![],
        hostname: None,
        extra_hosts: vec![],
        dns_servers: vec![],
        dns_search_domains: vec![],
        interactive: false,
        pseudo_terminal: false,
        disable_networking: false,
        log_driver: None,
        log_options: BTreeMap::new(),
        metadata_token: String::new(),
    }
}

fn task(id: &str, containers: Vec<ContainerSpec>) -> TaskSpec {
    TaskSpec {
        task_arn: format!("arn:{id}"),
        task_id: format!("{id:0>32}"),
        cluster_arn: "arn:c".to_owned(),
        account: "111122223333".to_owned(),
        region: "eu-west-1".to_owned(),
        family: "shop".to_owned(),
        revision: 1,
        service: None,
        launch_type: LaunchType::Fargate,
        instance: None,
        network_mode: NetworkMode::Awsvpc,
        pid_mode: PidMode::Task,
        ipc_mode: IpcMode::Private,
        cpu: Some(256),
        memory: Some(512),
        cpu_architecture: Architecture::Native,
        containers,
        volumes: vec![],
        credentials_id: None,
        subnets: vec![],
        security_groups: vec![],
    }
}

/// Events of one task up to and including the first that `last` accepts.
async fn events(
    from: &mut UnboundedReceiver<RuntimeEvent>,
    last: impl Fn(&RuntimeEventKind) -> bool,
) -> Vec<RuntimeEventKind> {
    let mut all = Vec::new();
    let collect = async {
        while let Some(event) = from.recv().await {
            all.push(event.kind);
            if all.last().is_some_and(&last) {
                break;
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), collect).await;
    assert!(ended.is_ok(), "the expected event did not come; these did: {all:?}");
    all
}

fn exit_code(events: &[RuntimeEventKind], name: &str) -> Option<i32> {
    events.iter().find_map(|event| match event {
        RuntimeEventKind::ContainerExited { container, exit_code, .. } if container == name => Some(*exit_code),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_task_share_what_ecs_shares_and_end_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Dockerd::start(directory.path(), Cgroups::Host).await.unwrap();
    let lab = std::path::Path::new(env!("CARGO_BIN_EXE_tasuki-lab"));
    image::shop(lab).unwrap().build(&engine.client().unwrap(), "shop:1").await.unwrap();
    let options = Options { host: engine.host.clone(), name: "tsk-test-rt".to_owned(), subnet: [172, 31, 251] };
    let docker = Docker::start(options).await.unwrap();
    let (sender, mut heard) = unbounded_channel();
    docker.attach(sender);
    let stopped = |event: &RuntimeEventKind| *event == RuntimeEventKind::TaskStopped;

    // The second container sees the first one's processes and its loopback, and the metadata address
    // is one hop away; SYS_PTRACE is there only where it was added.
    let app = container("app", &["/bin/start"]);
    let mut side = container(
        "side",
        &[
            "/bin/sh",
            "-c",
            "until wget -q -O - http://127.0.0.1:8080/ | grep -q open; do sleep 0.1; done; ps | grep -q httpd && ip route get 169.254.170.2 | grep -q 'via 172.31.251.1' && grep -q 'CapEff:.*00000000a80c25fb' /proc/self/status && exit 7",
        ],
    );
    side.essential = false;
    side.capabilities_add = vec!["SYS_PTRACE".to_owned()];
    side.depends_on = vec![Dependency { container: "app".to_owned(), condition: DependencyCondition::Start }];
    docker.start_task(task("1", vec![side, app]));
    let first = events(&mut heard, |event| matches!(event, RuntimeEventKind::ContainerExited { .. })).await;
    assert_eq!(exit_code(&first, "side"), Some(7), "{first:?}");
    assert!(first.iter().any(|event| matches!(event, RuntimeEventKind::NetworkReady { private_ipv4, .. } if private_ipv4.starts_with("172.31.251."))));
    let order: Vec<_> = first
        .iter()
        .filter_map(|event| match event {
            RuntimeEventKind::ContainerStarted { container, runtime_id, .. } => {
                Some((container.as_str(), runtime_id.len()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(order, [("app", 64), ("side", 64)], "the dependency starts first, under its engine id");
    docker.stop_task("arn:1");
    docker.stop_task("arn:1");
    let rest = events(&mut heard, stopped).await;
    assert_eq!(exit_code(&rest, "app"), Some(0), "SIGTERM reached it: {rest:?}");
    docker.remove_task("arn:1");

    // An image that is not there fails its own container in ECS's words; one that ends by itself ends
    // the task; a limit of the task holds for it.
    let mut missing = container("agent", &["x"]);
    missing.essential = false;
    missing.image = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/agent@sha256:0000000000000000000000000000000000000000000000000000000000000000".to_owned();
    let short = container("app", &["/bin/sh", "-c", "cat /proc/self/cgroup | grep -q ':/ecs/' && exit 3"]);
    docker.start_task(task("2", vec![missing, short]));
    let all = events(&mut heard, stopped).await;
    assert!(all.iter().any(|event| matches!(event, RuntimeEventKind::ContainerFailed { container, kind: FailureKind::CannotPullContainer, .. } if container == "agent")), "{all:?}");
    assert_eq!(exit_code(&all, "app"), Some(3), "{all:?}");
    docker.remove_task("arn:2");

    docker.shut_down().await.unwrap();
}
