//! Starts everything and waits until it is told to stop.

use super::buses::ScopeBuses;
use super::cluster;
use super::housekeeping::{Keep, tidy};
use super::inputs::{APPROVED_SETTING, Source};
use super::view::Context as ViewContext;
use super::{
    Engine, Execute, FleetDirectory, Freezer, Hands, Inputs, Knowledge, MINUTES, Memories, Minutes, Shared, View, Work,
};
use crate::act::Executor;
use crate::cli::RunArgs;
use crate::gateway::{self, Certificate, Gateway, Parts, PolicyStore, StsEndpoint};
use crate::http::Http;
use crate::lease::Held;
use crate::observe::Observer;
use crate::scope::Scopes;
use crate::scope::kubernetes::Kubernetes;
use crate::sinks::Sinks;
use crate::store::{FROZEN, Store};
use crate::tally::Tally;
use crate::web::{AdminToken, Metrics, Web};
use anyhow::Context;
use aws_config::SdkConfig;
use jiff::Timestamp;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tasuki_core::action::GatewaySpec;
use tasuki_core::decide::Decider;
use tasuki_core::desired::Desired;
use tasuki_core::fleet::Fleet;
use tasuki_core::memory::Memory;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Changes that wait for the engine; observe and gateway wait when there are more.
const CHANGES: usize = 4096;
/// How long agents' requests under way may take at the end.
const GRACE: Duration = Duration::from_secs(3);

/// What a controller is given beside its arguments: tests give their own.
pub struct Surroundings {
    /// Credentials and endpoints of AWS; `None` for those of the environment.
    pub aws: Option<SdkConfig>,
    /// The gateway's configuration.
    pub gateway: gateway::Config,
    /// The Kubernetes cluster, where one is watched.
    pub kubernetes: Option<Kubernetes>,
}

impl Surroundings {
    /// From the environment and the arguments.
    ///
    /// # Errors
    /// Where an argument is no URL.
    pub async fn of(args: &RunArgs) -> anyhow::Result<Self> {
        let kubernetes = match args.kubernetes.kubernetes {
            true => Some(args.kubernetes.connect().await?),
            false => None,
        };
        Ok(Self { aws: None, gateway: gateway_config(args)?, kubernetes })
    }
}

/// Runs the controller until SIGTERM or Ctrl-C.
///
/// # Errors
/// Where it cannot start: the state directory, the store or an address cannot be used.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let surroundings = Surroundings::of(&args).await?;
    let leading = match &surroundings.kubernetes {
        Some(kubernetes) => tokio::select! {
            held = cluster::lead(&args, kubernetes) => Some(held),
            told = stopped() => return told.map(|()| ExitCode::SUCCESS),
        },
        None => None,
    };
    let controller = tokio::select! {
        started = Controller::start(args, surroundings) => started?,
        told = stopped() => return told.map(|()| ExitCode::SUCCESS),
        () = lost(leading.as_ref()) => anyhow::bail!(LOST),
    };
    tokio::select! {
        told = stopped() => told?,
        // Another controller may act from now on: nothing is brought to an end in order.
        () = lost(leading.as_ref()) => anyhow::bail!(LOST),
    }
    tracing::info!("stopping");
    controller.stop().await?;
    if let Some(held) = leading {
        held.release().await;
    }
    Ok(ExitCode::SUCCESS)
}

const LOST: &str = "the lease was lost: another controller may be at work";

/// Returns once the lease is lost, where one is held.
async fn lost(leading: Option<&Held>) {
    match leading {
        Some(held) => held.lost().await,
        None => std::future::pending().await,
    }
}

/// A running controller.
pub struct Controller {
    engine: Engine,
    store: Store,
    gateway: Arc<Gateway>,
    listen: SocketAddr,
    stop: CancellationToken,
    ending: watch::Sender<bool>,
    working: JoinHandle<()>,
    following: JoinHandle<()>,
    serving: JoinHandle<std::io::Result<()>>,
    tidying: JoinHandle<()>,
}

