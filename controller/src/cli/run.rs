//! `tasuki run`: arguments of the controller.

use super::exit::Exit;
use super::terminal::complain;
use crate::cidr::Cidr;
use crate::desired::kubernetes::DefaultMonitor;
use crate::gateway::Limits;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the store's file in the state directory.
const STORE_FILE: &str = "tasuki.db";

/// Arguments of `tasuki run`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Example:\n  tasuki run --config-dir config/ --gateway-url https://tasuki.example.internal:8443"
)]
pub struct RunArgs {
    /// Directory of YAML files with the desired state; read again on each change
    #[arg(long, env = "TASUKI_CONFIG_DIR")]
    pub config_dir: Option<PathBuf>,
    /// Look at the directory at least this often, for file systems that send no notices
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub config_poll: Duration,
    /// Where the controller keeps its own files
    #[arg(long, env = "TASUKI_STATE_DIR", default_value_os_t = default_state_dir())]
    pub state_dir: PathBuf,
    /// Database: sqlite:///path/file.db or postgres://… [default: tasuki.db in the state directory]
    #[arg(long, env = "TASUKI_STORE")]
    pub store: Option<String>,
    /// Findings last seen before this are forgotten
    #[arg(long, env = "TASUKI_KEEP_FINDINGS", default_value = "90d", value_parser = duration)]
    pub keep_findings: Duration,
    /// Of more findings than this the oldest are forgotten
    #[arg(long, env = "TASUKI_MAX_FINDINGS", default_value_t = 100_000)]
    pub max_findings: u32,
    /// A Kubernetes cluster.
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
    /// Address of the JSON API, the metrics and the page
    #[arg(long, env = "TASUKI_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Name by which a proxy reaches the page (may be given several times); loopback names always work
    #[arg(long = "web-host", env = "TASUKI_WEB_HOST", value_delimiter = ',')]
    pub web_hosts: Vec<String>,
    /// Reading needs no token even where --listen is not loopback: something in front asks who its users are
    #[arg(long, env = "TASUKI_WEB_OPEN")]
    pub web_open: bool,
    /// Address that agents report to
    #[arg(long, env = "TASUKI_GATEWAY_LISTEN", default_value = "0.0.0.0:8443")]
    pub gateway_listen: SocketAddr,
    /// How agents reach that address, as https://host:port
    #[arg(long, env = "TASUKI_GATEWAY_URL")]
    pub gateway_url: Option<String>,
    /// Addresses of load balancers that name their clients by proxy protocol v2, such as 10.0.0.0/24 (may be given
    /// several times); each of their connections must begin with its header
    #[arg(long = "gateway-proxy", env = "TASUKI_GATEWAY_PROXY", value_name = "CIDR", value_delimiter = ',')]
    pub gateway_proxies: Vec<Cidr>,
    /// PEM file with the gateway's certificate chain, of an authority that the agents' trust store knows [default: one
    /// of the controller's own authority]; read again every hour
    #[arg(long, env = "TASUKI_GATEWAY_CERT", requires = "gateway_key")]
    pub gateway_cert: Option<PathBuf>,
    /// PEM file with the key of --gateway-cert
    #[arg(long, env = "TASUKI_GATEWAY_KEY", requires = "gateway_cert")]
    pub gateway_key: Option<PathBuf>,
    /// Connections of agents at once from one address; raise it where a load balancer hides theirs
    #[arg(long, env = "TASUKI_GATEWAY_CONNECTIONS_PER_ADDRESS", value_name = "N", default_value_t = Limits::default().connections_per_address)]
    pub gateway_connections_per_address: usize,
    /// Requests of agents a second from one address, on average; raise it where a load balancer hides theirs
    #[arg(long, env = "TASUKI_GATEWAY_REQUESTS_PER_ADDRESS", value_name = "N", default_value_t = 20)]
    pub gateway_requests_per_address: u32,
    /// Address of the AWS APIs, for tests against a local cloud
    #[arg(long, env = "TASUKI_AWS_ENDPOINT", hide = true)]
    pub aws_endpoint: Option<String>,
    /// Form of the log on standard error
    #[arg(long, env = "TASUKI_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// What is logged, such as info or tasuki=debug
    #[arg(long, env = "TASUKI_LOG", default_value = "info")]
    pub log: String,
}

