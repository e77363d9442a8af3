//! The chart in a cluster, with its controller as a process on the host: no image and no real node is needed.
//!
//! The process has the kubeconfig of the ServiceAccount that the chart made, so it may do what the chart
//! grants and nothing else. The chart's own Deployment is held at no replicas.

use crate::plane::{ControlPlane, Options};
use crate::world::{NAMESPACE, chart};
use crate::{helm, kubectl};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tasuki_e2e::controller::{Controller, free_port};
use tempfile::TempDir;

/// A digest of the right form. KWOK pulls nothing.
pub const DIGEST: &str = "sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945";

/// A digest of that form for each version whose last character differs.
pub fn digest_of(version: &str) -> String {
    let last = version.chars().next_back().unwrap_or('0');
    format!("{}{last}", &DIGEST[..DIGEST.len() - 1])
}

/// A monitor that enforces this version on every node, in one wave.
pub fn monitor(version: &str) -> String {
    format!(
        "apiVersion: tasuki.dev/v1alpha1\nkind: RuntimeMonitor\nmetadata: {{name: prod}}\nspec:\n  mode: Enforce\n  \
         targets: {{kubernetes: {{}}}}\n  agent:\n    version: {version}\n    image: {{repository: registry.example.test/agent, \
         digest: \"{}\"}}\n  grace: 20s\n  rollout:\n    deadline: 5m\n    waves: [{{name: all, take: 100%, soak: 1s, \
         maxUnavailable: 100%}}]\n",
        digest_of(version)
    )
}

/// The shortest time between two starts of a controller that ends by itself.
const BACKOFF: Duration = Duration::from_secs(2);

/// Below `/usr/lib/<architecture>`, in Debian's package faketime; the one for programs with threads.
const FAKETIME: &str = "faketime/libfaketimeMT.so.1";

/// A cluster without nodes, the chart in it, and a controller. Everything ends when it is dropped.
///
/// A controller that ends by itself, as one does that loses its lease on a loaded machine, is started again as by a
/// kubelet: whenever the cluster or the controller is asked something through this. One that a test ended stays so.
pub struct Release {
    kept: Mutex<Kept>,
    /// The control plane.
    pub plane: ControlPlane,
    /// Where the gateway of the controller that leads listens, `127.0.0.1:port`. It stays the same, as a Service's
    /// address does: another one would be another agent, to be rolled out.
    pub gateway: String,
    /// The clock of controllers that are started from now on.
    pub clock: Clock,
    directory: TempDir,
}

/// The clock on a wall of a process; time that passes is the same for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// That of the machine.
    #[default]
    True,
    /// So many seconds ahead of it, or behind.
    Off(i64),
}

impl Clock {
    /// Sets it in a process that asks the C library for the time.
    fn set(self, command: &mut Command) -> Result<()> {
        let Self::Off(seconds) = self else { return Ok(()) };
        let found = std::fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path().join(FAKETIME));
        let library = found.into_iter().find(|path| path.exists());
        let library = library.context("libfaketime is not installed: run `tools/setup.sh test`")?;
        command.env("LD_PRELOAD", library).env("FAKETIME", format!("{seconds:+}s"));
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_DISABLE_SHM", "1");
        Ok(())
    }
}

/// The controller, as a kubelet has it.
#[derive(Default)]
struct Kept {
    controller: Option<Controller>,
    started: Option<Instant>,
    restarts: u32,
}

impl Kept {
    fn keep_running(&mut self) -> Result<()> {
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let Err(ended) = controller.process().alive() else { return Ok(()) };
        if self.started.is_some_and(|at| at.elapsed() < BACKOFF) {
            return Ok(());
        }
        self.restarts += 1;
        eprintln!("restart {} of the controller: {ended:#}", self.restarts);
        self.started = Some(Instant::now());
        controller.process().restart()
    }
}

impl Release {
    /// Starts a plane and installs the chart with these values (`key=value`). No controller runs yet.
    ///
    /// # Errors
    /// Where a part does not come up.
    pub async fn start(values: &[&str]) -> Result<Self> {
        Self::with(Options::default(), values).await
    }

