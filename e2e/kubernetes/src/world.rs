//! A cluster with real nodes, the customer's application in it, and Tasuki as its users install it.

use crate::node::{Settings, dns};
use crate::plane::{ControlPlane, Options};
use crate::registry::Registry;
use crate::{Node, helm, kubectl};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tasuki_e2e::archive::Archive;
use tasuki_e2e::image::{self, Image};
use tasuki_e2e::process::until;
use tasuki_e2e::world::{self, AgentImage, binaries};
use tempfile::TempDir;

/// Where the agent's images are, as the YAML names them.
pub const AGENT: &str = "registry.example.test/tasuki-agent";
/// Where the controller's image is.
const CONTROLLER: &str = "registry.example.test/tasuki";
/// The customer's image.
const SHOP: &str = "registry.example.test/shop:1";
/// Namespace that the chart is installed into.
pub const NAMESPACE: &str = "tasuki-system";
/// Long enough for a loaded machine with two cores.
const LIMIT: Duration = Duration::from_secs(180);

/// Everything that runs; it ends when it is dropped, the nodes before the plane.
pub struct World {
    /// First agent version.
    pub agent: AgentImage,
    /// The version that it is rolled to.
    pub next: AgentImage,
    /// A version whose program ends at once.
    pub broken: AgentImage,
    /// The controller's image.
    pub controller: Archive,
    /// Real nodes.
    pub nodes: Vec<Node>,
    /// Serves every image.
    pub registry: Registry,
    /// The control plane.
    pub plane: ControlPlane,
    _directory: TempDir,
}

impl World {
    /// Starts a cluster with this many real nodes. `progress` is told what is under way.
    ///
    /// # Errors
    /// Where a part does not come up.
    pub async fn start(nodes: usize, progress: fn(&str)) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("tasuki-").tempdir()?;
        progress("starting etcd, API server, controller manager and scheduler");
        let plane = ControlPlane::start(directory.path(), "plane", Options::default()).await?;
        let registry = Registry::start(&plane).await?;
        let agent = push(&registry, world::agent("0.1.0")?, "0.1.0")?;
        let next = push(&registry, world::agent("0.1.1")?, "0.1.1")?;
        let broken = push(&registry, world::broken_agent("0.1.2")?, "0.1.2")?;
        let controller = controller_image()?;
        registry.push(&controller);
        registry.push(&image::shop(&binaries()?.join("tasuki-lab"))?.pack(SHOP)?);
        let mut started = Vec::new();
        for number in 1..=nodes {
            progress(&format!("starting node {number} of {nodes}: containerd, kubelet, kube-proxy"));
            let settings = Settings { registry: Some(registry.address.clone()), ..Settings::default() };
            started.push(Node::start(&plane, &format!("node-{number}"), settings).await?);
        }
        if let Some(node) = started.first() {
            dns::start(&plane, node).await?;
        }
        Ok(Self { agent, next, broken, controller, nodes: started, registry, plane, _directory: directory })
    }

    /// `kubectl` as the cluster's owner.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        kubectl(&self.plane, arguments, "").await
    }

    /// `kubectl apply` of these objects.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn apply(&self, objects: &str) -> Result<String> {
        kubectl(&self.plane, &["apply", "--filename", "-"], objects).await
    }

    /// Installs the chart, or upgrades it, with these values beside those that name the images.
    ///
    /// # Errors
    /// What helm says.
    pub async fn install(&self, values: &[&str]) -> Result<String> {
        let chart = chart()?.display().to_string();
        let digest = format!("image.digest={}", self.controller.digest);
        let repository = format!("image.repository={CONTROLLER}");
        let mut arguments = vec!["upgrade", "--install", "tasuki", &chart, "--namespace", NAMESPACE];
        arguments.extend(["--create-namespace", "--wait", "--timeout", "3m", "--set", &digest, "--set", &repository]);
        // A debug build is large: its pages alone are more than what a release needs.
        arguments.extend(["--set", "resources.limits.memory=1Gi"]);
        for value in values {
            arguments.extend(["--set", value]);
        }
        helm(&self.plane, &arguments).await
    }

    /// The application of the customer: a Deployment, and where its one pod answers.
    ///
    /// # Errors
    /// Where it does not run in time.
    pub async fn shop(&self, node: &str) -> Result<Ipv4Addr> {
        self.deploy(&shop_manifests(node), node).await
    }

    /// The same from manifests that were made from [`shop_manifests`].
    ///
    /// # Errors
    /// Where it does not run in time.
    pub async fn deploy(&self, manifests: &str, node: &str) -> Result<Ipv4Addr> {
        let name = format!("web-{node}");
        self.apply(manifests).await?;
        let rollout = format!("deployment/{name}");
        self.kubectl(&["rollout", "status", &rollout, "--namespace=shop", "--timeout=180s"]).await?;
        let selector = format!("app={name}");
        let path = "-o=jsonpath={.items[-1:].status.podIP}";
        let newest = "--sort-by=.metadata.creationTimestamp";
        let address = self.kubectl(&["get", "pods", "--namespace=shop", "-l", &selector, newest, path]).await?;
        address.trim().parse().with_context(|| format!("{name} has no address: {address:?}"))
    }

    /// The command line of Tasuki, run where the controller runs. Exit codes 1 and 2 say something, and are no errors.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub async fn tasuki(&self, arguments: &[&str]) -> Result<String> {
        let namespace = format!("--namespace={NAMESPACE}");
        let script = "tasuki \"$@\" || code=$?; [ \"${code:-0}\" -le 2 ]";
        let mut all = vec!["exec", &namespace, "deploy/tasuki", "--", "/bin/busybox", "sh", "-c", script, "tasuki"];
        all.extend(arguments);
        self.kubectl(&all).await
    }

    /// The same, as JSON.
    ///
    /// # Errors
    /// Where it cannot be run, or what it says is no JSON.
    pub async fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.tasuki(&[arguments, &["-o", "json"]].concat()).await?;
        serde_json::from_str(&text).with_context(|| format!("`tasuki {}` printed no JSON: {text}", arguments.join(" ")))
    }

    /// A RuntimeMonitor that enforces this agent.
    pub fn monitor(&self, agent: &AgentImage) -> String {
        format!(
            "apiVersion: tasuki.dev/v1alpha1\nkind: RuntimeMonitor\nmetadata: {{name: prod}}\nspec:\n  mode: Enforce\n  \
             targets: {{kubernetes: {{namespaces: {{exclude: [kube-system, tasuki-system]}}}}}}\n  agent:\n    version: {}\n    \
             image: {{repository: {AGENT}, digest: \"{}\"}}\n  grace: 30s\n  rollout:\n    deadline: 60s\n    waves:\n      \
             - {{name: canary, take: 50%, soak: 5s}}\n      - {{name: rest, take: 100%, soak: 5s, maxUnavailable: 50%}}\n",
            agent.version, agent.digest
        )
    }

    /// Commands with which a person looks around.
    ///
    /// # Errors
    /// Where kubectl is not built.
    pub fn how_to_explore(&self) -> Result<String> {
        let program = crate::programs::program("tasuki-kubernetes")?;
        let (kubectl, config) = (program.display(), self.plane.kubeconfig().display().to_string());
        Ok(format!(
            "  alias kubectl='{kubectl} kubectl --kubeconfig={config}'\n  kubectl get runtimemonitors\n  \
             kubectl exec -n {NAMESPACE} deploy/tasuki -- tasuki coverage"
        ))
    }

    /// What the parts said last, for an error.
    pub async fn logs(&self) -> String {
        let namespace = format!("--namespace={NAMESPACE}");
        let controller = self.kubectl(&["logs", &namespace, "deploy/tasuki", "--tail=60"]).await;
        let agents = self
            .kubectl(&[
                "logs",
                "--namespace=tasuki-agents",
                "-l",
                "app.kubernetes.io/name=tasuki-agent",
                "--tail=30",
                "--prefix",
            ])
            .await;
        let pods = self.kubectl(&["get", "pods,daemonsets,nodes", "--all-namespaces", "-o=wide"]).await;
        let text = |part: Result<String>| part.unwrap_or_else(|error| format!("{error:#}"));
        format!("the controller said:\n{}\nthe agents said:\n{}\n{}", text(controller), text(agents), text(pods))
    }

    /// Waits until the controller's API answers.
    ///
    /// # Errors
    /// Where it does not in time.
    pub async fn answers(&self) -> Result<()> {
        until("the controller answers", LIMIT, || async { Ok(self.json(&["coverage"]).await.ok().map(|_| ())) }).await
    }
}

