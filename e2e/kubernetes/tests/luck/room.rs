//! A cluster with a controller and agents, and what can be asked of it.

use anyhow::{Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tasuki_e2e::coverage::{rows, settled};
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::release::{Clock, digest_of};
use tasuki_e2e_kubernetes::{Agents, Kwok, Options, Release, kubectl};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

/// Long enough for a loaded machine with two cores.
pub const LIMIT: Duration = Duration::from_secs(120);
/// Two cores carry one control plane well, and five of them badly.
static TURN: Mutex<()> = Mutex::const_new(());

/// Everything that runs; it ends in this order.
pub struct Room {
    pub agents: Agents,
    pub kwok: Kwok,
    pub release: Release,
    turn: Option<MutexGuard<'static, ()>>,
}

impl Room {
    /// With this many nodes, each with a pod of the shop's, and no monitor.
    pub async fn start(nodes: usize) -> Self {
        Box::pin(Self::with(Options::default(), Clock::default(), nodes)).await
    }

    /// The same on a plane with options, and with a controller that has a clock of its own.
    pub async fn with(options: Options, clock: Clock, nodes: usize) -> Self {
        let turn = Some(TURN.lock().await);
        let mut release = Release::with(options, &["enforce=true", "defaultMonitor=false"]).await.unwrap();
        release.clock = clock;
        let mut kwok = Kwok::start(&release.plane).await.unwrap();
        kwok.nodes("node", nodes, &BTreeMap::new()).await.unwrap();
        release.apply(SHOP).await.unwrap();
        release.start_controller(&[]).await.unwrap();
        let agents = Agents::start(&release.plane, &release.gateway).await.unwrap();
        Self { agents, kwok, release, turn }
    }

    /// Lets others have the machine until then, and until it is free again.
    pub async fn rest(&mut self, until: Instant) {
        self.turn = None;
        tokio::time::sleep_until(until).await;
        self.turn = Some(TURN.lock().await);
    }

    /// Waits until the shop's pods on `nodes` nodes are covered by this version, one DaemonSet is there, and no rollout.
    pub async fn is_covered_by(&self, version: &str, nodes: usize) {
        let what = format!("{nodes} nodes are covered by {version}");
        let covered = until(&what, LIMIT, || async {
            let coverage = self.release.json(&["coverage"])?;
            let shop = self.shop(&coverage);
            let all = shop.len() == nodes && shop.iter().all(|(by, what)| by == version && what == "Covered");
            let (sets, labels) = (self.versions().await?, self.labels().await?);
            if !all || !settled(&coverage, "self") || sets != [version] || !labels.is_empty() {
                bail!("{shop:?}; DaemonSets {sets:?}; labels {labels:?}; {:#}", coverage["clusters"]);
            }
            Ok(Some(()))
        });
        self.or_log(covered.await).await;
    }

    /// Uids of the pods in a namespace.
    pub async fn pods(&self, namespace: &str) -> BTreeSet<String> {
        let pods = self.list("pods", &[&format!("--namespace={namespace}")]).await.unwrap();
        pods.iter().map(|pod| text(&pod["metadata"]["uid"])).collect()
    }

    /// Agent version and verdict of each of the shop's pods.
    pub fn shop(&self, coverage: &Value) -> Vec<(String, String)> {
        let rows = rows(coverage).into_iter().filter(|(workload, ..)| workload.contains("/shop/"));
        rows.map(|(_, _, by, what)| (by, what)).collect()
    }

    /// Versions of the agent's DaemonSets that are not being deleted.
    pub async fn versions(&self) -> Result<Vec<String>> {
        let sets = self.list("daemonsets", &["--namespace=tasuki-agents"]).await?;
        let alive = sets.iter().filter(|set| set["metadata"]["deletionTimestamp"].is_null());
        let mut versions: Vec<_> =
            alive.map(|set| text(&set["metadata"]["annotations"]["tasuki.dev/version"])).collect();
        versions.sort();
        Ok(versions)
    }

    /// Nodes in hand-over, with the value of their label.
    pub async fn labels(&self) -> Result<BTreeMap<String, String>> {
        let nodes = self.list("nodes", &["-l", "tasuki.dev/agent-next"]).await?;
        let one = |node: &Value| {
            (text(&node["metadata"]["name"]), text(&node["metadata"]["labels"]["tasuki.dev/agent-next"]))
        };
        Ok(nodes.iter().map(one).collect())
    }

    /// Objects of a kind.
    pub async fn list(&self, kind: &str, arguments: &[&str]) -> Result<Vec<Value>> {
        let text = self.release.kubectl(&[&["get", kind, "--output=json"], arguments].concat()).await?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// A monitor as it is stored.
    pub async fn monitor(&self, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.release.kubectl(&["get", "runtimemonitor", name, "--output=json"]).await?)?)
    }

    /// Waits until a condition of a monitor has this status and reason; returns its message.
    pub async fn says(&self, name: &str, kind: &str, status: &str, reason: &str) -> String {
        self.says_with(name, kind, status, reason, "").await
    }

    /// The same, with these words in its message.
    pub async fn says_with(&self, name: &str, kind: &str, status: &str, reason: &str, words: &str) -> String {
        let what = format!("{name} says {kind}={status}/{reason}: {words}");
        let said = until(&what, LIMIT, || async {
            let object = self.monitor(name).await?;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let found = conditions.iter().find(|one| one["type"] == kind).cloned().unwrap_or_default();
            let message = text(&found["message"]);
            if found["status"] != status || found["reason"] != reason || !message.contains(words) {
                bail!("{found}");
            }
            Ok(Some(message))
        });
        self.or_log(said.await).await
    }

    /// Waits for an Event of the controller's with this reason and these words.
    pub async fn event(&self, reason: &str, words: &str) {
        let what = format!("an Event {reason}: {words}");
        let seen = until(&what, LIMIT, || async {
            let events = self.events().await?;
            let is = |(of, note): &(String, String)| of == reason && note.contains(words);
            if !events.iter().any(is) {
                bail!("{events:#?}");
            }
            Ok(Some(()))
        });
        self.or_log(seen.await).await;
    }

    /// Reason and note of every Event of the controller's.
    pub async fn events(&self) -> Result<Vec<(String, String)>> {
        let events = self.list("events", &["--all-namespaces"]).await?;
        let ours = events
            .iter()
            .filter(|event| event["reportingComponent"] == "tasuki" || event["source"]["component"] == "tasuki");
        Ok(ours.map(|event| (text(&event["reason"]), text(&event["message"]))).collect())
    }

    /// Waits until `tasuki explain` of a pod says these words; returns all of what it says.
    pub async fn explains(&self, pod: &str, words: &str) -> String {
        let what = format!("{pod} is explained by {words:?}");
        let said = until(&what, LIMIT, || async {
            let coverage = self.release.json(&["coverage"])?;
            let tasks = coverage["tasks"].as_array().cloned().unwrap_or_default();
            let Some(task) = tasks.iter().find(|task| text(&task["task"]).ends_with(&format!("/{pod}"))) else {
                bail!("{pod} is not known");
            };
            let said = self.release.json(&["explain", task["task"].as_str().unwrap_or_default()])?.to_string();
            if !said.contains(words) {
                bail!("{said}");
            }
            Ok(Some(said))
        });
        self.or_log(said.await).await
    }

    /// The first pod in the shop's namespace on a node.
    pub async fn pod_on(&self, node: &str) -> String {
        let field = format!("--field-selector=spec.nodeName={node}");
        let what = format!("{node} has a pod");
        let found = until(&what, LIMIT, || async {
            let pods = self.list("pods", &["--namespace=shop", &field]).await?;
            Ok(pods.first().map(|pod| text(&pod["metadata"]["name"])))
        });
        found.await.unwrap()
    }

    /// kubectl with input.
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        kubectl(&self.release.plane, arguments, input).await
    }

    /// A result, or a panic with what the controller said last.
    pub async fn or_log<T>(&self, result: Result<T>) -> T {
        let directory = self.release.plane.directory().parent().unwrap();
        result.unwrap_or_else(|error| {
            let logs: BTreeSet<_> = directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
            let tail = |text: String| text.lines().rev().take(40).map(str::to_owned).collect::<Vec<_>>().join("\n");
            let logs = logs.iter().filter(|path| path.extension().is_some_and(|end| end == "log"));
            let logs: Vec<_> = logs.map(|path| tail(std::fs::read_to_string(path).unwrap_or_default())).collect();
            panic!("{error:#}\nthe controller said, the newest first:\n{}", logs.join("\n---\n"))
        })
    }
}

/// The text of a value; empty where it is none.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// One pod on every node, whatever its taints.
const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {tolerations: [{operator: Exists}], containers: [{name: web, image: web}]}
";

/// A monitor that wants this version, whose image is its own; `more` comes into its spec.
pub fn monitor(name: &str, version: &str, more: &str) -> String {
    let digest = digest_of(version);
    format!(
        "apiVersion: tasuki.dev/v1alpha1\nkind: RuntimeMonitor\nmetadata: {{name: {name}}}\nspec:\n  mode: Enforce\n  grace: 1s\n  \
         targets: {{kubernetes: {{namespaces: {{include: [shop]}}}}}}\n  agent:\n    version: {version}\n    \
         image: {{repository: registry.test/tasuki-agent, digest: \"{digest}\"}}\n{more}"
    )
}

/// Two waves without a pause.
pub const WAVES: &str = "  rollout:\n    deadline: 60s\n    waves:\n      - {name: canary, take: 1%, soak: 1s}\n      \
                         - {name: rest, take: 100%, soak: 1s, maxUnavailable: 1%}\n";