/// Where the controller runs in a Kubernetes cluster.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct KubernetesArgs {
    /// Watch the pods of the cluster that this runs in, or that KUBECONFIG names
    #[arg(long, env = "TASUKI_KUBERNETES", action = clap::ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub kubernetes: bool,
    /// Name of that cluster, by which monitors select it
    #[arg(long, env = "TASUKI_CLUSTER", default_value = "self")]
    pub cluster_name: String,
    /// Namespace of the controller
    #[arg(long, env = "TASUKI_NAMESPACE", default_value = "tasuki-system")]
    pub namespace: String,
    /// Namespace of the agents
    #[arg(long, env = "TASUKI_AGENT_NAMESPACE", default_value = "tasuki-agents")]
    pub agent_namespace: String,
    /// The chart's policy adds sidecars to new pods, where a monitor says `delivery: Live`
    #[arg(long, env = "TASUKI_LIVE_SIDECARS", action = clap::ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub live_sidecars: bool,
    /// Make a RuntimeMonitor named default where none exists, and keep it as the flags below say until you change it
    #[arg(long, env = "TASUKI_DEFAULT_MONITOR", action = clap::ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub default_monitor: bool,
    /// Whether that monitor may change anything
    #[arg(long, env = "TASUKI_DEFAULT_MONITOR_MODE", value_name = "Observe|Enforce", default_value = "Observe")]
    pub default_monitor_mode: String,
    /// Agent image of that monitor, as repository@sha256:…
    #[arg(long, env = "TASUKI_DEFAULT_AGENT_IMAGE", value_name = "IMAGE", requires = "default_agent_version")]
    pub default_agent_image: Option<String>,
    /// Agent version of that monitor
    #[arg(long, env = "TASUKI_DEFAULT_AGENT_VERSION", value_name = "VERSION", requires = "default_agent_image")]
    pub default_agent_version: Option<String>,
}

impl KubernetesArgs {
    /// The monitor that a new installation begins with, if one.
    ///
    /// # Errors
    /// Where its flags say what no monitor can be.
    pub fn default_monitor(&self) -> anyhow::Result<Option<DefaultMonitor>> {
        use anyhow::Context;
        if !self.default_monitor {
            return Ok(None);
        }
        let mode = serde_json::from_value(self.default_monitor_mode.as_str().into()).with_context(|| {
            format!("--default-monitor-mode {:?} is neither Observe nor Enforce", self.default_monitor_mode)
        })?;
        let agent = self.default_agent_image.as_ref().zip(self.default_agent_version.clone());
        let agent = agent.map(|(image, version)| {
            let (repository, digest) = image.split_once('@').with_context(|| {
                format!("--default-agent-image {image:?} has no digest; name it as repository@sha256:…")
            })?;
            anyhow::Ok((version, repository.to_owned(), digest.to_owned()))
        });
        Ok(Some(DefaultMonitor { mode, agent: agent.transpose()? }))
    }

    /// The cluster.
    ///
    /// # Errors
    /// Where neither the environment of a pod nor a kubeconfig says how it is reached.
    pub async fn connect(&self) -> anyhow::Result<crate::scope::kubernetes::Kubernetes> {
        use anyhow::Context;
        let plain =
            |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        anyhow::ensure!(
            plain(&self.cluster_name),
            "--cluster-name {:?} is not usable: letters, digits, `-`, `_` and `.` only",
            self.cluster_name
        );
        let client = kube::Client::try_default()
            .await
            .context("--kubernetes: no API server is known; run it in a pod, or set KUBECONFIG")?;
        Ok(crate::scope::kubernetes::Kubernetes {
            client,
            cluster: self.cluster_name.as_str().into(),
            namespace: self.namespace.as_str().into(),
            agent_namespace: self.agent_namespace.as_str().into(),
            live_sidecars: self.live_sidecars,
        })
    }
}

