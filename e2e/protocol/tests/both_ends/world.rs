//! A cluster of plain data, a gateway and agents in it.

use crate::aws::{Aws, Session};
use futures_util::future::BoxFuture;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tasuki::gateway::{
    Config, Directory, DirectoryError, Gateway, Known, Parts, PolicyStore, StsEndpoint, TaskRole, TokenReviewer,
};
use tasuki::http::Http;
use tasuki::store::Store;
use tasuki_agent::control::{HeartbeatSource, PublicKey};
use tasuki_agent::deliver::{self, CredentialSource, Handle, KeyHome, Origin};
use tasuki_api::agent::{AgentKind, Heartbeat, Policy};
use tasuki_api::desired::IdentityChoice;
use tasuki_api::finding::Finding;
use tasuki_core::fleet::{AgentReport, Change, Container, LaunchType, Task, TaskStatus};
use tokio::sync::{mpsc, watch};
use ulid::Ulid;

pub const ROLE: &str = "arn:aws:iam::111122223333:role/app/web-task";
pub const DIGEST: &str = "sha256:aaaa";

/// The fleet as plain data.
#[derive(Default)]
pub struct Fleet {
    pub known: Mutex<BTreeMap<String, Known>>,
    /// What only a refresh gives.
    pub ecs: Mutex<BTreeMap<String, Known>>,
    pub refreshes: Mutex<u64>,
}

impl Directory for Fleet {
    fn task(&self, arn: &str) -> Option<Known> {
        self.known.lock().unwrap().get(arn).cloned()
    }
    fn refresh<'a>(&'a self, arn: &'a str) -> BoxFuture<'a, Result<Option<Known>, DirectoryError>> {
        Box::pin(async move {
            *self.refreshes.lock().unwrap() += 1;
            if let Some(known) = self.ecs.lock().unwrap().remove(arn) {
                self.known.lock().unwrap().insert(arn.to_owned(), known);
            }
            Ok(self.task(arn))
        })
    }
    fn tasks_on(&self, node: &str) -> Vec<Arc<Task>> {
        let known = self.known.lock().unwrap();
        known.values().filter(|k| k.task.node.as_deref() == Some(node)).map(|k| k.task.clone()).collect()
    }
}

pub fn arn(id: &str) -> String {
    format!("arn:aws:ecs:eu-west-1:111122223333:task/c/{id}")
}

/// A running task with an application and an agent.
pub fn known(id: &str) -> Known {
    let container = |name: &str, digest: &str| Container {
        name: name.into(),
        arn: format!("arn:aws:ecs:eu-west-1:111122223333:container/c/{id}/{name}").into(),
        runtime_id: Some(format!("{id}-{name}-runtime").into()),
        image: format!("registry/{name}:1").into(),
        image_digest: Some(digest.into()),
        status: "RUNNING".into(),
        exit_code: None,
        reason: None,
    };
    let task = Task {
        arn: arn(id).into(),
        cluster: "arn:aws:ecs:eu-west-1:111122223333:cluster/c".into(),
        group: "service:web".into(),
        started_by: None,
        definition: "arn:aws:ecs:eu-west-1:111122223333:task-definition/web:7".into(),
        launch: LaunchType::Fargate,
        platform_version: Some("1.4.0".into()),
        platform_family: None,
        architecture: None,
        node: None,
        containers: vec![container("app", "sha256:app"), container("tasuki-agent", DIGEST)],
        status: TaskStatus::Running,
        desired_stopped: false,
        version: 1,
        created_at: None,
        started_at: None,
        stopped_at: None,
        stop_code: None,
        stopped_reason: None,
        address: Some("127.0.0.1".parse().unwrap()),
    };
    Known {
        task: Arc::new(task),
        monitor: Some("m".into()),
        kind: AgentKind::Sidecar,
        agent_container: "tasuki-agent".into(),
        approved_digests: [DIGEST.into()].into(),
        role: TaskRole::Role(ROLE.into()),
        identity: IdentityChoice::Auto,
    }
}

