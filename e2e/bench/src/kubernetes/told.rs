//! What the controller tells, and what it writes.

use super::{LOOK, fill};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tasuki_e2e::http;

/// Whose writes are counted.
const USER: &str = "system:serviceaccount:tasuki-system:tasuki";
/// What takes longer is told no more.
const LONGEST: Duration = Duration::from_secs(60);
/// File of the API server's audit log.
const AUDIT: &str = "audit.log";

/// Arguments by which an API server notes what the controller writes.
pub fn audited(directory: &Path) -> Result<Vec<String>> {
    let policy = directory.join("audit.yaml");
    let verbs = "create, update, patch, delete, deletecollection";
    let rules = format!(
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n  \
         - {{level: Metadata, users: [\"{USER}\"], verbs: [{verbs}]}}\n  - {{level: None}}\n"
    );
    std::fs::write(&policy, rules)?;
    Ok(vec![
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", directory.join(AUDIT).display()),
    ])
}

/// How often the controller wrote what so far, as `verb resource`.
pub fn writes(directory: &Path) -> Result<BTreeMap<String, u64>> {
    let text = std::fs::read_to_string(directory.join(AUDIT)).context("the API server keeps no audit log")?;
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        let (verb, object) = (&event["verb"], &event["objectRef"]);
        let what = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let part = object["subresource"].as_str().map(|part| format!("/{part}")).unwrap_or_default();
        *counts.entry(format!("{} {}{part}", what(verb), what(&object["resource"]))).or_default() += 1;
    }
    Ok(counts)
}

/// What came to it.
pub fn difference(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let more = after.iter().map(|(what, count)| (what.clone(), count - before.get(what).copied().unwrap_or_default()));
    more.filter(|(_, count)| *count > 0).collect()
}

/// Whether a quiet cluster may have it. Questions about tokens are posted, and write nothing.
pub fn is_quiet(what: &str) -> bool {
    ["leases", "events", "tokenreviews"].iter().any(|resource| what.ends_with(resource))
}

/// Tasks by verdict and reason, as the metrics have them.
pub async fn tasks(web: &str) -> Result<BTreeMap<String, u64>> {
    let text = http::send("GET", &format!("{web}/metrics"), "").await?;
    let mut counts = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("tasuki_tasks{")) {
        let (labels, count) = line.rsplit_once("} ").with_context(|| format!("a metric reads {line}"))?;
        let label = |name: &str| {
            let value = labels.split_once(&format!("{name}=\""))?.1;
            Some(value.split_once('"')?.0)
        };
        let what = format!("{} {}", label("verdict").unwrap_or_default(), label("reason").unwrap_or_default());
        *counts.entry(what.trim().to_owned()).or_default() += count.trim().parse::<u64>()?;
    }
    Ok(counts)
}

/// Asks again and again; gives how many seconds it took from `since`.
async fn soon<F: Future<Output = Result<bool>>>(
    since: Instant,
    what: &str,
    mut holds: impl FnMut() -> F,
) -> Result<f64> {
    while !holds().await? {
        ensure!(since.elapsed() < LONGEST, "not within {LONGEST:?}: {what}");
        tokio::time::sleep(LOOK).await;
    }
    Ok(since.elapsed().as_secs_f64())
}

/// Makes changes, and looks how soon they are told.
pub struct Told<'a> {
    pods: Api<Pod>,
    monitors: Api<DynamicObject>,
    web: String,
    nodes: &'a [String],
    number: usize,
}

impl<'a> Told<'a> {
    pub fn new(client: &Client, web: &str, nodes: &'a [String]) -> Self {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("tasuki.dev", "v1alpha1", "RuntimeMonitor"));
        Self {
            pods: Api::namespaced(client.clone(), fill::NAMESPACE),
            monitors: Api::all_with(client.clone(), &kind),
            web: web.to_owned(),
            nodes,
            number: 0,
        }
    }

    /// Makes a pod; gives its name and uid.
    async fn make(&mut self) -> Result<(String, String)> {
        self.number += 1;
        let name = format!("probe-{}", self.number);
        let pod = fill::pod(&name, &self.nodes[self.number % self.nodes.len()], &json!([]))?;
        let made = self.pods.create(&PostParams::default(), &pod).await?;
        Ok((name, made.uid().context("a pod without a uid")?))
    }

    /// Pods that are there; one that went before its agent had named it is still told.
    async fn total(&self) -> Result<u64> {
        Ok(tasks(&self.web).await?.iter().filter(|(what, _)| !what.starts_with("Missed")).map(|(_, count)| count).sum())
    }

    /// Seconds from the API server's answer until the controller knows, and until it shows it.
    pub async fn changes(&mut self, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        let (mut api, mut metrics) = (Vec::new(), Vec::new());
        let before = self.total().await?;
        for _ in 0..count / 2 {
            let (name, uid) = self.make().await?;
            let made = Instant::now();
            let url = format!("{}/api/v1/explain?task={uid}", self.web);
            let known = || async { Ok(http::send("GET", &url, "").await.is_ok()) };
            let shown = || async { Ok(self.total().await? == before + 1) };
            let (known, shown) =
                tokio::join!(soon(made, "a new pod is known", known), soon(made, "a new pod is shown", shown));
            api.push(known?);
            metrics.push(shown?);
            fill::delete(&self.pods, &name).await?;
            let gone = Instant::now();
            let shown = || async { Ok(self.total().await? == before) };
            metrics.push(soon(gone, "a deleted pod is not shown", shown).await?);
        }
        Ok((api, metrics))
    }

    async fn told(&self) -> Result<u64> {
        let monitor = self.monitors.get("prod").await?;
        monitor.data["status"]["coverage"]["total"].as_u64().context("the monitor's status has no total")
    }

    /// Seconds until the monitor's status has a new pod.
    pub async fn status(&mut self, count: usize) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        // What was changed before is told first.
        tokio::time::sleep(Duration::from_secs(15)).await;
        for round in 0..count {
            let before = self.told().await?;
            // Not in step with the writer's own pause.
            tokio::time::sleep(Duration::from_millis(700 * (round as u64 % 10))).await;
            let (name, _) = self.make().await?;
            let made = Instant::now();
            let told = || async { Ok(self.told().await? == before + 1) };
            times.push(soon(made, "the status has a new pod", told).await?);
            fill::delete(&self.pods, &name).await?;
            let gone = Instant::now();
            let told = || async { Ok(self.told().await? == before) };
            times.push(soon(gone, "the status has lost a deleted pod", told).await?);
        }
        Ok(times)
    }
}
