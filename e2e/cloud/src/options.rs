//! The command line and what it starts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use serde::Deserialize;
use tasuki_cloud::clock::Clock;
use tasuki_cloud::cloud::{Cloud, Options};
use tasuki_cloud::ecs::InstanceOptions;
use tasuki_cloud::effect::Place;
use tasuki_cloud::faults::Faults;
use tasuki_cloud::runtime::docker::{self, Docker};
use tasuki_cloud::runtime::{Runtime, Virtual};
use tasuki_cloud::settings::Settings;
use tokio::net::TcpListener;

const EXAMPLES: &str = "\
Try it:
  tasuki-cloud --cluster demo --instances 2
  export AWS_ENDPOINT_URL=http://127.0.0.1:4566 AWS_DEFAULT_REGION=eu-central-1
  export AWS_ACCESS_KEY_ID=AKIA111122223333ROOT AWS_SECRET_ACCESS_KEY=local
  aws ecs list-container-instances --cluster demo

Without --config there is one account, 111122223333, with the key above. A config file (JSON) can add more:
  {\"accounts\": [{\"id\": \"222222222222\", \"accessKeyId\": \"AKIAMEMBER\", \"secretAccessKey\": \"local\"}],
   \"roles\": [{\"arn\": \"arn:aws:iam::222222222222:role/tasuki-read\", \"trust\": [\"111122223333\"]}],
   \"clusters\": [{\"account\": \"222222222222\", \"region\": \"eu-west-1\", \"name\": \"web\", \"instances\": 3}],
   \"faults\": {\"duplicate\": 0.1, \"reorder\": 0.2, \"deny\": [{\"principal\": \"*\", \"action\": \"ecs:StopTask\"}]}}

It listens on loopback unless told otherwise: anybody who reaches it and knows a key can start containers.";

/// A local cloud: ECS, EventBridge, SQS and STS in one process, for tests and demonstrations.
///
/// Point the real AWS CLI or any AWS SDK at it. Every request must be signed with a known key, as with AWS. Services schedule
/// tasks, deployments roll, events reach SQS queues. State lives in memory and is gone when it ends.
#[derive(Debug, Parser)]
#[command(name = "tasuki-cloud", version, after_help = EXAMPLES)]
struct Args {
    /// Address of the API.
    #[arg(long, default_value = "127.0.0.1:4566")]
    listen: SocketAddr,
    /// Address of the task metadata and credentials endpoint (AWS: 169.254.170.2:80). Off when absent.
    #[arg(long)]
    metadata: Option<SocketAddr>,
    /// Base URL of that endpoint as containers reach it.
    #[arg(long, default_value = "http://169.254.170.2")]
    metadata_base: String,
    /// Address of the ECS agent's introspection endpoint (AWS: 127.0.0.1:51678). Off when absent.
    #[arg(long)]
    introspection: Option<SocketAddr>,
    /// What runs the containers.
    #[arg(long, value_enum, default_value_t = RuntimeKind::Virtual)]
    runtime: RuntimeKind,
    /// Docker Engine, for --runtime docker.
    #[arg(long, env = "DOCKER_HOST", default_value = "unix:///var/run/docker.sock")]
    docker_host: String,
    /// Name of the network that plays the VPC, and label of the containers; at most 15 bytes.
    #[arg(long, default_value = "tasuki-cloud")]
    network: String,
    /// First three octets of that network.
    #[arg(long, default_value = "172.31.250", value_parser = subnet)]
    subnet: [u8; 3],
    /// Accounts, roles, clusters and faults, as JSON.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Create this cluster at start, in account 111122223333.
    #[arg(long)]
    cluster: Option<String>,
    /// Container instances in that cluster.
    #[arg(long, default_value_t = 0)]
    instances: usize,
    /// Region of that cluster.
    #[arg(long, default_value = "eu-central-1", env = "AWS_REGION")]
    region: String,
    /// Seed of ids and faults; printed at start, so that a run can be repeated.
    #[arg(long)]
    seed: Option<u64>,
    /// Seconds of RUNNING after which a service counts a task as healthy.
    #[arg(long, default_value_t = 40.0)]
    steady_after: f64,
    /// Environment for every container, NAME=VALUE, such as AWS_ENDPOINT_URL; may be repeated.
    #[arg(long = "container-env")]
    container_env: Vec<String>,
    /// Switch the API's throttle buckets off.
    #[arg(long)]
    no_throttling: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RuntimeKind {
    /// No containers: tasks start, run and stop as records.
    Virtual,
    /// Real containers of a Docker Engine; needs root.
    Docker,
}

fn subnet(text: &str) -> Result<[u8; 3], String> {
    let octets: Result<Vec<u8>, _> = text.split('.').map(str::parse).collect();
    octets
        .ok()
        .and_then(|octets| octets.try_into().ok())
        .ok_or_else(|| "write three octets, such as 172.31.250".to_owned())
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Config {
    accounts: Vec<Account>,
    roles: Vec<RoleConfig>,
    clusters: Vec<ClusterConfig>,
    faults: Faults,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Account {
    id: String,
    access_key_id: String,
    secret_access_key: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RoleConfig {
    arn: String,
    trust: Vec<String>,
    external_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClusterConfig {
    account: String,
    region: String,
    name: String,
    #[serde(default)]
    instances: usize,
}

/// The account that is there without any configuration.
const ACCOUNT: &str = "111122223333";

fn config(path: Option<&Path>) -> anyhow::Result<Config> {
    let Some(path) = path else { return Ok(Config::default()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a valid configuration", path.display()))
}

/// Starts the cloud and serves until the process is told to end.
pub async fn run() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    let mut config = config(args.config.as_deref())?;
    let mut container_environment = Vec::new();
    for pair in &args.container_env {
        let Some((name, value)) = pair.split_once('=') else { bail!("--container-env {pair}: expected NAME=VALUE") };
        container_environment.push((name.to_owned(), value.to_owned()));
    }
    let steady_after =
        Duration::try_from_secs_f64(args.steady_after).context("--steady-after must be a positive number")?;
    let settings = Settings {
        steady_after,
        metadata_base: args.metadata_base.trim_end_matches('/').to_owned(),
        container_environment,
        throttling: !args.no_throttling,
        ..Settings::default()
    };
    let clock = Clock::real();
    let mut docker = None;
    let runtime: Arc<dyn Runtime> = match args.runtime {
        RuntimeKind::Virtual => Arc::new(Virtual::new(clock.clone())),
        RuntimeKind::Docker => {
            let (host, name) = (args.docker_host.clone(), args.network.clone());
            let started = Docker::start(docker::Options { host, name, subnet: args.subnet }).await?;
            docker.insert(Arc::new(started)).clone()
        }
    };
    let seed = args.seed.unwrap_or_else(rand::random);
    let faults = std::mem::take(&mut config.faults);
    let cloud = Cloud::new(clock, runtime, Options { seed, settings, faults });
    cloud.add_root_key(ACCOUNT, "AKIA111122223333ROOT", "local");
    set_up(&cloud, config)?;
    if let Some(name) = &args.cluster {
        populate(&cloud, ACCOUNT, &args.region, name, args.instances)?;
    }
    let served = serve(&args, cloud).await;
    if let Some(docker) = docker {
        docker.shut_down().await.context("containers or network are left")?;
    }
    served
}

fn set_up(cloud: &Cloud, config: Config) -> anyhow::Result<()> {
    for account in config.accounts {
        if account.id.len() != 12 || !account.id.bytes().all(|b| b.is_ascii_digit()) {
            bail!("account id {}: expected 12 digits", account.id);
        }
        cloud.add_root_key(&account.id, &account.access_key_id, &account.secret_access_key);
    }
    for role in config.roles {
        if tasuki_cloud::auth::identity::split_role(&role.arn).is_none() {
            bail!("role {}: expected arn:aws:iam::<account>:role/<name>", role.arn);
        }
        cloud.add_role(&role.arn, role.trust, role.external_id);
    }
    for cluster in config.clusters {
        populate(cloud, &cluster.account, &cluster.region, &cluster.name, cluster.instances)?;
    }
    Ok(())
}

fn populate(cloud: &Cloud, account: &str, region: &str, name: &str, instances: usize) -> anyhow::Result<()> {
    let place = Place { account: account.into(), region: region.into() };
    cloud.add_cluster(&place, name).with_context(|| format!("cannot create cluster {name}"))?;
    for _ in 0..instances {
        cloud.add_instance(&place, name, InstanceOptions::default())?;
    }
    Ok(())
}

async fn bind(address: SocketAddr, what: &str, option: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address} for {what}; choose another address with {option}"))
}

async fn serve(args: &Args, cloud: Cloud) -> anyhow::Result<()> {
    let api = bind(args.listen, "the API", "--listen").await?;
    println!("endpoint http://{} seed {}", api.local_addr()?, cloud.seed());
    let api = tasuki_cloud::http::serve(cloud.clone(), api);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .context("cannot wait for a signal")?;
    let metadata = serve_metadata(args, &cloud).await?;
    let introspection = serve_introspection(args, &cloud).await?;
    tokio::select! {
        ended = api => ended.context("the API ended")?,
        ended = metadata => ended.context("the metadata endpoint ended")?,
        ended = introspection => ended.context("the introspection endpoint ended")?,
        () = cloud.drive() => {}
        _ = terminate.recv() => {}
        signal = tokio::signal::ctrl_c() => signal.context("cannot wait for a signal")?,
    }
    Ok(())
}

type Served = std::pin::Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>;

/// A server on a listener, or one that never ends when there is none.
fn served(listener: Option<TcpListener>, router: Option<axum::Router>) -> Served {
    match listener.zip(router) {
        Some((listener, router)) => Box::pin(async move { axum::serve(listener, router).await }),
        None => Box::pin(std::future::pending()),
    }
}

async fn serve_metadata(args: &Args, cloud: &Cloud) -> anyhow::Result<Served> {
    let Some(address) = args.metadata else { return Ok(served(None, None)) };
    let listener = bind(address, "task metadata", "--metadata").await?;
    Ok(served(Some(listener), Some(tasuki_cloud::metadata::router(cloud.clone()))))
}

async fn serve_introspection(args: &Args, cloud: &Cloud) -> anyhow::Result<Served> {
    let Some(address) = args.introspection else { return Ok(served(None, None)) };
    let cluster = args
        .cluster
        .as_deref()
        .context("--introspection needs --cluster and --instances: it speaks for one instance")?;
    let instance = tasuki_cloud::metadata::documents::first_instance(&cloud.world(), cluster);
    let instance = instance.context("--introspection needs at least one container instance: add --instances 1")?;
    let listener = bind(address, "agent introspection", "--introspection").await?;
    Ok(served(Some(listener), Some(tasuki_cloud::metadata::introspection_router(cloud.clone(), instance))))
}
