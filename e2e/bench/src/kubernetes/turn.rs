//! Rolls of all nodes: the controller's, and Kubernetes' own.

use super::LIMIT;
use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use std::time::{Duration, Instant};
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::release::digest_of;
use tasuki_e2e_kubernetes::{Agents, Release};

/// Share of the nodes in hand-over at once, percent.
const WIDTH: usize = 3;

/// Nodes in hand-over at once.
pub fn width(nodes: usize) -> usize {
    (nodes * WIDTH).div_ceil(100)
}

/// A monitor that wants this version, rolled in one wave; each version has an image of its own.
pub fn monitor(version: &str, handover: &str) -> String {
    let digest = digest_of(version);
    format!(
        "apiVersion: tasuki.dev/v1alpha1\nkind: RuntimeMonitor\nmetadata: {{name: prod}}\nspec:\n  mode: Enforce\n  \
         targets: {{kubernetes: {{namespaces: {{exclude: [kube-system, tasuki-system, native]}}}}}}\n  \
         kubernetes: {{handover: {handover}}}\n  agent:\n    version: {version}\n    \
         image: {{repository: registry.test/tasuki-agent, digest: \"{digest}\"}}\n  grace: 30s\n  rollout:\n    \
         deadline: 120s\n    waves: [{{name: all, take: 100%, soak: 0s, maxUnavailable: {WIDTH}%}}]\n"
    )
}

/// How long a roll took.
pub struct Turn {
    /// Until every node has the new agent, and no other.
    pub moved: Duration,
    /// Until no trace of the roll is left.
    pub settled: Duration,
}

/// Rolls from a version to the next.
pub async fn ours(
    release: &mut Release,
    agents: &Agents,
    nodes: usize,
    (from, to): (&str, &str),
    handover: &str,
) -> Result<Turn> {
    release.apply(&monitor(to, handover)).await?;
    let began = Instant::now();
    until("every node has the new agent only", LIMIT, || {
        let alive = release.controller().and_then(|controller| controller.process().alive());
        let moved = agents.speaking(to) == nodes && agents.speaking(from) == 0;
        // That it has ended is an answer, not a reason to ask again.
        async move { Ok(if alive.is_err() { Some(alive) } else { moved.then_some(Ok(())) }) }
    })
    .await??;
    let moved = began.elapsed();
    until("no trace of the roll is left", LIMIT, || async {
        let nodes = release.kubectl(&["get", "nodes", "-l", "tasuki.dev/agent-next", "-o=name"]).await?;
        let sets = release.kubectl(&["get", "daemonsets", "--namespace=tasuki-agents", "-o=name"]).await?;
        Ok((nodes.is_empty() && sets.lines().count() == 1).then_some(()))
    })
    .await?;
    Ok(Turn { moved, settled: began.elapsed() })
}

/// Rolls a DaemonSet by `RollingUpdate` at the same width.
pub async fn native(release: &Release, client: &Client, nodes: usize) -> Result<Duration> {
    let set = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: native}}\n---\napiVersion: apps/v1\nkind: DaemonSet\n\
         metadata: {{name: native, namespace: native}}\nspec:\n  selector: {{matchLabels: {{app: native}}}}\n  \
         updateStrategy: {{type: RollingUpdate, rollingUpdate: {{maxUnavailable: {}}}}}\n  template:\n    \
         metadata: {{labels: {{app: native}}}}\n    spec: {{containers: [{{name: native, image: \"registry.test/native:1\"}}]}}\n",
        width(nodes)
    );
    release.apply(&set).await?;
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), "native");
    let rolled = |generation: i64| {
        let sets = sets.clone();
        async move {
            let status = sets.get("native").await?.status.unwrap_or_default();
            let counts =
                [status.updated_number_scheduled, status.number_available, Some(status.desired_number_scheduled)];
            let all = counts.iter().all(|count| count.is_some_and(|count| count as usize == nodes));
            let all = all && status.observed_generation.is_some_and(|seen| seen >= generation);
            Ok(all.then_some(()))
        }
    };
    until("the native DaemonSet is everywhere", LIMIT, || rolled(1)).await?;
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "native", "image": "registry.test/native:2"}]}}}});
    let patched = sets.patch("native", &PatchParams::default(), &Patch::Strategic(image)).await?;
    let generation = patched.metadata.generation.unwrap_or_default();
    ensure!(generation > 1, "the template did not change");
    let began = Instant::now();
    until("the native DaemonSet is rolled", LIMIT, || rolled(generation)).await?;
    Ok(began.elapsed())
}
