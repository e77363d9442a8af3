//! The agent as a sidecar: in a task's own namespaces, with no more rights than Fargate gives, it finds
//! what is done to the application beside it; and its own end never touches that application.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking, in its helpers too

use futures_util::StreamExt;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tasuki_cloud::runtime::docker::{Docker, Options};
use tasuki_cloud::runtime::*;
use tasuki_core::transform::DROPPED;
use tasuki_e2e::dockerd::{Cgroups, Dockerd};
use tasuki_e2e::image::{self, Image};
use tasuki_e2e::process::until;
use tasuki_e2e::{attack, benign, http, world};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const TASK: &str = "arn:aws:ecs:eu-west-1:111122223333:task/shop/00000000000000000000000000000001";

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn container(name: &str, image: &str) -> ContainerSpec {
    ContainerSpec {
        name: name.to_owned(),
        container_arn: format!("arn:{name}"),
        image: image.to_owned(),
        essential: true,
        entry_point: None,
        command: None,
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
        stop_timeout: Duration::from_secs(3),
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

/// The application, and the agent as controller/core/src/transform/inject.rs writes it with FailClosed: the
/// application starts when the agent is healthy.
fn task(metadata: &str) -> TaskSpec {
    let mut app = container("app", "shop:1");
    app.depends_on = vec![Dependency { container: "tasuki-agent".to_owned(), condition: DependencyCondition::Healthy }];
    let mut agent = container("tasuki-agent", "tasuki-agent:1");
    agent.essential = false;
    agent.user = Some("0".to_owned());
    agent.readonly_root_filesystem = true;
    agent.memory = Some(128);
    agent.capabilities_drop = words(&DROPPED);
    agent.capabilities_add = words(&["SYS_PTRACE"]);
    agent.command = Some(words(&["supervise", "run", "--stdout", "--sensor", "ptrace", "--policy", "/policy.json"]));
    agent.environment = vec![("ECS_CONTAINER_METADATA_URI_V4".to_owned(), metadata.to_owned())];
    agent.health_check = Some(HealthCheck {
        command: words(&["CMD", "/tasuki-agent", "healthy"]),
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(5),
        retries: 30,
        start_period: Duration::from_secs(10),
    });
    TaskSpec {
        task_arn: TASK.to_owned(),
        task_id: format!("{:0>32}", "1"),
        cluster_arn: "arn:aws:ecs:eu-west-1:111122223333:cluster/shop".to_owned(),
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
        cpu: None,
        memory: Some(512),
        cpu_architecture: Architecture::Native,
        containers: vec![agent, app],
        volumes: vec![],
        credentials_id: None,
        subnets: vec![],
        security_groups: vec![],
    }
}

/// Ids of the started containers by name.
type Ids = Arc<Mutex<BTreeMap<String, String>>>;

/// ECS's task metadata version 4, as far as the agent reads it. Serves until the test ends.
async fn metadata(address: Ipv4Addr, ids: Ids) -> String {
    let listener = tokio::net::TcpListener::bind((address, 0)).await.unwrap();
    let url = format!("http://{}/v4/agent", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap_or(0);
            let whole = String::from_utf8_lossy(&request[..read]).starts_with("GET /v4/agent/task ");
            let describe = |(name, id): (&String, &String)| json!({"DockerId": id, "Name": name, "Type": "NORMAL"});
            let body = {
                let ids = ids.lock().unwrap();
                let containers: Vec<Value> = ids.iter().map(describe).collect();
                match whole {
                    true => json!({"Cluster": "shop", "TaskARN": TASK, "Family": "shop", "Revision": "1",
                                   "LaunchType": "FARGATE", "Containers": containers}),
                    false => ids.get_key_value("tasuki-agent").map(describe).unwrap_or_default(),
                }
                .to_string()
            };
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            // The agent asks again.
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    url
}

/// The running task.
struct Running {
    client: bollard::Docker,
    app: String,
    agent: String,
    address: Ipv4Addr,
}

impl Running {
    /// Everything that the agent has printed.
    async fn log(&self) -> String {
        let options = bollard::query_parameters::LogsOptionsBuilder::new().stdout(true).stderr(true).build();
        let mut all = String::new();
        let mut lines = std::pin::pin!(self.client.logs(&self.agent, Some(options)));
        while let Some(Ok(line)) = lines.next().await {
            all.push_str(&line.to_string());
        }
        all
    }

    async fn findings(&self) -> Vec<Value> {
        let log = self.log().await;
        log.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|v| v["type"].is_string())
            .collect()
    }

    /// Waits for a finding.
    async fn found(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let found = until(what, Duration::from_secs(30), || async {
            Ok(self.findings().await.into_iter().find(|finding| matches(finding)))
        });
        match found.await {
            Ok(finding) => finding,
            Err(error) => panic!("{error}; the agent said:\n{}", self.log().await),
        }
    }

    async fn watches(&self, starts: usize) {
        let watching = until("the agent watches", Duration::from_secs(60), || async {
            Ok((self.log().await.matches("watching").count() >= starts).then_some(()))
        });
        if let Err(error) = watching.await {
            panic!("{error}; the agent said:\n{}", self.log().await);
        }
    }

    async fn pid(&self, id: &str) -> i64 {
        self.client.inspect_container(id, None).await.unwrap().state.unwrap().pid.unwrap()
    }

    /// The agent's process: the child of the supervisor that runs.
    async fn agent_process(&self) -> u32 {
        let supervisor = self.pid(&self.agent).await;
        until("the agent's process", Duration::from_secs(30), || async {
            let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"))?;
            Ok(children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &u32| {
                std::fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| line.split(|b| *b == 0).nth(1) == Some(b"run"))
            }))
        })
        .await
        .unwrap()
    }

    /// The application answers and executes, as often as it takes to meet the moment.
    async fn application_works(&self) {
        for n in 0..20 {
            let page = http::send("GET", &format!("http://{}:8080/", self.address), "").await.unwrap();
            assert_eq!(page, "open\n");
            assert_eq!(attack::inject(self.address, &format!("sh -c 'echo {n}'")).await.unwrap(), format!("{n}\n"));
        }
    }
}

