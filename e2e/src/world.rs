//! A world on one machine: Docker Engine, local cloud, customer, controller; each a real part.

use crate::config::Config;
use crate::controller::{Controller, free_port};
use crate::customer::{ACCOUNT, Customer, Key, REGION, sdk};
use crate::dockerd::Dockerd;
use crate::image::{self, Image};
use crate::process::{Process, until};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// Where the agent's images are, as the YAML names them.
pub fn agent_repository() -> String {
    format!("{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/tasuki-agent")
}

/// An agent image that was built.
#[derive(Clone, Debug)]
pub struct AgentImage {
    /// Version.
    pub version: String,
    /// `sha256:…`.
    pub digest: String,
}

/// Directory of this build's executables.
pub fn binaries() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    // Tests run from a folder below the one that holds the executables.
    let found = own.ancestors().skip(1).find(|directory| directory.join("tasuki-lab").exists());
    found.map(Path::to_path_buf).context("the other executables are not beside this one; run `cargo build --workspace`")
}

/// The agent's image, to be built or packed.
pub fn agent(version: &str) -> Result<Image> {
    Ok(Image::default()
        .program("/tasuki-agent", &binaries()?.join("tasuki-agent"))?
        .file("/tmp/.keep", 0o644, "")
        .line(&format!("ENV TASUKI_VERSION={version}"))
        .line("ENTRYPOINT [\"/tasuki-agent\"]")
        .line("CMD [\"supervise\"]"))
}

/// An image whose program ends at once, whatever it is asked, to be built or packed.
pub fn broken_agent(version: &str) -> Result<Image> {
    Ok(Image::default()
        .program("/bin/busybox", Path::new("/bin/busybox"))?
        .line(&format!("ENV TASUKI_VERSION={version}"))
        .line("ENTRYPOINT [\"/bin/busybox\", \"false\"]"))
}

/// Builds the agent's image; the same agent under another version where `version` differs.
pub async fn agent_image(client: &bollard::Docker, version: &str) -> Result<AgentImage> {
    let digest = agent(version)?.build(client, &format!("{}:{version}", agent_repository())).await?;
    Ok(AgentImage { version: version.to_owned(), digest })
}

/// An agent image whose program ends at once, whatever it is asked.
pub async fn broken_agent_image(client: &bollard::Docker, version: &str) -> Result<AgentImage> {
    let digest = broken_agent(version)?.build(client, &format!("{}:{version}", agent_repository())).await?;
    Ok(AgentImage { version: version.to_owned(), digest })
}

/// The customer's image.
pub async fn shop_image(client: &bollard::Docker) -> Result<String> {
    let tag = format!("{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/shop:1");
    image::shop(&binaries()?.join("tasuki-lab"))?.build(client, &tag).await?;
    Ok(tag)
}

/// Network of the local cloud.
const NETWORK: &str = "tasuki-cloud";
/// Its first three octets.
const SUBNET: &str = "172.31.250";
/// The customer's key.
const CUSTOMER: (&str, &str) = ("AKIA111122223333ROOT", "local");
/// The controller's key.
const CONTROLLER: (&str, &str) = ("AKIATASUKI", "tasuki-local");

/// Everything that runs. Dropping it ends everything.
pub struct World {
    /// The customer.
    pub customer: Customer,
    /// The YAML.
    pub config: Config,
    /// First agent version.
    pub agent: AgentImage,
    /// The version that it is rolled to.
    pub next: AgentImage,
    /// A version whose program ends at once.
    pub broken: AgentImage,
    /// Image of the customer's application.
    pub shop: String,
    /// Endpoint of the local cloud.
    pub endpoint: String,
    controller: Option<Controller>,
    cloud: Option<Process>,
    docker: Option<Dockerd>,
    directory: TempDir,
    /// The node agent's own directory on this machine, where it was not there before.
    spool: Option<PathBuf>,
}

