//! `tasuki render`: the task definition, or the manifest of Kubernetes, with the sidecar, for the owner's own pipeline.

mod manifests;

use super::client::{AskError, Client, ServerArgs};
use super::exit::Exit;
use super::terminal::Terminal;
use crate::desired::Loader;
use crate::text::escape;
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};
use tasuki_api::desired::Document;
use tasuki_core::action::{AgentSpec, GatewaySpec, SidecarSpec};
use tasuki_core::desired::Desired;
use tasuki_core::fleet::ScopeId;
use tasuki_core::transform::{self, Obstacle};

/// Bytes of a definition that are read; ECS takes 64 KiB.
const MAX_DEFINITION: u64 = 1 << 20;

/// Arguments of `tasuki render`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tasuki render --config-dir config/ --region eu-west-1 taskdef.json > taskdef.tasuki.json\n  tasuki render deployment.yaml > deployment.tasuki.yaml      (asks the running controller)\n  aws ecs describe-task-definition --task-definition shop --query taskDefinition | tasuki render --config-dir config/ --region eu-west-1"
)]
pub struct RenderArgs {
    /// Task definition as JSON, or manifests of Kubernetes as YAML or JSON; standard input where absent or `-`
    pub definition: Option<PathBuf>,
    /// Directory of YAML files with the monitor; for manifests the running controller is asked without it
    #[arg(long, env = "TASUKI_CONFIG_DIR")]
    pub config_dir: Option<PathBuf>,
    /// Which monitor; needed where there are several with an agent
    #[arg(long)]
    pub monitor: Option<String>,
    /// Region that a task definition is for
    #[arg(long, env = "AWS_REGION")]
    pub region: Option<String>,
    /// Name of the cluster that manifests are for, as the controller has it
    #[arg(long, default_value = "self")]
    pub cluster_name: String,
    /// AwsScope that the definition is for [default: the first that has the Region]
    #[arg(long)]
    pub scope: Option<String>,
    /// File with how agents find and trust the gateway, as `/api/v1/gateway` answers it; without it the running controller is asked
    #[arg(long)]
    pub gateway: Option<PathBuf>,
}

/// Why nothing is rendered.
fn refuse(text: String) -> AskError {
    AskError::Absent(text)
}

/// Renders.
pub async fn run(args: &RenderArgs, server: &ServerArgs, terminal: Terminal) -> Result<(String, Exit), AskError> {
    let (shown, text) = read(args)?;
    if let Some(manifests) = manifests::parse(&text) {
        return manifests::run(args, server, terminal, manifests).await;
    }
    let definition = definition(&shown, &text)?;
    let gateway = gateway(args, server).await?;
    let spec = sidecar(args, gateway, terminal)?;
    match transform::render(&definition, &spec) {
        Ok(rendered) => Ok((format!("{rendered:#}\n"), Exit::Good)),
        Err(obstacle) => Err(cannot(&obstacle, obstacle.reason.next_step())),
    }
}

fn cannot(obstacle: &Obstacle, next: &str) -> AskError {
    refuse(format!("{}: {}\nnext: {next}", obstacle.reason.name(), escape(&obstacle.detail)))
}

/// What it is called, and its text.
fn read(args: &RenderArgs) -> Result<(String, String), AskError> {
    let path = args.definition.as_ref().filter(|path| path.as_os_str() != "-");
    let shown = path.map_or("standard input".to_owned(), |path| path.display().to_string());
    let mut text = String::new();
    let read = match path {
        Some(path) => std::fs::File::open(path).and_then(|file| file.take(MAX_DEFINITION).read_to_string(&mut text)),
        None => std::io::stdin().take(MAX_DEFINITION).read_to_string(&mut text),
    };
    read.map_err(|error| AskError::Refused(format!("{shown} cannot be read: {error}")))?;
    Ok((shown, text))
}

fn definition(shown: &str, text: &str) -> Result<Value, AskError> {
    let mut value: Value = serde_json::from_str(text).map_err(|error| {
        AskError::Refused(format!(
            "{shown} is neither the JSON of a task definition ({error}) nor a manifest with apiVersion and kind"
        ))
    })?;
    // What `aws ecs describe-task-definition` prints without a query.
    Ok(match value.get_mut("taskDefinition") {
        Some(inner) if inner.is_object() => inner.take(),
        _ => value,
    })
}

async fn gateway(args: &RenderArgs, server: &ServerArgs) -> Result<GatewaySpec, AskError> {
    let Some(path) = &args.gateway else { return Client::new(server)?.get("gateway", &[]).await };
    let shown = path.display();
    let text =
        std::fs::read_to_string(path).map_err(|error| AskError::Refused(format!("{shown} cannot be read: {error}")))?;
    serde_json::from_str(&text)
        .map_err(|error| AskError::Refused(format!("{shown} is not what /api/v1/gateway answers: {error}")))
}

/// Desired state from the directory.
fn desired(directory: &Path, gateway: GatewaySpec, terminal: Terminal) -> Result<Desired, AskError> {
    let loaded = Loader::default().load(directory);
    if loaded.has_errors() {
        return Err(refuse(format!("the desired state is refused\n\n{}", super::check::report(&loaded, terminal))));
    }
    let documents: Vec<Document> = loaded.documents();
    Ok(Desired::compile(&documents, gateway, false, |_| String::new()).0)
}

/// The sidecar that the monitor wants in this Region.
fn sidecar(args: &RenderArgs, gateway: GatewaySpec, terminal: Terminal) -> Result<SidecarSpec, AskError> {
    let needed = |what: &str| AskError::Refused(format!("a task definition needs {what}"));
    let directory = args.config_dir.as_ref().ok_or_else(|| needed("--config-dir, which holds the monitor"))?;
    let region = args.region.as_deref().ok_or_else(|| needed("--region, which it is for"))?;
    let desired = desired(directory, gateway, terminal)?;
    let monitor = desired.placing(args.monitor.as_deref()).map_err(refuse)?;
    let scope = args.scope.clone().or_else(|| {
        let has = |name: &str| desired.scopes.get(name).is_some_and(|scope| scope.regions.iter().any(|r| r == region));
        desired.scopes.keys().find(|name| has(name)).map(|name| name.to_string())
    });
    let id = ScopeId { account: "".into(), region: region.into() };
    let spec = desired.sidecar(monitor, &id, scope.as_deref().unwrap_or_default());
    let spec = spec.ok_or_else(|| refuse(format!("monitor {} names no agent", monitor.name)))?;
    reachable(&spec.agent)?;
    Ok(spec)
}

fn reachable(agent: &AgentSpec) -> Result<(), AskError> {
    if agent.gateway.url.is_empty() {
        return Err(refuse("agents would not know where to report; set spec.gateway of the AwsScope, or run the controller with --gateway-url".to_owned()));
    }
    Ok(())
}
