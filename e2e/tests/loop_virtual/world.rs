//! A local cloud on loopback with containers that are records, a controller in a runtime of its own that can be
//! killed at any call, and the customer.

use crate::agents::Agents;
use crate::wire::Wire;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tasuki::cli::{KubernetesArgs, LogFormat, RunArgs};
use tasuki::engine::{Controller, ProblemView, Request, Surroundings, View};
use tasuki::gateway::{self, StsEndpoint};
use tasuki_api::coverage::{TaskCoverage, Verdict};
use tasuki_cloud::auth::identity::Caller;
use tasuki_cloud::auth::sigv4::Verified;
use tasuki_cloud::clock::Clock;
use tasuki_cloud::cloud::{Cloud, Options};
use tasuki_cloud::effect::Place;
use tasuki_cloud::faults::Faults;
use tasuki_cloud::runtime::{Script, Virtual};
use tasuki_cloud::settings::Settings;
use tasuki_cloud::world::Service;
use tasuki_e2e::customer::{ACCOUNT, Key, REGION, sdk};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Repository of the agent's image.
pub const REPOSITORY: &str = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/tasuki-agent";
/// How long a condition may take on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(80);

/// Digest of an agent version.
pub fn digest(version: &str) -> String {
    let digits: String = version.chars().filter(char::is_ascii_digit).collect();
    format!("sha256:{digits:0>64}")
}

/// The exact image string of an agent version.
pub fn image(version: &str) -> String {
    format!("{REPOSITORY}@{}", digest(version))
}

/// Nothing takes longer than it must.
pub fn quick() -> Script {
    Script { pull: Duration::from_millis(30), start: Duration::from_millis(20), ..Script::default() }
}

struct Running {
    runtime: tokio::runtime::Runtime,
    controller: Controller,
}

pub struct World {
    pub cloud: Cloud,
    pub runtime: Arc<Virtual>,
    pub wire: Arc<Wire>,
    pub agents: Arc<Agents>,
    pub queue: String,
    endpoint: String,
    host: String,
    dir: tempfile::TempDir,
    gateway_port: u16,
    running: Option<Running>,
    background: Vec<JoinHandle<()>>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill();
        self.background.iter().for_each(JoinHandle::abort);
    }
}