impl World {
    /// Starts Docker Engine, local cloud and images; the controller comes later.
    pub async fn start(progress: impl Fn(&str)) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("tasuki-").tempdir()?;
        let spool = PathBuf::from("/var/lib/tasuki");
        let spool = (!spool.exists()).then_some(spool);
        progress("looking for a Docker Engine");
        let docker = Dockerd::find_or_start(directory.path()).await?;
        if docker.is_private() {
            progress("none answers: a private one is started, and stopped at the end");
        }
        progress("building images from this machine's files");
        let client = docker.client()?;
        let agent = agent_image(&client, "0.1.0").await?;
        let next = agent_image(&client, "0.1.1").await?;
        let broken = broken_agent_image(&client, "0.1.2").await?;
        let shop = shop_image(&client).await?;
        progress("starting the local cloud");
        let (cloud, endpoint) = start_cloud(&docker, directory.path()).await?;
        let key = Key { id: CUSTOMER.0.to_owned(), secret: CUSTOMER.1.to_owned() };
        let customer = Customer::new(&sdk(&endpoint, &key).await);
        let queue = customer.event_queue().await;
        let queue =
            queue.map_err(|error| error.context(format!("the local cloud's log ends with:\n{}", cloud.tail())))?;
        let config = Config::create(&directory.path().join("config"), &queue)?;
        Ok(Self {
            customer,
            config,
            agent,
            next,
            broken,
            shop,
            endpoint,
            controller: None,
            cloud: Some(cloud),
            docker: Some(docker),
            directory,
            spool,
        })
    }

    /// Starts the controller, or starts it again, and waits until it is ready.
    pub async fn start_controller(&mut self) -> Result<()> {
        self.launch_controller()?;
        match &mut self.controller {
            Some(controller) => controller.ready().await,
            None => Ok(()),
        }
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn launch_controller(&mut self) -> Result<()> {
        let (config, endpoint) = (self.config.directory().to_owned(), self.endpoint.clone());
        let gateway = format!("{SUBNET}.1:8443");
        let started = Controller::waiting(self.directory.path(), "controller", |command| {
            command.arg("--config-dir").arg(config).args(["--gateway-listen", &gateway]);
            command.args(["--gateway-url", &format!("https://{gateway}"), "--aws-endpoint", &endpoint]);
            command.env("AWS_ENDPOINT_URL", &endpoint).env("AWS_REGION", REGION);
            command.env("AWS_ACCESS_KEY_ID", CONTROLLER.0).env("AWS_SECRET_ACCESS_KEY", CONTROLLER.1);
        });
        self.controller = Some(started?);
        Ok(())
    }

    /// How often ECS was called so far, by whomever.
    ///
    /// # Errors
    /// Where the local cloud's log cannot be read.
    pub fn calls(&self) -> Result<usize> {
        let log = self.cloud.as_ref().map(|cloud| cloud.log.clone()).context("the cloud has ended")?;
        let text = std::fs::read_to_string(log)?;
        Ok(text.lines().filter(|line| line.contains("call service=\"ecs\"")).count())
    }

    /// Ends the controller with SIGKILL, as a crash would.
    pub fn kill_controller(&mut self) -> Result<()> {
        self.controller.take().map_or(Ok(()), Controller::kill)
    }

    /// The controller, once it was started.
    ///
    /// # Errors
    /// Before.
    pub fn controller(&self) -> Result<&Controller> {
        self.controller.as_ref().context("the controller was not started")
    }

    /// The end of the controller's log.
    pub fn controller_log(&self) -> String {
        self.controller.as_ref().map(Controller::log).unwrap_or_default()
    }

    /// Runs `tasuki` with these arguments, as a user would; returns exit code and what it said.
    pub fn tasuki(&self, arguments: &[&str]) -> Result<(i32, String)> {
        self.controller()?.tasuki(arguments)
    }

    /// Runs `tasuki … -o json` and parses its answer.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        self.controller()?.json(arguments)
    }

    /// Standard output of every container of a task, for what an agent said.
    pub async fn agent_logs(&self) -> Result<String> {
        use futures_util::TryStreamExt;
        let Some(docker) = &self.docker else { return Ok(String::new()) };
        let client = docker.client()?;
        let list = bollard::query_parameters::ListContainersOptionsBuilder::new().all(true).build();
        let mut text = String::new();
        for container in client.list_containers(Some(list)).await? {
            let names = container.names.unwrap_or_default().join(" ");
            if !names.contains("tasuki-agent") {
                continue;
            }
            let options =
                bollard::query_parameters::LogsOptionsBuilder::new().stdout(true).stderr(true).tail("30").build();
            let lines: Vec<_> = client.logs(&container.id.unwrap_or_default(), Some(options)).try_collect().await?;
            text.push_str(&format!("{names} ({}):\n", container.status.unwrap_or_default()));
            lines.iter().for_each(|line| text.push_str(&line.to_string()));
        }
        Ok(text)
    }

    /// Commands to look around.
    pub fn how_to_explore(&self) -> String {
        let binaries = binaries().unwrap_or_default();
        let docker = self.docker.as_ref().map(|docker| docker.host.clone()).unwrap_or_default();
        let controller = self.controller.as_ref();
        let (web, state) = controller.map(|it| (it.web.clone(), it.state.display().to_string())).unwrap_or_default();
        format!(
            "   export PATH={}:$PATH TASUKI_SERVER={} TASUKI_STATE_DIR={}\n   tasuki coverage; tasuki findings; tasuki actions   (page: {})\n   \
             $EDITOR {}\n   export AWS_ENDPOINT_URL={} AWS_REGION={REGION} AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={}\n   \
             aws ecs list-services --cluster shop-fargate\n   DOCKER_HOST={docker} docker ps\n   logs: {}/*.log",
            binaries.display(),
            web,
            state,
            web,
            self.config.directory().join("monitor.yaml").display(),
            self.endpoint,
            CUSTOMER.0,
            CUSTOMER.1,
            self.directory.path().display()
        )
    }

    /// Ends everything, in the order in which it can end cleanly.
    pub async fn stop(self) {
        drop(self);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The order matters: the cloud removes its containers while the engine still runs.
        drop(self.controller.take());
        drop(self.cloud.take());
        drop(self.docker.take());
        if let Some(spool) = self.spool.take().filter(|spool| spool.exists())
            && let Err(error) = std::fs::remove_dir_all(&spool)
        {
            eprintln!("could not remove {}: {error}", spool.display());
        }
    }
}