fn kill(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

async fn started(heard: &mut UnboundedReceiver<RuntimeEvent>, ids: &Ids) -> Ipv4Addr {
    let mut address = None;
    let starting = async {
        while let Some(event) = heard.recv().await {
            match event.kind {
                RuntimeEventKind::NetworkReady { private_ipv4, .. } => address = private_ipv4.parse().ok(),
                RuntimeEventKind::ContainerStarted { container, runtime_id, .. } => {
                    ids.lock().unwrap().insert(container, runtime_id);
                }
                RuntimeEventKind::PullStarted
                | RuntimeEventKind::PullStopped
                | RuntimeEventKind::ContainerHealth { .. } => {}
                other => panic!("{other:?}"),
            }
            if ids.lock().unwrap().contains_key("app") {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(90), starting)
        .await
        .expect("the application starts when the agent is healthy");
    address.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_finds_every_attack_and_its_end_never_touches_the_application() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Dockerd::start(directory.path(), Cgroups::Host).await.unwrap();
    let client = engine.client().unwrap();
    let lab = Path::new(env!("CARGO_BIN_EXE_tasuki-lab"));
    image::shop(lab).unwrap().build(&client, "shop:1").await.unwrap();
    let list =
        json!({"verdict": "Threat", "entity": "Domain", "category": "CryptoCurrency", "inline": ["pool.example.test"]});
    let image = Image::default().program("/tasuki-agent", &world::binaries().unwrap().join("tasuki-agent")).unwrap();
    let image = image.file("/policy.json", 0o644, json!({"lists": [list]}).to_string());
    image.line("ENTRYPOINT [\"/tasuki-agent\"]").build(&client, "tasuki-agent:1").await.unwrap();
    let options = Options { host: engine.host.clone(), name: "tsk-test-side".to_owned(), subnet: [172, 31, 249] };
    let docker = Docker::start(options).await.unwrap();
    let (sender, mut heard) = unbounded_channel();
    docker.attach(sender);
    let ids = Ids::default();
    let url = metadata(docker.gateway(), ids.clone()).await;
    docker.start_task(task(&url));
    let address = started(&mut heard, &ids).await;
    let id = |name: &str| ids.lock().unwrap()[name].clone();
    let task = Running { client, app: id("app"), agent: id("tasuki-agent"), address };
    until("the application answers", Duration::from_secs(20), || async {
        Ok(http::send("GET", &format!("http://{address}:8080/"), "").await.ok())
    })
    .await
    .unwrap();
    let first_pid = task.pid(&task.app).await;

    benign::day(address, 2).await.unwrap();
    let alarms = task.findings().await;
    assert!(alarms.is_empty(), "an ordinary day is no attack: {alarms:#?}");

    attack::miner(address).await.unwrap();
    attack::reverse_shell(address).await.unwrap();
    attack::new_binary(address).await.unwrap();
    attack::fileless(address).await.unwrap();
    for (kind, executable) in [
        ("Impact:Runtime/CryptoMinerExecuted", "/tmp/.x/xmrig"),
        ("Execution:Runtime/ReverseShell", "/bin/busybox"),
        ("Execution:Runtime/NewBinaryExecuted", "/tmp/updater"),
        ("DefenseEvasion:Runtime/FilelessExecution", ""),
    ] {
        let finding = task.found(kind, |finding| {
            let path = finding["process"]["executable"].as_str().unwrap_or_default();
            finding["type"] == kind && (executable.is_empty() || path == executable)
        });
        let finding = finding.await;
        assert_eq!(finding["resource"]["container"]["id"], task.app, "{finding:#}");
        assert!(finding["process"]["arguments"].as_array().is_some_and(|a| !a.is_empty()), "{finding:#}");
        let lineage = finding["process"]["lineage"].as_array().unwrap();
        assert!(lineage.iter().any(|ancestor| ancestor["arguments"][0] == "httpd"), "{finding:#}");
        // A program from memory is gone before it can be opened.
        let sha = finding["process"]["sha256"].as_str().unwrap_or_default();
        let whole = sha.len() == 64 && sha.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(whole || kind == "DefenseEvasion:Runtime/FilelessExecution", "{finding:#}");
        if executable.starts_with("/tmp/") {
            let own = Command::new("sha256sum").arg(lab).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&own.stdout).split_whitespace().next(), Some(sha), "{finding:#}");
        }
    }
    let pool = task.found("the pool's name", |f| f["type"] == "CryptoCurrency:Runtime/BitcoinTool.B!DNS").await;
    assert_eq!(pool["dns"]["question"], "pool.example.test");

    // Killed, and stopped: its watchdog kills it then. Either way the supervisor starts another.
    for (starts, signal) in [(2, "-KILL"), (3, "-STOP")] {
        let agent = task.agent_process().await;
        kill(agent, signal);
        task.application_works().await;
        task.watches(starts).await;
        assert_ne!(task.agent_process().await, agent);
        task.application_works().await;
        let name = format!("/tmp/after{starts}");
        attack::inject(address, &format!("cp /opt/lab/tasuki-lab {name}; {name}; true")).await.unwrap();
        let again = task.found(&name, |finding| finding["process"]["executable"] == name.as_str()).await;
        assert_eq!(again["type"], "Execution:Runtime/NewBinaryExecuted", "{again:#}");
    }
    assert_eq!(task.pid(&task.app).await, first_pid, "the application was never started anew");
    docker.stop_task(TASK);
    docker.shut_down().await.unwrap();
}
