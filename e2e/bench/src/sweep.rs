//! Reading 100 000 tasks of 1 000 clusters from the local cloud with the real SDK over loopback.
//!
//! ```text
//!  part cloud ◀── signed requests ── part controller: observe ─▶ fleet ─▶ decide
//! ```
//! The budget's share is lifted, because at a customer's share this sweep takes half an hour: that
//! it is not throttled at 25 % is `controller/tests/sweep_budget.rs`, on virtual time.

use crate::machine;
use crate::table::Row;
use anyhow::{Context, Result, ensure};
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tasuki::observe::Observer;
use tasuki::scope::Scopes;
use tasuki_api::desired::{Document, Metadata, Object, RuntimeMonitorSpec};
use tasuki_cloud::cloud::{Cloud, Options};
use tasuki_cloud::ecs::InstanceOptions;
use tasuki_cloud::effect::Place;
use tasuki_core::action::GatewaySpec;
use tasuki_core::decide::Decider;
use tasuki_core::desired::Desired;
use tasuki_core::fleet::{Change, Fleet};
use tasuki_core::memory::Memory;
use tokio::sync::mpsc;

const SECTION: &str = "sweep";
const ACCOUNT: &str = "111122223333";
const REGION: &str = "eu-central-1";
const KEY: (&str, &str) = ("AKIAROOT", "local");
/// Services in a cluster.
const SERVICES: usize = 10;
/// Nodes in every second cluster; the others are Fargate's.
const NODES: usize = 5;
/// Thousand times AWS's limits: the budget gives way, and goes on counting.
const SHARE: f64 = 1000.0;
/// Changes between observe and fleet, as the controller has it.
const CHANGES: usize = 4096;

/// Fills a cloud, sweeps it from another process, and compares.
pub fn measure(quick: bool) -> Result<Vec<Row>> {
    let (tasks, clusters) = if quick { (2_000, 20) } else { (100_000, 1_000) };
    let mut cloud =
        Ended(machine::part(&["cloud", &tasks.to_string(), &clusters.to_string()])?.stdout(Stdio::piped()).spawn()?);
    let output = cloud.0.stdout.take().context("the cloud has no output")?;
    let line = BufReader::new(output).lines().map_while(Result::ok).find(|line| line.starts_with("http"));
    let endpoint = line.context("the cloud ended before it was filled")?;
    let answer = machine::answer(machine::part(&["controller", &endpoint])?)?;
    let get = |name: &str| machine::number(&answer, name);
    let (found, calls, formula) = (get("tasks")?, get("calls")?, get("formula")?);
    let whole = found as usize == tasks && get("clusters")? as usize == clusters;
    ensure!(whole, "the sweep found {found} tasks of {tasks}: {answer}");
    let what = format!("calls for {tasks} tasks in {clusters} clusters, {calls} against {formula} of the formula");
    Ok(vec![
        Row::within(SECTION, &what, calls / formula, "×", 1.05),
        Row::must(SECTION, "throttled calls", &get("throttled")?.to_string(), "0", get("throttled")? == 0.0),
        Row::within(SECTION, "controller's memory after it, fleet decided", get("resident_mib")?, "MiB", 400.0),
        Row::noted(SECTION, "controller's memory at its highest", &format!("{:.0} MiB", get("peak_mib")?)),
        Row::noted(SECTION, "sweep and decisions with no limit on calls", &format!("{:.1} s", get("seconds")?)),
    ])
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A filled cloud that prints its address and serves until it is killed.
pub fn cloud(tasks: usize, clusters: usize) -> Result<()> {
    let (cloud, _runtime) = Cloud::virtual_cloud(Options { seed: 1, ..Options::default() });
    cloud.add_root_key(ACCOUNT, KEY.0, KEY.1);
    cloud.world().settings.throttling = false;
    fill(&cloud, tasks, clusters)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("http://{}", listener.local_addr()?);
        tasuki_cloud::http::serve(cloud, listener).await.context("the cloud ended")
    })
}

