//! The programs that `tools/kubernetes.sh` builds, and those of them that are run once.

use crate::plane::ControlPlane;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tasuki_e2e::process::end_with_owner;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// `helm --wait` and `kubectl wait` end earlier by their own limits.
const LIMIT: Duration = Duration::from_secs(300);

/// Path of a program: `tasuki-kubernetes`, `helm`, `kubeconform`, `kwok` or `coredns`.
pub fn program(name: &str) -> Result<PathBuf> {
    let home = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    // As in tools/env.sh.
    let cache = home("TASUKI_CACHE")
        .or_else(|| home("XDG_CACHE_HOME").map(|cache| cache.join("tasuki")))
        .or_else(|| home("HOME").map(|home| home.join(".cache/tasuki")))
        .context("none of TASUKI_CACHE, XDG_CACHE_HOME and HOME is set")?;
    let path = cache.join("kubernetes/bin").join(name);
    if !path.exists() {
        bail!("{} is missing; run tools/kubernetes.sh", path.display());
    }
    Ok(path)
}

/// Runs kubectl as administrator with `stdin` as its standard input; returns what it printed.
///
/// Fails with its standard error where it fails.
pub async fn kubectl(plane: &ControlPlane, arguments: &[&str], stdin: &str) -> Result<String> {
    let mut command = Command::new(program("tasuki-kubernetes")?);
    command.arg("kubectl").arg("--kubeconfig").arg(plane.kubeconfig());
    // Discovery is cached per cluster, and clusters here come and go.
    command.arg("--cache-dir").arg(plane.directory().join("kubectl-cache")).args(arguments);
    let what = format!("kubectl {}", arguments.join(" "));
    output(&what, command, stdin.as_bytes()).await
}

/// Runs Helm as administrator, without the user's own settings; returns what it printed.
///
/// Fails with its standard error where it fails.
pub async fn helm(plane: &ControlPlane, arguments: &[&str]) -> Result<String> {
    let home = plane.directory().join("helm");
    let mut command = Command::new(program("helm")?);
    command.args(arguments).arg("--kubeconfig").arg(plane.kubeconfig());
    for (variable, folder) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
    {
        command.env(variable, home.join(folder));
    }
    output(&format!("helm {}", arguments.join(" ")), command, b"").await
}

/// Runs a command to its end and returns its standard output; `what` names it in errors.
pub(crate) async fn output(what: &str, mut command: Command, stdin: &[u8]) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    end_with_owner(command.as_std_mut());
    let mut child = command.spawn().with_context(|| format!("{what}: cannot start it"))?;
    let mut input = child.stdin.take().context("standard input is piped")?;
    let feed = async move {
        // What ends without reading all of it says why on its standard error.
        let _ = input.write_all(stdin).await;
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(LIMIT, both).await;
    let output = output.with_context(|| format!("{what}: did not end within {LIMIT:?}"))??;
    if !output.status.success() {
        bail!("{what}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
