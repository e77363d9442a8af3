//! Manifests of Kubernetes: one file may hold several, and those that make no pods stay as they are.

use super::{Client, RenderArgs, ServerArgs, cannot, desired, gateway, reachable, refuse};
use crate::cli::client::AskError;
use crate::cli::exit::Exit;
use crate::cli::terminal::Terminal;
use crate::engine::PodSidecar;
use serde::Deserialize;
use serde_json::Value;
use tasuki_core::fleet::ScopeId;
use tasuki_core::transform::{Rendered, render_pods};

/// Manifests, and whether they were JSON.
pub struct Manifests {
    documents: Vec<Value>,
    json: bool,
}

/// Reads manifests; `None` where the text is something else.
pub fn parse(text: &str) -> Option<Manifests> {
    let documents: Vec<Value> = serde_yaml::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).ok())
        .collect::<Option<_>>()?;
    let of_kubernetes = |document: &Value| document["apiVersion"].is_string() && document["kind"].is_string();
    documents.iter().any(of_kubernetes).then(|| Manifests { documents, json: text.trim_start().starts_with('{') })
}

/// Renders them.
pub async fn run(
    args: &RenderArgs,
    server: &ServerArgs,
    terminal: Terminal,
    manifests: Manifests,
) -> Result<(String, Exit), AskError> {
    let sidecar = sidecar(args, server, terminal).await?;
    reachable(&sidecar.agent)?;
    let (mut out, mut any) = (String::new(), false);
    // What is empty between two `---` is nobody's loss.
    for document in manifests.documents.iter().filter(|document| !document.is_null()) {
        let rendered = render_pods(document, &sidecar.agent, &sidecar.cluster)
            .map_err(|obstacle| cannot(&obstacle, obstacle.reason.next_step_for_pods()))?;
        any |= matches!(rendered, Rendered::Pods(_));
        let value = rendered.into_value();
        if manifests.json {
            out += &format!("{value:#}\n");
            continue;
        }
        if !out.is_empty() {
            out += "---\n";
        }
        out += &serde_yaml::to_string(&value).map_err(|error| AskError::Refused(error.to_string()))?;
    }
    if !any {
        return Err(refuse(
            "nothing in it makes pods; give it a Pod, Deployment, StatefulSet, Job, CronJob, or the like".to_owned(),
        ));
    }
    Ok((out, Exit::Good))
}

async fn sidecar(args: &RenderArgs, server: &ServerArgs, terminal: Terminal) -> Result<PodSidecar, AskError> {
    let Some(directory) = &args.config_dir else {
        let query: Vec<_> = args.monitor.iter().map(|monitor| ("monitor", monitor.clone())).collect();
        return Client::new(server)?.get("sidecar", &query).await;
    };
    let desired = desired(directory, gateway(args, server).await?, terminal)?;
    let monitor = desired.placing(args.monitor.as_deref()).map_err(refuse)?;
    let cluster = args.cluster_name.clone();
    let agent = desired.agent(monitor, &ScopeId::kubernetes(&cluster), "");
    let agent = agent.ok_or_else(|| refuse(format!("monitor {} names no agent", monitor.name)))?;
    Ok(PodSidecar { cluster, agent })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn manifests_are_told_from_task_definitions() {
        assert_eq!(parse("apiVersion: v1\nkind: Pod\n---\nkind: x\n").unwrap().documents.len(), 2);
        assert!(parse("{\"apiVersion\": \"v1\", \"kind\": \"Pod\"}").unwrap().json);
        for other in ["{\"family\": \"shop\"}", "", "a: [", "kind: Pod"] {
            assert!(parse(other).is_none(), "{other}");
        }
    }
}
