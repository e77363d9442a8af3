//! `tasuki render`: the task definition with the sidecar, for the owner's own pipeline.

use super::client::{AskError, Client, ServerArgs};
use super::exit::Exit;
use super::terminal::Terminal;
use crate::desired::Loader;
use crate::text::{escape, many};
use serde_json::Value;
use std::io::Read;
use std::path::PathBuf;
use tasuki_api::desired::Document;
use tasuki_core::action::{GatewaySpec, SidecarSpec};
use tasuki_core::desired::Desired;
use tasuki_core::fleet::ScopeId;
use tasuki_core::transform;

/// Bytes of a definition that are read; ECS takes 64 KiB.
const MAX_DEFINITION: u64 = 1 << 20;

/// Arguments of `tasuki render`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tasuki render --config-dir config/ --region eu-west-1 taskdef.json > taskdef.tasuki.json\n  aws ecs describe-task-definition --task-definition shop --query taskDefinition | tasuki render --config-dir config/ --region eu-west-1"
)]
pub struct RenderArgs {
    /// Task definition as JSON; standard input where absent or `-`
    pub definition: Option<PathBuf>,
    /// Directory of YAML files with the monitor
    #[arg(long, env = "TASUKI_CONFIG_DIR")]
    pub config_dir: PathBuf,
    /// Which monitor; needed where there are several with an agent
    #[arg(long)]
    pub monitor: Option<String>,
    /// Region that the definition is for
    #[arg(long, env = "AWS_REGION")]
    pub region: String,
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
    let definition = definition(args)?;
    let gateway = gateway(args, server).await?;
    let spec = sidecar(args, gateway, terminal)?;
    match transform::render(&definition, &spec) {
        Ok(rendered) => Ok((format!("{rendered:#}\n"), Exit::Good)),
        Err(obstacle) => {
            let reason = obstacle.reason;
            Err(refuse(format!("{}: {}\nnext: {}", reason.name(), escape(&obstacle.detail), reason.next_step())))
        }
    }
}

fn definition(args: &RenderArgs) -> Result<Value, AskError> {
    let path = args.definition.as_ref().filter(|path| path.as_os_str() != "-");
    let shown = path.map_or("standard input".to_owned(), |path| path.display().to_string());
    let mut text = String::new();
    let read = match path {
        Some(path) => std::fs::File::open(path).and_then(|file| file.take(MAX_DEFINITION).read_to_string(&mut text)),
        None => std::io::stdin().take(MAX_DEFINITION).read_to_string(&mut text),
    };
    read.map_err(|error| AskError::Refused(format!("{shown} cannot be read: {error}")))?;
    let mut value: Value = serde_json::from_str(&text)
        .map_err(|error| AskError::Refused(format!("{shown} is not the JSON of a task definition: {error}")))?;
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

/// The sidecar that the monitor wants in this Region.
fn sidecar(args: &RenderArgs, gateway: GatewaySpec, terminal: Terminal) -> Result<SidecarSpec, AskError> {
    let loaded = Loader::default().load(&args.config_dir);
    if loaded.has_errors() {
        return Err(refuse(format!("the desired state is refused\n\n{}", super::check::report(&loaded, terminal))));
    }
    let documents: Vec<Document> = loaded.documents();
    let (desired, _) = Desired::compile(&documents, gateway, false, |_| String::new());
    let placing: Vec<_> = desired.monitors.iter().filter(|monitor| monitor.spec.agent.is_some()).collect();
    let names = placing.iter().map(|monitor| &*monitor.name).collect::<Vec<_>>().join(", ");
    let monitor = match (&args.monitor, placing.as_slice()) {
        (Some(name), placing) => placing.iter().find(|monitor| *monitor.name == **name).copied(),
        (None, [only]) => Some(*only),
        (None, []) => {
            return Err(refuse("no monitor names an agent; add spec.agent with version and image".to_owned()));
        }
        (None, _) => None,
    };
    let monitor = monitor.ok_or_else(|| {
        refuse(format!("name one of {} with --monitor: {names}", many(placing.len() as u64, "monitor")))
    })?;
    let scope = args.scope.clone().or_else(|| {
        let has = |name: &str| desired.scopes.get(name).is_some_and(|scope| scope.regions.contains(&args.region));
        desired.scopes.keys().find(|name| has(name)).map(|name| name.to_string())
    });
    let id = ScopeId { account: "".into(), region: args.region.as_str().into() };
    let spec = desired.sidecar(monitor, &id, scope.as_deref().unwrap_or_default());
    let spec = spec.ok_or_else(|| refuse(format!("monitor {} names no agent", monitor.name)))?;
    if spec.agent.gateway.url.is_empty() {
        return Err(refuse("agents would not know where to report; set spec.gateway of the AwsScope, or run the controller with --gateway-url".to_owned()));
    }
    Ok(spec)
}