    /// The same on a plane with options.
    ///
    /// # Errors
    /// Where a part does not come up.
    pub async fn with(options: Options, values: &[&str]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("tasuki-").tempdir()?;
        let plane = ControlPlane::start(directory.path(), "plane", options).await?;
        let gateway = format!("127.0.0.1:{}", free_port()?);
        let release = Self { kept: Mutex::default(), plane, gateway, clock: Clock::True, directory };
        release.install(values).await?;
        Ok(release)
    }

    /// Installs the chart, or upgrades it; values that are not given are those of the chart.
    ///
    /// # Errors
    /// What helm says.
    pub async fn install(&self, values: &[&str]) -> Result<String> {
        let chart = chart()?.display().to_string();
        let mut arguments = vec!["upgrade", "--install", "tasuki", &chart, "--namespace", NAMESPACE];
        let digest = format!("image.digest={DIGEST}");
        arguments.extend(["--create-namespace", "--set", &digest]);
        for value in values {
            arguments.extend(["--set", value]);
        }
        let said = helm(&self.plane, &arguments).await?;
        let namespace = format!("--namespace={NAMESPACE}");
        self.kubectl(&["scale", "deployment/tasuki", "--replicas=0", &namespace]).await?;
        Ok(said)
    }

    /// Starts the controller with these arguments beside those that it needs, and waits until it is ready.
    ///
    /// # Errors
    /// Where it is not in time.
    pub async fn start_controller(&mut self, arguments: &[&str]) -> Result<()> {
        let (mut controller, _) = self.another("controller", arguments).await?;
        controller.ready().await?;
        let restarts = self.restarts();
        *self.kept() = Kept { controller: Some(controller), started: Some(Instant::now()), restarts };
        Ok(())
    }

    /// Starts a controller beside that one, by a name of its own, without waiting for it; with the address of the
    /// gateway, which it takes over once it leads and the other one has ended.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub async fn another(&self, name: &str, arguments: &[&str]) -> Result<(Controller, String)> {
        let kubeconfig = self.service_account().await?;
        let (gateway, mut clock) = (&self.gateway, Ok(()));
        let controller = Controller::waiting(self.directory.path(), name, |command: &mut Command| {
            clock = self.clock.set(command);
            command.env("KUBECONFIG", kubeconfig).env("HOSTNAME", name);
            command.args(["--kubernetes", "--namespace", NAMESPACE, "--gateway-listen", gateway]);
            command.args(["--gateway-url", &format!("https://{gateway}")]).args(arguments);
        })?;
        clock?;
        Ok((controller, gateway.clone()))
    }

    /// The kubeconfig of the controller's own ServiceAccount.
    ///
    /// # Errors
    /// Where there is none, or it gets no token.
    pub async fn service_account(&self) -> Result<PathBuf> {
        self.plane.token_kubeconfig(NAMESPACE, "tasuki").await
    }

    /// The controller, which may have ended.
    ///
    /// # Errors
    /// Before it was started, and after it was ended.
    pub fn controller(&mut self) -> Result<&mut Controller> {
        let kept = self.kept.get_mut().unwrap_or_else(PoisonError::into_inner);
        kept.controller.as_mut().context("no controller runs")
    }

    /// Starts the controller again where it has ended by itself; for tests that ask the cluster in other ways.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn keep_running(&self) -> Result<()> {
        self.kept().keep_running()
    }

    /// How often a controller had ended by itself, and was started again.
    pub fn restarts(&self) -> u32 {
        self.kept().restarts
    }

    /// Ends the controller in order, as a node that is drained would: it gives its lease back.
    pub fn stop_controller(&mut self) {
        self.kept().controller = None;
    }

    /// Ends the controller with SIGKILL, as a crash would.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn kill_controller(&mut self) -> Result<()> {
        let controller = self.kept().controller.take();
        controller.map_or(Ok(()), Controller::kill)
    }

    /// Runs `tasuki … -o json` against the controller.
    ///
    /// # Errors
    /// Where it cannot be run, or says anything else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut kept = self.kept();
        kept.keep_running()?;
        kept.controller.as_ref().context("no controller runs")?.json(arguments)
    }

    /// `kubectl` as the cluster's owner.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.keep_running()?;
        kubectl(&self.plane, arguments, "").await
    }

    /// `kubectl apply` of these objects.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn apply(&self, objects: &str) -> Result<String> {
        self.keep_running()?;
        kubectl(&self.plane, &["apply", "--filename", "-"], objects).await
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