impl RunArgs {
    /// URL of the store.
    pub fn store_url(&self) -> String {
        self.store.clone().unwrap_or_else(|| format!("sqlite://{}", self.state_dir.join(STORE_FILE).display()))
    }
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// A duration as the command line takes it, such as `90s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<tasuki_api::desired::Duration>().map(|duration| duration.to_std()).map_err(|error| error.to_string())
}

/// Where the controller keeps its own files: what systemd gives, the system's place for root, the
/// user's place for others.
pub fn default_state_dir() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(given) = variable("TASUKI_STATE_DIR").or_else(|| variable("STATE_DIRECTORY")) {
        return given;
    }
    match (variable("XDG_STATE_HOME"), variable("HOME")) {
        (Some(state), _) => state.join("tasuki"),
        (None, Some(home)) if home.as_os_str() != "/root" && home.as_os_str() != "/" => {
            home.join(".local/state/tasuki")
        }
        _ => system_dir(Path::new("/var/lib/tasuki")),
    }
}

/// The controller's part of `base`, which the agent on the same machine uses as well; `base` itself where an
/// earlier version left its store there.
fn system_dir(base: &Path) -> PathBuf {
    if base.join(STORE_FILE).exists() { base.to_owned() } else { base.join("controller") }
}

/// The three lines that make the first run useful.
pub const FIRST_LINES: &str = "\
nothing to watch: no desired state is given. The smallest that is useful reports on every ECS task of one Region:

  mkdir config && cat > config/tasuki.yaml <<'EOF'
  {apiVersion: tasuki.dev/v1alpha1, kind: AwsScope, metadata: {name: here}, spec: {regions: [eu-west-1]}}
  ---
  {apiVersion: tasuki.dev/v1alpha1, kind: RuntimeMonitor, metadata: {name: all}, spec: {targets: {ecs: {}}}}
  EOF
  tasuki run --config-dir config/

It changes nothing (mode: Observe). Then: `tasuki coverage`, `tasuki plan`.
";

/// Runs the controller until it is told to stop.
pub async fn run(args: RunArgs) -> std::process::ExitCode {
    if args.config_dir.is_none() && !args.kubernetes.kubernetes {
        complain(FIRST_LINES);
        return Exit::Unknown.into();
    }
    log(&args);
    match crate::engine::run(args).await {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("error: {}\n", crate::text::escape(&format!("{error:#}"))));
            Exit::Unknown.into()
        }
    }
}

fn log(args: &RunArgs) {
    use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
    use tracing_subscriber::prelude::*;
    let filter = EnvFilter::try_new(&args.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let filter = filter.and(filter_fn(may_be_logged));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = match args.log_format {
        LogFormat::Text => layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => layer.json().boxed(),
    };
    // A second subscriber is refused; that happens in tests only.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
}

/// The SDK logs whole requests and answers below info: credentials of roles, and task definitions with what
/// their owners wrote into them. That never reaches the log, whatever it is told.
fn may_be_logged(metadata: &tracing::Metadata<'_>) -> bool {
    *metadata.level() <= tracing::Level::INFO || !metadata.target().starts_with("aws_")
}

#[cfg(test)]
mod tests {
    use super::may_be_logged;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
    use tracing_subscriber::prelude::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_controller_does_not_share_the_agents_directory_unless_its_store_is_there() {
        let base = tempfile::tempdir().unwrap();
        assert_eq!(super::system_dir(base.path()), base.path().join("controller"));
        std::fs::write(base.path().join(super::STORE_FILE), "").unwrap();
        assert_eq!(super::system_dir(base.path()), base.path());
    }

    #[test]
    fn what_the_sdk_says_of_bodies_is_never_logged() {
        let lines = Lines::default();
        let out = lines.clone();
        let filter = EnvFilter::new("trace,aws_smithy_runtime::client=trace").and(filter_fn(may_be_logged));
        let layer = tracing_subscriber::fmt::layer().with_writer(move || out.clone()).with_filter(filter);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::trace!(target: "aws_smithy_runtime::client::orchestrator", "body with a secret");
            tracing::debug!(target: "aws_smithy_runtime_api::client", "headers with a secret");
            tracing::info!(target: "aws_config", "shown");
            tracing::trace!(target: "tasuki::act", "ours");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains("secret") && text.contains("shown") && text.contains("ours"), "{text}");
    }
}
