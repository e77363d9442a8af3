//! A world on one machine: Docker Engine, local cloud, customer, controller; each a real part.

use crate::config::Config;
use crate::customer::{ACCOUNT, Customer, Key, REGION, sdk};
use crate::dockerd::Dockerd;
use crate::image::{self, Image};
use crate::process::{Process, until};
use anyhow::{Context, Result, bail};
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

/// Builds the agent's image; the same agent under another version where `version` differs.
pub async fn agent_image(client: &bollard::Docker, version: &str) -> Result<AgentImage> {
    let image = Image::default()
        .program("/tasuki-agent", &binaries()?.join("tasuki-agent"))?
        .file("/tmp/.keep", 0o644, "")
        .line(&format!("ENV TASUKI_VERSION={version}"))
        .line("ENTRYPOINT [\"/tasuki-agent\"]")
        .line("CMD [\"supervise\"]");
    let digest = image.build(client, &format!("{}:{version}", agent_repository())).await?;
    Ok(AgentImage { version: version.to_owned(), digest })
}

/// An agent image whose program ends at once, whatever it is asked.
pub async fn broken_agent_image(client: &bollard::Docker, version: &str) -> Result<AgentImage> {
    let image = Image::default()
        .program("/bin/busybox", Path::new("/bin/busybox"))?
        .line(&format!("ENV TASUKI_VERSION={version}"))
        .line("ENTRYPOINT [\"/bin/busybox\", \"false\"]");
    let digest = image.build(client, &format!("{}:{version}", agent_repository())).await?;
    Ok(AgentImage { version: version.to_owned(), digest })
}

/// The customer's image.
pub async fn shop_image(client: &bollard::Docker) -> Result<String> {
    let tag = format!("{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/shop:1");
    image::shop(&binaries()?.join("tasuki-lab"))?.build(client, &tag).await?;
    Ok(tag)
}
