//! A control plane: etcd, API server, controller manager and scheduler, with an authority of its own.

use crate::bridge::Bridge;
use crate::certificates::Authority;
use crate::kubeconfig::{self, User};
use crate::programs::{kubectl, program};
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::KeyPair;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tasuki_e2e::http;
use tasuki_e2e::process::{Process, until};

/// Addresses of Services; `10.96.0.1` is the API server's and `10.96.0.10` the cluster DNS's.
pub const SERVICES: &str = "10.96.0.0/16";
/// Slow machines and machines that are busy start it late.
const START: Duration = Duration::from_secs(90);

/// What differs between planes. More arguments come last, so that they win.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// More arguments of the API server, such as `--feature-gates=…`.
    pub apiserver: Vec<String>,
    /// More arguments of the controller manager.
    pub controller_manager: Vec<String>,
    /// More arguments of the scheduler.
    pub scheduler: Vec<String>,
}

/// A running control plane; dropping it ends it and removes its network. Drop its nodes first.
pub struct ControlPlane {
    directory: PathBuf,
    options: Options,
    authority: Authority,
    scheduler: Option<Process>,
    manager: Option<Process>,
    apiserver: Option<Process>,
    etcd: Option<Process>,
    bridge: Bridge,
    kubeconfigs: AtomicU32,
    nodes: AtomicU32,
}

impl ControlPlane {
    /// Starts one with its files in `<directory>/<name>`, which it makes, and waits until it is ready. Several may run at once.
    pub async fn start(directory: &Path, name: &str, options: Options) -> Result<Self> {
        // A second provider is refused, which does no harm.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = directory.join(name);
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let bridge = Bridge::start(&directory).await?;
        let mut plane = Self {
            directory,
            options,
            authority: Authority::new()?,
            scheduler: None,
            manager: None,
            apiserver: None,
            etcd: None,
            bridge,
            kubeconfigs: AtomicU32::new(0),
            nodes: AtomicU32::new(0),
        };
        plane.write_files()?;
        plane.start_etcd()?;
        plane.start_apiserver().await?;
        plane.start_controllers()?;
        Ok(plane)
    }

    /// URL of the API server; nodes, pods and the host reach it.
    pub fn address(&self) -> String {
        format!("https://{}:6443", self.bridge.host())
    }

    /// Address at which nodes and pods reach what listens on the host.
    pub fn host(&self) -> String {
        self.bridge.host()
    }

    /// The authority's certificate (PEM).
    pub fn ca(&self) -> &str {
        &self.authority.pem
    }