/// Changes a task in place.
pub fn with_task(mut known: Known, change: impl FnOnce(&mut Task)) -> Known {
    let mut task = (*known.task).clone();
    change(&mut task);
    known.task = Arc::new(task);
    known
}

pub struct World {
    pub aws: Arc<Aws>,
    pub aws_address: String,
    pub fleet: Arc<Fleet>,
    pub store: Store,
    pub policies: Arc<PolicyStore>,
    pub gateway: Option<Gateway>,
    pub address: SocketAddr,
    pub changes: mpsc::Receiver<Change>,
    sender: mpsc::Sender<Change>,
    pub dir: tempfile::TempDir,
    change: fn(&mut Config),
    /// Takes effect with the next [`World::up`].
    pub reviewer: Option<Arc<dyn TokenReviewer>>,
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A world whose gateway's configuration is changed.
    pub async fn with(change: fn(&mut Config)) -> Self {
        let aws = Arc::new(Aws::default());
        let aws_address = aws.serve().await;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite://{}/t.db", dir.path().display())).await.unwrap();
        let policies = Arc::new(PolicyStore::open(store.clone()).await.unwrap());
        policies.update(&[]).await.unwrap();
        let (sender, changes) = mpsc::channel(1000);
        let fleet = Arc::new(Fleet::default());
        let address = "127.0.0.1:0".parse().unwrap();
        let reviewer: Option<Arc<dyn TokenReviewer>> = None;
        let mut world = Self {
            aws,
            aws_address,
            fleet,
            store,
            policies,
            gateway: None,
            address,
            changes,
            sender,
            dir,
            change,
            reviewer,
        };
        world.up().await;
        world
    }

    /// Starts the gateway, on the address that it had.
    pub async fn up(&mut self) {
        let mut config = Config::new(self.address, vec!["localhost".to_owned(), "127.0.0.1".to_owned()]);
        config.sts = StsEndpoint::Override(format!("http://{}", self.aws_address).parse().unwrap());
        (config.node_heartbeat_seconds, config.sidecar_heartbeat_seconds) = (1, 1);
        (self.change)(&mut config);
        let parts = Parts {
            store: self.store.clone(),
            directory: self.fleet.clone(),
            policies: self.policies.clone(),
            changes: self.sender.clone(),
            http: Http::new(None).unwrap(),
            reviewer: self.reviewer.clone(),
        };
        let gateway = Gateway::start(config, parts).await.unwrap();
        self.address = gateway.address();
        self.gateway = Some(gateway);
    }

    pub async fn down(&mut self) {
        self.gateway.take().unwrap().stop(Duration::from_millis(100)).await;
    }

