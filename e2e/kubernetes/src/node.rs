//! A real node: containerd, kubelet and kube-proxy in network, mount and cgroup of their own.

pub mod dns;
mod settings;

use crate::plane::{ControlPlane, client};
use crate::programs::{output, program};
use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1;
use kube::Api;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tasuki_e2e::archive::Archive;
use tasuki_e2e::image::Image;
use tasuki_e2e::process::{Process, until};

/// Nodes of one plane: each has a quarter of its pods' addresses.
const MOST: u32 = 4;
/// Slow machines and machines that are busy start it late.
const START: Duration = Duration::from_secs(120);

/// What differs between nodes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Labels, beside those that the kubelet sets.
    pub labels: BTreeMap<String, String>,
    /// Fields of the kubelet's configuration, over those that are set.
    pub kubelet: Value,
    /// Registry that serves every image that the node has not, as `host:port`; none: such pulls fail at once.
    pub registry: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { labels: BTreeMap::new(), kubelet: json!({}), registry: None }
    }
}

/// A running node; dropping it kills what runs on it and leaves nothing behind.
pub struct Node {
    name: String,
    address: String,
    directory: PathBuf,
    kubeconfig: PathBuf,
    holder: Process,
    inner: String,
    kubelet: Option<Process>,
    proxy: Option<Process>,
    containerd: Option<Process>,
}