    /// Its files: logs are `<part>.log`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("admin.kubeconfig")
    }

    /// The kubeconfig of a user in groups, by client certificate.
    pub fn client_certificate(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let number = self.kubeconfigs.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join(format!("user-{number}.kubeconfig"));
        self.write_kubeconfig(&path, user, groups)?;
        Ok(path)
    }

    /// The kubeconfig of a service account that exists, with a token for an hour.
    pub async fn token_kubeconfig(&self, namespace: &str, service_account: &str) -> Result<PathBuf> {
        let token = kubectl(self, &["create", "token", "--namespace", namespace, service_account], "").await?;
        let path = self.directory.join(format!("{namespace}-{service_account}.kubeconfig"));
        kubeconfig::write(&path, &self.address(), self.ca(), &User::Token(token.trim()))?;
        Ok(path)
    }

    /// A client as administrator.
    pub async fn client(&self) -> Result<kube::Client> {
        client(&self.kubeconfig()).await
    }

    /// Ends the API server at once, as its machine's end would; etcd and what it holds stay.
    pub fn stop_apiserver(&mut self) {
        // Fails only where it has just ended.
        let _ = self.apiserver.as_ref().map(|process| process.signal(nix::sys::signal::Signal::SIGKILL));
        self.apiserver = None;
    }

    /// Starts the API server where it was stopped, and waits until it is ready.
    pub async fn start_apiserver(&mut self) -> Result<()> {
        let mut process = self.part("kube-apiserver", self.apiserver_arguments())?;
        let ready = until("the API server is ready", START, || {
            let alive = process.alive();
            async {
                // That it has ended is an answer, not a reason to ask again.
                if alive.is_err() {
                    return Ok(Some(alive));
                }
                kubectl(self, &["get", "--raw", "/readyz"], "").await.map(|_| Some(Ok(())))
            }
        });
        ready.await.with_context(|| format!("kube-apiserver's log ends with:\n{}", process.tail()))??;
        self.apiserver = Some(process);
        Ok(())
    }

    /// Ends the API server and starts it again: watches break, and what it cached is gone.
    pub async fn restart_apiserver(&mut self) -> Result<()> {
        self.stop_apiserver();
        self.start_apiserver().await
    }

    /// Forgets all history in etcd: whoever resumes a watch or a list from an old version is told 410 Gone once the
    /// API server has forgotten it too, which a restart makes sure of.
    pub async fn compact(&self) -> Result<()> {
        let etcd = self.etcd_address();
        let asked = json!({ "key": STANDARD.encode("/"), "count_only": true }).to_string();
        let answer: Value = serde_json::from_str(&http::send("POST", &format!("{etcd}/v3/kv/range"), asked).await?)?;
        let revision = &answer["header"]["revision"];
        let asked = json!({ "revision": revision, "physical": true }).to_string();
        http::send("POST", &format!("{etcd}/v3/kv/compaction"), asked).await.map(drop)
    }

    /// Ends everything; dropping it does the same.
    pub fn stop(self) {}

    pub(crate) fn bridge(&self) -> &Bridge {
        &self.bridge
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Number of the next node: 1, 2, ….
    pub(crate) fn next_node(&self) -> u32 {
        self.nodes.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn write_kubeconfig(&self, path: &Path, user: &str, groups: &[&str]) -> Result<()> {
        let identity = self.authority.issue(user, groups, &[])?;
        kubeconfig::write(path, &self.address(), self.ca(), &User::Certificate(&identity))
    }

    fn path(&self, file: &str) -> String {
        self.directory.join(file).display().to_string()
    }

    fn write_files(&self) -> Result<()> {
        let host = self.bridge.host();
        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", &host, "10.96.0.1"];
        let server = self.authority.issue("kube-apiserver", &[], &names)?;
        // The test's API server may do everything on nodes.
        let kubelets = self.authority.issue("kube-apiserver", &["system:masters"], &[])?;
        let accounts = KeyPair::generate()?;
        let files = [
            ("ca.crt", &self.authority.pem),
            ("ca.key", &self.authority.key),
            ("apiserver.crt", &server.certificate),
            ("apiserver.key", &server.key),
            ("kubelets.crt", &kubelets.certificate),
            ("kubelets.key", &kubelets.key),
            ("accounts.key", &accounts.serialize_pem()),
            ("accounts.pub", &accounts.public_key_pem()),
        ];
        for (file, content) in files {
            std::fs::write(self.directory.join(file), content)?;
        }
        self.write_kubeconfig(&self.kubeconfig(), "admin", &["system:masters"])?;
        for part in ["kube-controller-manager", "kube-scheduler"] {
            let path = self.directory.join(format!("{part}.kubeconfig"));
            self.write_kubeconfig(&path, &format!("system:{part}"), &[])?;
        }
        Ok(())
    }

    fn etcd_address(&self) -> String {
        format!("http://127.201.{}.1:2379", self.bridge.number)
    }

    fn part(&self, name: &str, arguments: Vec<String>) -> Result<Process> {
        let mut command = Command::new(program("tasuki-kubernetes")?);
        command.arg(name).args(arguments).current_dir(&self.directory);
        Process::start(name, command, &self.directory)
    }

    fn start_etcd(&mut self) -> Result<()> {
        let peer = format!("http://127.201.{}.1:2380", self.bridge.number);
        let client = self.etcd_address();
        let arguments = [
            "--name=test".to_owned(),
            format!("--data-dir={}", self.path("etcd")),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=test={peer}"),
            // What a crash of the machine loses is of no interest.
            "--unsafe-no-fsync".to_owned(),
        ];
        self.etcd = Some(self.part("etcd", arguments.to_vec())?);
        Ok(())
    }

    fn apiserver_arguments(&self) -> Vec<String> {
        let host = self.bridge.host();
        let mut arguments = vec![
            format!("--advertise-address={host}"),
            format!("--bind-address={host}"),
            "--secure-port=6443".to_owned(),
            format!("--etcd-servers={}", self.etcd_address()),
            format!("--service-cluster-ip-range={SERVICES}"),
            "--authorization-mode=Node,RBAC".to_owned(),
            // Pod Security is among those that are on by themselves.
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        ];
        let files = [
            ("cert-dir", "."),
            ("client-ca-file", "ca.crt"),
            ("tls-cert-file", "apiserver.crt"),
            ("tls-private-key-file", "apiserver.key"),
            ("kubelet-certificate-authority", "ca.crt"),
            ("kubelet-client-certificate", "kubelets.crt"),
            ("kubelet-client-key", "kubelets.key"),
            ("service-account-key-file", "accounts.pub"),
            ("service-account-signing-key-file", "accounts.key"),
        ];
        arguments.extend(files.map(|(flag, file)| format!("--{flag}={}", self.path(file))));
        arguments.extend(self.options.apiserver.clone());
        arguments
    }

    fn start_controllers(&mut self) -> Result<()> {
        let common = |part: &str| {
            vec![
                format!("--kubeconfig={}", self.path(&format!("{part}.kubeconfig"))),
                "--leader-elect=false".to_owned(),
                "--secure-port=0".to_owned(),
            ]
        };
        let mut manager = common("kube-controller-manager");
        let files = [
            ("root-ca-file", "ca.crt"),
            ("cluster-signing-cert-file", "ca.crt"),
            ("cluster-signing-key-file", "ca.key"),
            ("service-account-private-key-file", "accounts.key"),
        ];
        manager.extend(files.map(|(flag, file)| format!("--{flag}={}", self.path(file))));
        manager.push("--use-service-account-credentials=true".to_owned());
        manager.extend(self.options.controller_manager.clone());
        let mut scheduler = common("kube-scheduler");
        scheduler.extend(self.options.scheduler.clone());
        self.manager = Some(self.part("kube-controller-manager", manager)?);
        self.scheduler = Some(self.part("kube-scheduler", scheduler)?);
        Ok(())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // Nothing is kept, so nothing is worth the seconds that a graceful end takes.
        for part in [&self.scheduler, &self.manager, &self.apiserver, &self.etcd].into_iter().flatten() {
            // Fails only where it has just ended.
            let _ = part.signal(nix::sys::signal::Signal::SIGKILL);
        }
        (self.scheduler, self.manager, self.apiserver, self.etcd) = (None, None, None, None);
        self.bridge.stop();
    }
}

/// A client with a kubeconfig.
pub async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    let config = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await?;
    Ok(kube::Client::try_from(config)?)
}