    pub fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().unwrap()
    }

    pub fn authority_pem(&self) -> String {
        use base64::Engine as _;
        let pem = base64::engine::general_purpose::STANDARD.decode(self.gateway().authority().unwrap()).unwrap();
        String::from_utf8(pem).unwrap()
    }

    /// Puts a task into the fleet, with its metadata and credentials.
    pub fn add(&self, id: &str, known: Known) {
        self.describe(id, &known);
        self.fleet.known.lock().unwrap().insert(arn(id), known);
    }

    /// What the task's own endpoints say.
    pub fn describe(&self, id: &str, known: &Known) {
        let networks = json!([{"NetworkMode": "awsvpc", "IPv4Addresses": ["127.0.0.1"]}]);
        let containers: Vec<_> = known
            .task
            .containers
            .iter()
            .map(|c| {
                json!({"DockerId": c.runtime_id, "Name": &*c.name, "ContainerARN": &*c.arn, "Type": "NORMAL", "Networks": networks})
            })
            .collect();
        let own = containers.iter().find(|c| c["Name"] == "tasuki-agent").unwrap().clone();
        let mut all = containers;
        all.push(json!({"DockerId": "pause", "Name": "~internal~ecs~pause", "Type": "CNI_PAUSE"}));
        let mut documents = self.aws.documents.lock().unwrap();
        documents.insert(format!("/v4/{id}"), own);
        documents.insert(format!("/v4/{id}/task"), json!({"TaskARN": arn(id), "Containers": all}));
        documents.insert(
            format!("/credentials/{id}"),
            json!({"AccessKeyId": format!("ASIA{id}"), "SecretAccessKey": format!("secret/{id}"), "Token": format!("tok/{id}+=="), "Expiration": "x"}),
        );
        let session = Session {
            secret: format!("secret/{id}"),
            token: format!("tok/{id}+=="),
            arn: format!("arn:aws:sts::111122223333:assumed-role/web-task/{id}"),
        };
        self.aws.sessions.lock().unwrap().insert(format!("ASIA{id}"), session);
    }

    /// How the agent of a task is configured.
    pub fn agent_config(&self, id: &str, kind: AgentKind, state: Option<PathBuf>) -> deliver::Config {
        deliver::Config {
            gateway: format!("https://localhost:{}", self.address.port()).parse().unwrap(),
            authority: Some(self.authority_pem()),
            policy_key: Some(PublicKey::from_base64(&self.policies.public_key()).unwrap()),
            origin: Origin::Task {
                metadata_uri: format!("http://{}/v4/{id}", self.aws_address),
                credentials: Some(CredentialSource {
                    url: format!("http://{}/credentials/{id}", self.aws_address).parse().unwrap(),
                    token_file: None,
                    token: None,
                }),
                sts_endpoint: Some(format!("http://{}", self.aws_address).parse().unwrap()),
            },
            pods: None,
            kind,
            version: "1.0.0".to_owned(),
            spool_bytes: 1 << 20,
            key: KeyHome::Process,
            state,
            backoff: (Duration::from_millis(20), Duration::from_millis(200)),
            farewell: Duration::from_secs(1),
        }
    }

    pub fn agent(&self, config: deliver::Config, tasks: &[String]) -> Agent {
        let (findings, queue) = mpsc::channel(1000);
        let (policy_tx, policy) = watch::channel(Arc::default());
        let source = Arc::new(Says(tasks.to_vec()));
        let handle = deliver::start(config, source, policy_tx, queue).unwrap();
        Agent { findings, policy, handle }
    }

    /// The next heartbeat of a task's agent for which `wanted` holds.
    pub async fn report(&mut self, wanted: impl Fn(&AgentReport) -> bool) -> AgentReport {
        let next = async {
            loop {
                if let Some(Change::Agent(report)) = self.changes.recv().await
                    && wanted(&report)
                {
                    return *report;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), next).await.expect("a heartbeat within 30 s")
    }
}

/// An agent, and what the rest of the agent would hold.
pub struct Agent {
    pub findings: mpsc::Sender<Finding>,
    pub policy: watch::Receiver<Arc<Policy>>,
    pub handle: Handle,
}

struct Says(Vec<String>);

impl HeartbeatSource for Says {
    fn heartbeat(&self) -> Heartbeat {
        heartbeat(&self.0)
    }
}

pub fn heartbeat(tasks: &[String]) -> Heartbeat {
    serde_json::from_value(json!({
        "time": jiff::Timestamp::now().to_string(), "startedAt": "2026-01-01T00:00:00Z", "version": "1.0.0", "sensors": [],
        "depth": "Process", "kernel": "6.1", "policy": "", "tasks": tasks, "families": [], "unavailable": [],
        "usage": {}, "restarts": 0
    }))
    .unwrap()
}

pub fn finding(number: u128, resource: serde_json::Value) -> Finding {
    let now = jiff::Timestamp::now().to_string();
    serde_json::from_value(json!({
        "id": Ulid(number).to_string(), "type": "Execution:Runtime/NewBinaryExecuted", "severity": "Medium", "title": "t",
        "firstSeen": now, "lastSeen": now, "count": 1, "resource": resource, "rule": {},
        "agent": {"version": "1", "depth": "Process", "sensor": "ptrace"}
    }))
    .unwrap()
}

/// Waits until a condition holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("not within 30 s: {what}"));
}