impl Controller {
    /// Starts everything; when this returns, page, API and gateway listen.
    ///
    /// # Errors
    /// Where it cannot start: the state directory, the store or an address cannot be used.
    pub async fn start(args: RunArgs, surroundings: Surroundings) -> anyhow::Result<Self> {
        let token = AdminToken::make(&args.state_dir)
            .with_context(|| format!("cannot write to the state directory {}", args.state_dir.display()))?;
        let store = Store::open(&args.store_url()).await.context("cannot open the store")?;
        let kubernetes = surroundings.kubernetes;
        if let Some(cluster) = &kubernetes {
            cluster::keys(cluster, &store).await.context("the gateway's keys")?;
        }
        let desired = match (args.config_dir.clone(), &kubernetes) {
            (Some(directory), _) => crate::desired::follow(directory, args.config_poll).await.0,
            (None, Some(cluster)) => cluster::desired(&args.kubernetes, cluster).await?,
            (None, None) => anyhow::bail!("no desired state: name a directory with --config-dir"),
        };
        let (freezer, freezes) = match &kubernetes {
            Some(cluster) => (Freezer::Cluster(cluster.clone()), cluster::frozen(cluster).await),
            None => {
                let (freeze, freezes) = watch::channel(store.setting(FROZEN).await?.as_deref() == Some("true"));
                (Freezer::Store(store.clone(), freeze), freezes)
            }
        };
        let mut memories = Memories::new(store.clone(), kubernetes.clone());
        let shared = Arc::new(Shared::new(remembered(&store, memories.load().await?).await?));
        let (changes, changed) = mpsc::channel(CHANGES);
        let scopes = Arc::new(surroundings.aws.map_or_else(Scopes::from_environment, Scopes::new));
        let acting = Executor::new(scopes.clone(), store.clone());
        let in_cluster = kubernetes.as_ref().map(|cluster| cluster::executor(cluster, store.clone()));
        let executor: Arc<dyn Execute> = Arc::new(Hands { aws: acting.clone(), kubernetes: in_cluster });
        let policies = Arc::new(PolicyStore::open(store.clone()).await.context("the policy key cannot be kept")?);
        let http = Http::new(None).context("the HTTP client cannot be made")?;

        let fleet_directory = FleetDirectory::new(shared.clone(), scopes.clone(), executor.clone(), changes.clone());
        let parts = Parts {
            store: store.clone(),
            directory: Arc::new(fleet_directory),
            policies: policies.clone(),
            changes: changes.clone(),
            http: http.clone(),
            reviewer: kubernetes.as_ref().map(cluster::reviewer),
        };
        let gateway = Gateway::start(surroundings.gateway, parts).await.context("the gateway cannot start")?;
        let gateway = Arc::new(gateway);
        let gateway_spec = GatewaySpec {
            url: gateway_url(&args, gateway.address()).into(),
            ca: gateway.authority().unwrap_or_default().into(),
            policy_key: policies.public_key().into(),
        };
        let sinks = Sinks::new(store.clone(), http, Arc::new(ScopeBuses(scopes.clone())), gateway.stored());
        let (metrics, queue_tally) = (Arc::new(Metrics::default()), Arc::new(Tally::default()));
        metrics.join_tally("gateway", gateway.tally().clone());
        metrics.join_tally("sinks", sinks.tally().clone());
        metrics.join_tally("queue", queue_tally.clone());
        let store_tally = Arc::new(Tally::default());
        metrics.join_tally("store", store_tally.clone());

        let (requests, asked) = mpsc::channel(64);
        let (view_sender, view) = watch::channel(Arc::new(View::default()));
        let nothing = Inputs {
            desired: Arc::new(Desired::default()),
            context: ViewContext::default(),
            ready: false,
            swept: Default::default(),
        };
        let (inputs_sender, inputs) = watch::channel(nothing);
        let observer = Observer::new(scopes.clone(), changes.clone());
        if let Some(cluster) = &kubernetes {
            cluster::tell(cluster, view.clone(), desired.clone());
        }
        let kubernetes = kubernetes.map(|cluster| cluster::observe(cluster, changes.clone()));
        let source = Source {
            desired: desired.clone(),
            frozen: freezes,
            scopes,
            observer,
            kubernetes,
            executor: acting,
            sinks,
            changes,
            queue_tally,
            told: Default::default(),
            retry_at: None,
            resolved: false,
            policies,
            gateway: gateway.clone(),
            gateway_spec: gateway_spec.clone(),
            shared: shared.clone(),
            store: store.clone(),
            inputs: inputs_sender,
        };
        let work = Work {
            shared,
            store: store.clone(),
            memories,
            executor,
            changes: changed,
            inputs,
            requests: asked,
            view: view_sender,
            freezer,
        };

        let listener = tokio::net::TcpListener::bind(args.listen)
            .await
            .with_context(|| format!("cannot listen on {}; name another address with --listen", args.listen))?;
        let listen = listener.local_addr().context("the address is gone again")?;
        let stop = CancellationToken::new();
        let keep = Keep { age: args.keep_findings, findings: args.max_findings };
        let tidying = tokio::spawn(tidy(store.clone(), keep, store_tally, stop.clone()));
        let engine = Engine { view, requests };
        let web = Web {
            engine: engine.clone(),
            store: store.clone(),
            desired,
            metrics,
            token,
            gateway: gateway_spec,
            hosts: args.web_hosts.clone(),
            open: args.web_open,
            listen,
        };
        tracing::info!(address = %listen, "the page and the API are served");
        let serving = tokio::spawn(crate::web::serve(listener, Arc::new(web), stop.clone().cancelled_owned()));
        let following = tokio::spawn(source.run());
        let (ending, ended) = watch::channel(false);
        let working = tokio::spawn(work.run(ended));
        Ok(Self { engine, store, gateway, listen, stop, ending, working, following, serving, tidying })
    }

