//! A Docker Engine: the one that answers on this machine, or a private one that ends with us.

use crate::process::{Process, until};
use anyhow::{Context, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A Docker Engine that answers.
#[derive(Debug)]
pub struct Dockerd {
    /// `unix://…`.
    pub host: String,
    private: Option<Private>,
}

/// An engine of our own.
#[derive(Debug)]
struct Private {
    process: Process,
    root: PathBuf,
    /// Released last.
    _turn: File,
}

/// Which cgroup layout the engine's containers see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// As the host has it.
    Host,
    /// Version 2, whatever the host has: by a mount namespace of the engine's own.
    V2,
}

impl Dockerd {
    /// The engine that `DOCKER_HOST` or the usual socket gives, else a private one in `directory`.
    pub async fn find_or_start(directory: &Path) -> Result<Self> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
        if answers(&host).await.is_some() {
            return Ok(Self { host, private: None });
        }
        Self::start(directory, Cgroups::Host).await
    }

    /// A private engine with its data below `directory`.
    ///
    /// Waits until no other one that was started here runs: two engines would both keep the chains of
    /// the host's packet filter, which have fixed names.
    pub async fn start(directory: &Path, cgroups: Cgroups) -> Result<Self> {
        let turn = tokio::task::spawn_blocking(turn).await??;
        let root = directory.join("docker");
        std::fs::create_dir_all(&root)?;
        let path = |name: &str| root.join(name).display().to_string();
        let host = format!("unix://{}", path("docker.sock"));
        let arguments = [
            "--data-root",
            &path("data"),
            "--exec-root",
            &path("exec"),
            "--pidfile",
            &path("pid"),
            "--host",
            &host,
            "--bridge",
            "none",
            "--log-level",
            "warn",
        ];
        let mut command = match cgroups {
            Cgroups::Host => Command::new("dockerd"),
            Cgroups::V2 => {
                let mut command = Command::new("unshare");
                let script = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec dockerd \"$@\"";
                command.args(["--mount", "sh", "-c", script, "dockerd"]);
                command
            }
        };
        command.args(arguments);
        let process = Process::start("dockerd", command, directory)
            .context("no Docker Engine answers and none can be started (apt-get install docker.io)")?;
        let mut engine = Self { host, private: Some(Private { process, root, _turn: turn }) };
        let host = engine.host.clone();
        let ready =
            until("the private Docker Engine answers", Duration::from_secs(60), || async { Ok(answers(&host).await) })
                .await;
        if let (Err(error), Some(private)) = (ready, &mut engine.private) {
            return Err(error.context(format!("dockerd's log ends with:\n{}", private.process.tail())));
        }
        Ok(engine)
    }

    /// A client.
    pub fn client(&self) -> Result<bollard::Docker> {
        Ok(bollard::Docker::connect_with_host(&self.host)?)
    }

    /// Whether it is ours.
    pub fn is_private(&self) -> bool {
        self.private.is_some()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if let Some(Private { process, root, .. }) = &mut self.private {
            empty(&self.host);
            process.stop();
            unmount_below(root);
            if let Err(error) = std::fs::remove_dir_all(&*root) {
                eprintln!("could not remove {}: {error}", root.display());
            }
        }
    }
}

/// Removes the containers and networks of an engine of our own, whose bridges would outlive it: a test
/// that fails comes here without having tidied up.
fn empty(host: &str) {
    let script = "docker ps -aq | xargs -r docker rm -fv; docker network ls -q --filter type=custom | xargs -r docker network rm";
    let emptied = Command::new("sh").args(["-c", script]).env("DOCKER_HOST", host).output();
    if let Err(error) = emptied {
        eprintln!("could not empty the private Docker Engine: {error}");
    }
}

/// The engine leaves its network namespaces mounted, and when it was killed its layers too.
fn unmount_below(root: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|point| Path::new(point).starts_with(root));
    for point in points {
        // What stays mounted is named when the directory cannot be removed.
        let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// The machine's one turn to run a private engine; given back when the file is closed.
fn turn() -> std::io::Result<File> {
    // Not below TMPDIR: whoever starts one on this machine must meet the others.
    let file = File::create("/tmp/tasuki-private-docker.lock")?;
    file.lock()?;
    Ok(file)
}

async fn answers(host: &str) -> Option<()> {
    let client = bollard::Docker::connect_with_host(host).ok()?;
    tokio::time::timeout(Duration::from_secs(2), client.ping()).await.ok()?.ok().map(drop)
}