impl World {
    pub async fn new() -> Self {
        let api = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let metadata = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = api.local_addr().unwrap().to_string();
        let endpoint = format!("http://{host}");
        let metadata_base = format!("http://{}", metadata.local_addr().unwrap());
        let short = Duration::from_millis(50);
        let settings = Settings {
            provision: short,
            deprovision: short,
            steady_after: Duration::from_millis(300),
            retry: Duration::from_millis(300),
            metadata_base: metadata_base.clone(),
            container_environment: vec![("AWS_ENDPOINT_URL_STS".into(), endpoint.clone())],
            throttling: false,
            ..Settings::default()
        };
        let runtime = Arc::new(Virtual::new(Clock::real()));
        let options = Options { settings, ..Options::default() };
        println!("local cloud: seed {}", options.seed);
        let cloud = Cloud::new(Clock::real(), runtime.clone(), options);
        cloud.add_root_key(ACCOUNT, "AKIATASUKI", "local");
        runtime.script("app:1", quick());
        for version in ["1.0.0", "1.0.1", "1.0.2"] {
            runtime.script(image(version), quick());
        }
        let wire = Arc::new(Wire::default());
        let served = axum::serve(api, wire.clone().around(tasuki_cloud::http::router(cloud.clone())));
        let documents = axum::serve(metadata, tasuki_cloud::metadata::router(cloud.clone()));
        let driven = cloud.clone();
        let agents = Arc::new(Agents::new(cloud.clone(), runtime.clone(), metadata_base));
        let background = vec![
            tokio::spawn(async move { served.await.unwrap() }),
            tokio::spawn(async move { documents.await.unwrap() }),
            tokio::spawn(async move { driven.drive().await }),
            tokio::spawn(agents.clone().keep()),
        ];
        // A port that was free a moment ago: the gateway comes back to it after a kill.
        let gateway_port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("config")).unwrap();
        let mut world = Self {
            cloud,
            runtime,
            wire,
            agents,
            queue: String::new(),
            endpoint,
            host,
            dir,
            gateway_port,
            running: None,
            background,
        };
        world.queue = world.event_queue();
        let scope = json!({"apiVersion": "tasuki.dev/v1alpha1", "kind": "AwsScope", "metadata": {"name": "local"}, "spec": {
            "regions": [REGION], "eventQueue": world.queue, "sweepInterval": "1m", "share": "100%",
            "agentTaskRole": format!("arn:aws:iam::{ACCOUNT}:role/tasuki-agent")}});
        world.write("scope.yaml", &scope.to_string());
        world
    }

    /// One call of the customer's. A world's own calls do not go over the wire that is watched.
    pub fn call(&self, service: Service, operation: &str, input: Value) -> Value {
        let arn = format!("arn:aws:iam::{ACCOUNT}:root");
        let caller = Caller { account: ACCOUNT.into(), arn, user_id: ACCOUNT.into() };
        let who = Verified { caller, region: REGION.into(), service: service.name().into() };
        let answer = self.cloud.change(|world| world.call(&who, service, operation, input, &self.host));
        answer.unwrap_or_else(|error| panic!("{operation}: {error}"))
    }

    pub fn ecs(&self, operation: &str, input: Value) -> Value {
        self.call(Service::Ecs, operation, input)
    }

    fn event_queue(&self) -> String {
        let policy = json!({"Statement": {"Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"}, "Action": "sqs:SendMessage"}});
        let attributes = json!({"Policy": policy.to_string()});
        let made = self.call(Service::Sqs, "CreateQueue", json!({"QueueName": "tasuki", "Attributes": attributes}));
        let pattern = json!({"source": ["aws.ecs"]}).to_string();
        self.call(Service::Events, "PutRule", json!({"Name": "ecs", "EventPattern": pattern}));
        let target = json!({"Id": "1", "Arn": format!("arn:aws:sqs:{REGION}:{ACCOUNT}:tasuki")});
        self.call(Service::Events, "PutTargets", json!({"Rule": "ecs", "Targets": [target]}));
        made["QueueUrl"].as_str().unwrap().to_owned()
    }

    pub fn place() -> Place {
        Place { account: ACCOUNT.to_owned(), region: REGION.to_owned() }
    }

    /// A cluster with that many container instances.
    pub fn cluster(&self, name: &str, nodes: usize) -> Vec<String> {
        self.ecs("CreateCluster", json!({"clusterName": name}));
        (0..nodes).map(|_| self.cloud.add_instance(&Self::place(), name, Default::default()).unwrap()).collect()
    }

    /// Registers a definition on Fargate (or not) whose JSON `edit` changes.
    pub fn definition(&self, family: &str, fargate: bool, edit: impl FnOnce(&mut Value)) {
        let container =
            json!({"name": "app", "image": "app:1", "essential": true, "memoryReservation": 64, "stopTimeout": 2});
        let mut definition = json!({"family": family, "networkMode": "awsvpc", "containerDefinitions": [container],
            "executionRoleArn": format!("arn:aws:iam::{ACCOUNT}:role/execution"), "taskRoleArn": format!("arn:aws:iam::{ACCOUNT}:role/app")});
        if fargate {
            definition["requiresCompatibilities"] = json!(["FARGATE"]);
            (definition["cpu"], definition["memory"]) = (json!("512"), json!("1024"));
        }
        edit(&mut definition);
        self.ecs("RegisterTaskDefinition", definition);
    }

    /// A service of the family of its name.
    pub fn service(&self, cluster: &str, name: &str, launch: &str, count: usize) {
        self.ecs(
            "CreateService",
            json!({"cluster": cluster, "serviceName": name, "taskDefinition": name, "desiredCount": count, "launchType": launch,
                   "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-1"]}}}),
        );
    }

    /// Runs one standalone task; its ARN.
    pub fn run_task(&self, cluster: &str, family: &str) -> String {
        let ran = self.ecs(
            "RunTask",
            json!({"cluster": cluster, "taskDefinition": family, "launchType": "FARGATE",
                   "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-1"]}}}),
        );
        ran["tasks"][0]["taskArn"].as_str().unwrap().to_owned()
    }

    pub fn describe(&self, cluster: &str, service: &str) -> Value {
        self.ecs("DescribeServices", json!({"cluster": cluster, "services": [service]}))["services"][0].clone()
    }

    /// Family and revision that a service should run.
    pub fn runs(&self, cluster: &str, service: &str) -> String {
        let service = self.describe(cluster, service);
        service["taskDefinition"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()
    }

    /// How many revisions a family has ever had.
    pub fn revisions(&self, family: &str) -> usize {
        self.cloud.world().places[&Self::place()].ecs.families.get(family).map_or(0, Vec::len)
    }

    /// Writes a file of the desired state at once, as a checkout of git does.
    pub fn write(&self, name: &str, text: &str) {
        let dir = self.dir.path().join("config");
        std::fs::write(dir.join(".new"), text).unwrap();
        std::fs::rename(dir.join(".new"), dir.join(name)).unwrap();
    }

    /// Writes a monitor whose spec `edit` changes.
    pub fn monitor(&self, name: &str, mode: &str, version: &str, edit: impl FnOnce(&mut Value)) {
        let mut spec = json!({
            "mode": mode, "targets": {"ecs": {}}, "grace": "3s",
            "agent": {"version": version, "image": {"repository": REPOSITORY, "digest": digest(version)}},
            "ecs": {"fargate": {"delivery": "Live", "preflight": "Static"}},
            "rollout": {"waves": [{"name": "all", "take": "100%", "soak": "0s", "maxUnavailable": "50%"}], "deadline": "20s"}});
        edit(&mut spec);
        let document = json!({"apiVersion": "tasuki.dev/v1alpha1", "kind": "RuntimeMonitor", "metadata": {"name": name}, "spec": spec});
        self.write(&format!("monitor-{name}.yaml"), &document.to_string());
    }

    fn args(&self) -> RunArgs {
        let loopback = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        RunArgs {
            kubernetes: KubernetesArgs::default(),
            config_dir: Some(self.dir.path().join("config")),
            config_poll: Duration::from_secs(1),
            state_dir: self.state(),
            store: None,
            keep_findings: Duration::from_secs(90 * 86_400),
            max_findings: 100_000,
            listen: loopback(0),
            web_hosts: Vec::new(),
            web_open: false,
            gateway_listen: loopback(self.gateway_port),
            gateway_url: Some(format!("https://localhost:{}", self.agents.door())),
            gateway_proxies: Vec::new(),
            gateway_cert: None,
            gateway_key: None,
            gateway_connections_per_address: 64,
            gateway_requests_per_address: 20,
            aws_endpoint: Some(self.endpoint.clone()),
            log_format: LogFormat::Text,
            log: "info".to_owned(),
        }
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// As many tasks of service `web` as nodes in cluster `shop`, to be watched by agent 1.0.0.
    pub async fn web_on_nodes(nodes: usize) -> Self {
        let world = Self::new().await;
        world.cluster("shop", nodes);
        world.definition("web", false, |_| {});
        world.service("shop", "web", "EC2", nodes);
        world.monitor("prod", "Enforce", "1.0.0", |_| {});
        world
    }

    /// One task of service `web` on Fargate, to be watched by agent 1.0.0.
    pub async fn web_on_fargate() -> Self {
        let world = Self::new().await;
        world.cluster("shop", 0);
        world.definition("web", true, |_| {});
        world.service("shop", "web", "FARGATE", 1);
        world.monitor("prod", "Enforce", "1.0.0", |_| {});
        world
    }

    /// Starts the controller; after a kill it finds what it left.
    pub async fn start(&mut self) {
        let key = Key { id: "AKIATASUKI".to_owned(), secret: "local".to_owned() };
        let aws = sdk(&self.endpoint, &key).await;
        let args = self.args();
        self.agents.open_door(self.gateway_port).await;
        let mut config =
            gateway::Config::new(args.gateway_listen, vec!["localhost".to_owned(), "127.0.0.1".to_owned()]);
        config.sts = StsEndpoint::Override(self.endpoint.parse().unwrap());
        (config.node_heartbeat_seconds, config.sidecar_heartbeat_seconds) = (1, 1);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let began = std::time::Instant::now();
        let controller = loop {
            let (args, surroundings) =
                (args.clone(), Surroundings { aws: Some(aws.clone()), gateway: config.clone(), kubernetes: None });
            // The port may still be held by the one that was killed.
            match runtime.spawn(Controller::start(args, surroundings)).await.unwrap() {
                Ok(controller) => break controller,
                Err(error) if began.elapsed() > LIMIT => panic!("{error:#}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        self.running = Some(Running { runtime, controller });
        self.until("everything was read once", |world| world.view().at.is_some().then_some(())).await;
    }

    /// Ends the controller as kill -9 would: every part of it stops where it waits.
    pub fn kill(&mut self) {
        if let Some(Running { runtime, controller }) = self.running.take() {
            drop(controller);
            runtime.shutdown_background();
        }
    }

    pub fn controller(&self) -> &Controller {
        &self.running.as_ref().expect("the controller runs").controller
    }

    pub fn view(&self) -> Arc<View> {
        self.controller().engine().view.borrow().clone()
    }

    /// What is wrong with the desired state, but for the scope's large share.
    pub fn problems(&self) -> Vec<ProblemView> {
        let view = self.view();
        view.problems.iter().filter(|problem| problem.subject != "AwsScope/local").cloned().collect()
    }

    pub async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> T {
        let (sender, receiver) = oneshot::channel();
        assert!(self.controller().engine().requests.send(request(sender)).await.is_ok(), "the engine takes requests");
        tokio::time::timeout(LIMIT, receiver).await.expect("an answer in time").expect("an answer")
    }

    pub async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.controller().listen());
        tasuki_e2e::http::send("GET", &url, "").await.unwrap()
    }

    /// Waits until something is there; says what the view showed last where it never came.
    pub async fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let began = std::time::Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            if began.elapsed() > LIMIT {
                let view = self.view();
                panic!(
                    "never: {what}\nproblems {:?}\nscopes {:?}\ntasks {:#?}\ncalls {:?}",
                    view.problems,
                    view.scopes,
                    view.tasks,
                    self.wire.calls()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until every task of a workload (and at least one) has this verdict and reason; gives one of them.
    pub async fn verdict(&self, workload: &str, verdict: Verdict, reason: &str) -> TaskCoverage {
        let what = format!("{workload} is {verdict:?} {reason}");
        self.until(&what, |world| {
            let view = world.view();
            // What was there before the agent came may have ended meanwhile, unseen.
            let other = |task: &TaskCoverage| verdict == Verdict::Missed || task.verdict != Verdict::Missed;
            let mut tasks = view.tasks.iter().filter(|task| task.workload == workload && other(task));
            let first = tasks.next()?;
            let is = |task: &TaskCoverage| task.verdict == verdict && task.reason.map_or("", |r| r.name()) == reason;
            (is(first) && tasks.all(is)).then(|| first.clone())
        })
        .await
    }

    pub fn faults(&self, faults: Faults) {
        self.cloud.set_faults(faults);
    }
}