    /// What the engine may be asked.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Findings, actions and settings.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What agents talk to.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Where page and API listen.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Ends everything in order; what is under way may end within a moment.
    ///
    /// # Errors
    /// Where a part broke.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.ending.send_replace(true);
        self.working.await.context("the engine broke")?;
        self.following.await.context("following the desired state broke")?;
        if let Ok(gateway) = Arc::try_unwrap(self.gateway) {
            gateway.stop(GRACE).await;
        }
        drop(self.engine);
        self.tidying.await.context("tidying up broke")?;
        self.serving.await.context("the web server broke")?.context("the web server failed")
    }
}

/// What an earlier run left in the store.
async fn remembered(store: &Store, memory: Memory) -> anyhow::Result<Knowledge> {
    let minutes: Option<Minutes> = store.setting(MINUTES).await?.and_then(|text| serde_json::from_str(&text).ok());
    let approved = store.setting(APPROVED_SETTING).await?.and_then(|text| serde_json::from_str(&text).ok());
    Ok(Knowledge {
        fleet: Fleet::new(Timestamp::now()),
        decider: Decider::new(Arc::new(Desired::default()), memory),
        minutes: minutes.unwrap_or_default(),
        ended: Default::default(),
        approved: approved.unwrap_or_default(),
    })
}

fn gateway_config(args: &RunArgs) -> anyhow::Result<gateway::Config> {
    let url = args.gateway_url.as_deref().map(url::Url::parse).transpose().context("--gateway-url is no URL")?;
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    names.extend(url.as_ref().and_then(url::Url::host_str).map(str::to_owned));
    if !args.gateway_listen.ip().is_unspecified() {
        names.push(args.gateway_listen.ip().to_string());
    }
    names.sort();
    names.dedup();
    let mut config = gateway::Config::new(args.gateway_listen, names);
    if let (Some(chain), Some(key)) = (&args.gateway_cert, &args.gateway_key) {
        config.certificate = Certificate::Files { chain: chain.clone(), key: key.clone() };
    }
    config.proxies = args.gateway_proxies.clone();
    config.agent_pods.namespace.clone_from(&args.kubernetes.agent_namespace);
    let limits = &mut config.limits;
    limits.connections_per_address = args.gateway_connections_per_address.max(1);
    // A burst as many times the average as by default.
    let requests = f64::from(args.gateway_requests_per_address.max(1));
    (limits.burst, limits.requests_per_second) = (limits.burst / limits.requests_per_second * requests, requests);
    if let Some(endpoint) = &args.aws_endpoint {
        config.sts = StsEndpoint::Override(endpoint.parse().context("--aws-endpoint is no URL")?);
    }
    Ok(config)
}

/// The address that agents are given.
fn gateway_url(args: &RunArgs, listens: SocketAddr) -> String {
    args.gateway_url.clone().unwrap_or_else(|| {
        let address = match listens.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
            IpAddr::V6(ip) if ip.is_unspecified() => "[::1]".to_owned(),
            IpAddr::V6(ip) => format!("[{ip}]"),
            IpAddr::V4(ip) => ip.to_string(),
        };
        tracing::warn!(address, "no --gateway-url: agents on other machines cannot reach the gateway");
        format!("https://{address}:{}", listens.port())
    })
}

/// Waits for SIGTERM or Ctrl-C.
async fn stopped() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    #[test]
    fn the_gateway_gets_what_its_flags_say() {
        let line = "run --gateway-proxy 10.0.0.0/24 --gateway-proxy 10.0.1.7 --gateway-cert c.pem --gateway-key k.pem \
                    --gateway-connections-per-address 5000 --gateway-requests-per-address 400";
        let args = Line::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{error}")).run;
        let config = gateway_config(&args).unwrap();
        assert_eq!(config.proxies, ["10.0.0.0/24".parse().unwrap(), "10.0.1.7/32".parse().unwrap()]);
        assert!(matches!(config.certificate, Certificate::Files { chain, .. } if chain.ends_with("c.pem")));
        let limits = (config.limits.connections_per_address, config.limits.requests_per_second, config.limits.burst);
        assert_eq!(limits, (5000, 400.0, 2000.0));
        let bare = Line::try_parse_from(["run"]).unwrap_or_else(|error| panic!("{error}")).run;
        let config = gateway_config(&bare).unwrap();
        assert!(config.proxies.is_empty() && matches!(config.certificate, Certificate::Own { .. }));
        assert_eq!(config.limits, gateway::Limits::default());
        assert!(Line::try_parse_from(["run", "--gateway-cert", "c.pem"]).is_err(), "a certificate without its key");
    }
}