async fn start_cloud(docker: &Dockerd, directory: &Path) -> Result<(Process, String)> {
    let settings = serde_json::json!({
        "accounts": [{"id": ACCOUNT, "accessKeyId": CONTROLLER.0, "secretAccessKey": CONTROLLER.1}]
    });
    let file = directory.join("cloud.json");
    std::fs::write(&file, settings.to_string())?;
    let mut command = Command::new(binaries()?.join("tasuki-cloud"));
    let listen = format!("127.0.0.1:{}", free_port()?);
    command.args(["--listen", &listen, "--runtime", "docker", "--docker-host", &docker.host]);
    // The host that a task's role signs GetCallerIdentity for; on AWS it is the Region's own.
    command.args(["--container-env", &format!("AWS_ENDPOINT_URL_STS=http://{listen}")]);
    // Each call is written down.
    command.env("RUST_LOG", "info,tasuki_cloud::http=debug");
    command.args(["--network", NETWORK, "--subnet", SUBNET, "--config"]).arg(&file);
    command.args(["--metadata", "169.254.170.2:80", "--introspection", "127.0.0.1:51678", "--steady-after", "3"]);
    // An EC2 instance joins the cluster that the customer will create.
    command.args(["--cluster", crate::customer::EC2_CLUSTER, "--instances", "1", "--region", REGION]);
    let mut process = Process::start("cloud", command, directory)?;
    let log = process.log.clone();
    let endpoint = until("the local cloud listens", Duration::from_secs(60), || {
        let alive = process.alive();
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        async move {
            alive?;
            let line = text.lines().find_map(|line| line.strip_prefix("endpoint "));
            Ok(line.and_then(|line| line.split_whitespace().next()).map(str::to_owned))
        }
    })
    .await?;
    Ok((process, endpoint))
}