fn fill(cloud: &Cloud, tasks: usize, clusters: usize) -> Result<()> {
    let place = Place { account: ACCOUNT.to_owned(), region: REGION.to_owned() };
    let call = |operation: &str, input: Value| -> Result<()> {
        let answer = cloud.world().with(&place, "bench", |region, context| {
            tasuki_cloud::ecs::call(&mut region.ecs, context, operation, input)
        });
        let answer = answer.with_context(|| format!("the cloud does not offer {operation}"))?;
        answer.map(drop).map_err(|error| anyhow::anyhow!("{operation}: {}: {}", error.code, error.message))
    };
    let app = json!([{"name": "app", "image": "shop:1", "essential": true, "memory": 16}]);
    call("RegisterTaskDefinition", json!({"family": "node", "containerDefinitions": app}))?;
    call(
        "RegisterTaskDefinition",
        json!({"family": "fargate", "containerDefinitions": app, "networkMode": "awsvpc", "cpu": "256", "memory": "512",
               "requiresCompatibilities": ["FARGATE"], "executionRoleArn": format!("arn:aws:iam::{ACCOUNT}:role/exec")}),
    )?;
    let each = tasks / clusters / SERVICES;
    for number in 0..clusters {
        let cluster = format!("cluster-{number:04}");
        let on_nodes = number % 2 == 0;
        call("CreateCluster", json!({"clusterName": cluster, "tags": [{"key": "env", "value": "prod"}]}))?;
        for _ in 0..if on_nodes { NODES } else { 0 } {
            cloud
                .world()
                .with(&place, "bench", |region, context| {
                    region.ecs.add_instance(context, &cluster, InstanceOptions::default())
                })
                .map_err(|error| anyhow::anyhow!("adding a node: {}", error.message))?;
        }
        for service in 0..SERVICES {
            let mut input = json!({"cluster": cluster, "serviceName": format!("service-{service}"), "desiredCount": each,
                                   "taskDefinition": "node", "launchType": "EC2"});
            if !on_nodes {
                input["taskDefinition"] = json!("fargate");
                input["launchType"] = json!("FARGATE");
                input["networkConfiguration"] = json!({"awsvpcConfiguration": {"subnets": ["subnet-1"]}});
            }
            call("CreateService", input)?;
        }
    }
    cloud.advance(Duration::from_secs(180));
    Ok(())
}

/// Sweeps once as the controller does, and tells what it took.
pub fn controller(endpoint: &str) -> Result<Value> {
    tokio::runtime::Runtime::new()?.block_on(swept(endpoint))
}

async fn swept(endpoint: &str) -> Result<Value> {
    let config = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new(KEY.0, KEY.1, None, None, "bench"))
        .load()
        .await;
    let scopes = Arc::new(Scopes::new(config));
    let spec = serde_json::from_value(json!({"regions": [REGION], "accounts": [ACCOUNT], "share": "100%"}))?;
    let problems = scopes.sync(&BTreeMap::from([("own".into(), spec)])).await;
    ensure!(problems.is_empty(), "{problems:?}");
    let scope = scopes.all().pop().context("no scope")?;
    scope.budget.set_share(SHARE);

    let metadata = Metadata { name: "prod".to_owned(), ..Metadata::default() };
    let spec: RuntimeMonitorSpec = serde_json::from_value(json!({"targets": {"ecs": {}}}))?;
    let monitor = Document::RuntimeMonitor(Box::new(Object { metadata, spec }));
    let (desired, problems) = Desired::compile(&[monitor], GatewaySpec::default(), false, |_| "policy".to_owned());
    ensure!(problems.is_empty(), "{problems:?}");
    let mut decider = Decider::new(Arc::new(desired), Memory::default());
    let mut fleet = Fleet::new(Timestamp::now());
    let (sender, mut changes) = mpsc::channel(CHANGES);
    let began = Instant::now();
    let mut observer = Observer::new(scopes.clone(), sender);
    observer.sync();
    let mut seen = BTreeMap::<&str, usize>::new();
    loop {
        let change = changes.recv().await.context("observing ended")?;
        let kind = match &change {
            Change::Cluster(_) => "clusters",
            Change::Service(_) => "services",
            Change::TaskRead { .. } => "tasks",
            Change::NodeRead { .. } => "nodes",
            Change::Denied { .. } => anyhow::bail!("a call was refused: {change:?}"),
            _ => "other",
        };
        *seen.entry(kind).or_default() += 1;
        let last = matches!(change, Change::ScopeSwept { .. });
        let now = Timestamp::now();
        let applied = fleet.apply(change, now);
        drop(decider.decide(&fleet, &applied, now));
        if last {
            break;
        }
    }
    drop(decider.decide_all(&fleet, Timestamp::now()));
    let seconds = began.elapsed().as_secs_f64();
    let counters = scope.budget.counters();
    let own = std::process::id();
    Ok(json!({
        "clusters": seen.get("clusters"), "services": seen.get("services"), "nodes": seen.get("nodes"),
        "tasks": fleet.task_count(),
        "calls": counters.iter().map(|(_, counted)| counted.taken).sum::<u64>(),
        "throttled": counters.iter().map(|(_, counted)| counted.throttled).sum::<u64>(),
        "formula": formula(&fleet), "seconds": seconds,
        "resident_mib": machine::resident(own)?, "peak_mib": machine::peak(own)?,
    }))
}

/// The fewest calls that ECS's page and batch sizes allow; a list is asked even where it is empty.
fn formula(fleet: &Fleet) -> usize {
    let clusters = fleet.clusters().count();
    let of_each = fleet.clusters().map(|(_, state)| {
        let tasks: usize = state.workloads.values().map(|tasks| tasks.len()).sum();
        let (services, nodes) = (state.services.len(), state.nodes.len());
        let pages = |count: usize| count.div_ceil(100).max(1);
        pages(tasks)
            + tasks.div_ceil(100)
            + pages(services)
            + services.div_ceil(10)
            + pages(nodes)
            + nodes.div_ceil(100)
    });
    clusters.div_ceil(100) * 2 + of_each.sum::<usize>()
}