/// The customer's application on a node: its namespace and a Deployment of one pod.
pub fn shop_manifests(node: &str) -> String {
    let name = format!("web-{node}");
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\napiVersion: apps/v1\nkind: Deployment\n\
         metadata: {{name: {name}, namespace: shop}}\nspec:\n  selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    \
         metadata: {{labels: {{app: {name}}}}}\n    spec:\n      nodeSelector: {{kubernetes.io/hostname: {node}}}\n      \
         tolerations: [{{operator: Exists}}]\n      terminationGracePeriodSeconds: 1\n      containers:\n        \
         - {{name: web, image: \"{SHOP}\", readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}}}\n"
    )
}

/// The chart of this checkout.
///
/// # Errors
/// Where there is no checkout.
pub fn chart() -> Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let chart = own.ancestors().nth(2).context("the crate lies elsewhere")?.join("charts/tasuki");
    if !chart.join("Chart.yaml").exists() {
        bail!("no chart at {}; run it from a checkout", chart.display());
    }
    Ok(chart)
}

fn controller_image() -> Result<Archive> {
    Image::default()
        .program("/usr/bin/tasuki", &binaries()?.join("tasuki"))?
        .program("/bin/busybox", Path::new("/bin/busybox"))?
        .file("/etc/passwd", 0o644, "tasuki:x:65532:65532::/:/usr/bin/tasuki\n")
        .line("ENV PATH=/usr/bin")
        .line("ENTRYPOINT [\"/usr/bin/tasuki\"]")
        .pack(&format!("{CONTROLLER}:0.1.0"))
}

/// Makes an image of the agent's known to the registry.
fn push(registry: &Registry, image: Image, version: &str) -> Result<AgentImage> {
    let image = image.pack(&format!("{AGENT}:{version}"))?;
    registry.push(&image);
    Ok(AgentImage { version: version.to_owned(), digest: image.digest })
}