impl Node {
    /// Starts one with its files in the plane's directory, and waits until it is Ready.
    pub async fn start(plane: &ControlPlane, name: &str, settings: Settings) -> Result<Self> {
        let number = plane.next_node();
        if number > MOST {
            bail!("a plane has room for {MOST} nodes");
        }
        let bridge = plane.bridge();
        let directory = plane.directory().join(name);
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let address = format!("10.201.{}.{}", bridge.number, number + 1);
        let pods = format!("10.202.{}.{}/26", bridge.number, (number - 1) * 64);
        let id = format!("{}-{number}", bridge.number);
        // Two tests may count the same numbers only one after the other: the bridge's name is the claim.
        let cgroup = format!("/tasuki-test-{id}");
        write_files(plane, &directory, name, &address, &pods, &cgroup, &settings)?;

        let mut command = Command::new("sh");
        let link = format!("tsk-test-v{id}");
        command.args(["-c", include_str!("node/node.sh"), "node", &cgroup]).arg(&directory);
        command.args([&link, &bridge.name(), &bridge.host(), &address, &pods]);
        let mut holder = Process::start("node", command, &directory)?;
        for side in ["outside is up", "inside is up"] {
            holder.says(side, Duration::from_secs(20)).await.context("cannot make a node; are you root?")?;
        }
        let inner = std::fs::read_to_string(directory.join("inner"))?.trim().to_owned();
        let kubeconfig = plane.kubeconfig();
        let name = name.to_owned();
        let mut node =
            Self { name, address, directory, kubeconfig, holder, inner, kubelet: None, proxy: None, containerd: None };
        node.start_containerd().await?;
        node.import_image(&pause()?).await?;
        node.start_kubelet(&settings).await?;
        node.start_proxy()?;
        Ok(node)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its InternalIP, which the host reaches.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its files: logs are `<part>.log`, and `log/` is its `/var/log`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes an image known under its name and by its digest; pods need `imagePullPolicy` IfNotPresent or Never.
    pub async fn import_image(&self, image: &Archive) -> Result<()> {
        self.import_tar(image.tar()?).await?;
        let names = [image.reference.as_str(), &image.by_digest()];
        self.run(&[&CTR[..], &["images", "tag", "--force"], &names].concat(), &[]).await.map(drop)
    }

    /// Imports an archive of `docker save` or of OCI.
    pub async fn import_tar(&self, tar: Vec<u8>) -> Result<()> {
        self.run(&[&CTR[..], &["images", "import", "--all-platforms", "-"]].concat(), &tar).await.map(drop)
    }

    /// Removes an image, so that the next pod pulls it.
    pub async fn remove_image(&self, reference: &str) -> Result<()> {
        self.run(&[&CTR[..], &["images", "rm", "--sync", reference]].concat(), &[]).await.map(drop)
    }

    /// Runs a program of the machine with the node's network and files; returns what it printed.
    pub async fn run(&self, command: &[&str], stdin: &[u8]) -> Result<String> {
        let arguments = self.entering(command);
        let mut process = tokio::process::Command::new("nsenter");
        process.args(arguments);
        output(&format!("node {}: {}", self.name, command.join(" ")), process, stdin).await
    }

    /// Ends the kubelet: the node becomes NotReady, its containers go on.
    pub fn stop_kubelet(&mut self) {
        self.kubelet = None;
    }

    /// Ends it; dropping it does the same.
    pub fn stop(self) {}

    /// Arguments of nsenter that run a command on the node and in its cgroup.
    fn entering(&self, command: &[&str]) -> Vec<String> {
        let script = "echo $$ >\"$(cat \"$0/members\")\" && exec \"$@\"";
        let directory = self.directory.display().to_string();
        let target = format!("--target={}", self.inner);
        let enter = [target.as_str(), "--mount", "--net", "--", "sh", "-c", script, &directory];
        enter.iter().chain(command).map(|word| (*word).to_owned()).collect()
    }

    fn part(&self, name: &str, command: &[&str]) -> Result<Process> {
        let mut process = Command::new("nsenter");
        process.args(self.entering(command));
        Process::start(name, process, &self.directory)
    }

    async fn start_containerd(&mut self) -> Result<()> {
        let settings = self.file("containerd.toml");
        let mut process = self.part("containerd", &["containerd", "--config", &settings])?;
        process.says("containerd successfully booted", START).await?;
        self.containerd = Some(process);
        Ok(())
    }

    async fn start_kubelet(&mut self, settings: &Settings) -> Result<()> {
        let program = program("tasuki-kubernetes")?.display().to_string();
        let labels: Vec<_> = settings.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let arguments = [
            &format!("--config={}", self.file("kubelet.json")),
            &format!("--kubeconfig={}", self.file("kubelet.kubeconfig")),
            &format!("--hostname-override={}", self.name),
            &format!("--node-ip={}", self.address),
            &format!("--node-labels={}", labels.join(",")),
        ];
        let mut command = vec![program.as_str(), "kubelet"];
        command.extend(arguments.iter().map(|argument| argument.as_str()));
        let mut process = self.part("kubelet", &command)?;
        let nodes: Api<v1::Node> = Api::all(client(&self.kubeconfig).await?);
        let ready = until("the node is Ready", START, || {
            let alive = process.alive();
            async {
                // That it has ended is an answer, not a reason to ask again.
                if alive.is_err() {
                    return Ok(Some(alive));
                }
                Ok(nodes.get_opt(&self.name).await?.filter(is_ready).map(|_| Ok(())))
            }
        });
        ready.await.with_context(|| format!("kubelet's log ends with:\n{}", process.tail()))??;
        self.kubelet = Some(process);
        Ok(())
    }

    fn start_proxy(&mut self) -> Result<()> {
        let program = program("tasuki-kubernetes")?.display().to_string();
        let settings = format!("--config={}", self.file("proxy.json"));
        self.proxy = Some(self.part("kube-proxy", &[&program, "kube-proxy", &settings])?);
        Ok(())
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

/// containerd's own client, on the images that the kubelet uses.
const CTR: [&str; 3] = ["ctr", "--namespace", "k8s.io"];

impl Drop for Node {
    fn drop(&mut self) {
        // The holder kills everything on the node, the other three too, and removes what they had.
        self.holder.stop();
        for part in [&self.kubelet, &self.proxy, &self.containerd].into_iter().flatten() {
            // Fails only where it has ended.
            let _ = part.signal(Signal::SIGKILL);
        }
        // Images and volumes; the logs stay for whoever reads why.
        let data = self.directory.join("lib");
        if let Err(error) = std::fs::remove_dir_all(&data) {
            eprintln!("could not remove {}: {error}", data.display());
        }
    }
}

/// Whether a node's condition Ready is True.
pub fn is_ready(node: &v1::Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

fn write_files(
    plane: &ControlPlane,
    directory: &Path,
    name: &str,
    address: &str,
    pods: &str,
    cgroup: &str,
    chosen: &Settings,
) -> Result<()> {
    let server = plane.authority().issue(&format!("system:node:{name}"), &["system:nodes"], &[name, address])?;
    let files = [
        ("ca.crt", plane.ca().to_owned()),
        ("kubelet.crt", server.certificate),
        ("kubelet.key", server.key),
        ("kubelet.json", settings::kubelet(directory, cgroup, &chosen.kubelet)?),
        ("proxy.json", settings::proxy(directory, name)?),
        ("containerd.toml", settings::containerd(directory, chosen.registry.as_deref())),
        ("cni/pods.conflist", settings::network(pods)?),
        ("no-names", "nameserver 127.0.0.1\n".to_owned()),
        ("resolv.conf", format!("nameserver {}\n", settings::DNS)),
    ];
    for (file, content) in files {
        let path = directory.join(file);
        std::fs::create_dir_all(path.parent().unwrap_or(directory))?;
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let runc = directory.join(settings::RUNC);
    std::fs::write(&runc, settings::runc(bounding()?))?;
    std::fs::set_permissions(&runc, std::fs::Permissions::from_mode(0o755))?;
    plane.write_kubeconfig(&directory.join("kubelet.kubeconfig"), &format!("system:node:{name}"), &["system:nodes"])?;
    plane.write_kubeconfig(&directory.join("proxy.kubeconfig"), "system:kube-proxy", &[])
}

/// Capabilities that root has here, as a set of bits.
fn bounding() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("the kernel names no capabilities")?;
    Ok(u64::from_str_radix(line.trim(), 16)?)
}

/// Sleeps: the kernel ends it with its pod.
fn pause() -> Result<Archive> {
    let image = Image::default().program("/bin/busybox", Path::new("/bin/busybox"))?;
    image.line("ENTRYPOINT [\"/bin/busybox\", \"sleep\", \"2147483647\"]").pack(settings::PAUSE)
}
