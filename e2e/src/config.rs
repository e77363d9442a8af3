//! The YAML of demo and tests, as a user would keep it in git.

use crate::customer::{FARGATE_CLUSTER, REGION, role};
use crate::world::{AgentImage, agent_repository};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// A name that the demonstration's miner asks for.
pub const THREATS: &str = "# A name that the demonstration's miner asks for.\napiVersion: tasuki.dev/v1alpha1\n\
    kind: ThreatList\nmetadata: { name: pools }\nspec:\n  verdict: Threat\n  entity: Domain\n  \
    category: CryptoCurrency\n  inline: [pool.example.test]\n";

/// A directory of YAML.
#[derive(Clone, Debug)]
pub struct Config {
    directory: PathBuf,
}

impl Config {
    /// Writes the documents that do not change: scope, indicators, sink.
    pub fn create(directory: &Path, event_queue: &str) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let config = Self { directory: directory.to_owned() };
        config.write(
            "scope.yaml",
            &format!(
                "# Which accounts and Regions are watched, and how events arrive.\n\
                 apiVersion: tasuki.dev/v1alpha1\nkind: AwsScope\nmetadata: {{ name: local }}\nspec:\n  \
                 regions: [{REGION}]\n  eventQueue: {event_queue}\n  sweepInterval: 1m\n  \
                 agentTaskRole: {}\n  agentExecutionRole: {}\n",
                role("tasuki-agent"),
                role("tasuki-agent-execution")
            ),
        )?;
        config.write("threats.yaml", THREATS)?;
        config.write(
            "sink.yaml",
            "# Every finding of at least Medium becomes an event on the default bus.\napiVersion: tasuki.dev/v1alpha1\n\
             kind: FindingSink\nmetadata: { name: bus }\nspec:\n  minimumSeverity: Medium\n  eventBridge: { bus: default }\n",
        )?;
        Ok(config)
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes the monitor: `mode` is `Observe` or `Enforce`. From one version to the next version and digest change.
    pub fn monitor(&self, mode: &str, agent: &AgentImage) -> Result<()> {
        self.write(
            "monitor.yaml",
            &format!(
                "# Where the agent goes, which version, and how it is rolled.\napiVersion: tasuki.dev/v1alpha1\n\
                 kind: RuntimeMonitor\nmetadata: {{ name: prod }}\nspec:\n  mode: {mode}\n  targets:\n    ecs:\n      \
                 clusters: {{ include: [\"shop-*\"] }}\n  grace: 20s\n  agent:\n    version: {}\n    image:\n      \
                 repository: {}\n      digest: {}\n  ecs:\n    fargate:\n      deliveryFor:\n        \
                 {FARGATE_CLUSTER}/checkout: Live\n  rollout:\n    waves:\n      - {{ name: all, take: 100%, soak: 5s, maxUnavailable: 100% }}\n    \
                 deadline: 45s\n",
                agent.version,
                agent_repository(),
                agent.digest
            ),
        )
    }

    /// Replaces one file at once, as a checkout of git does.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let (path, new) = (self.directory.join(name), self.directory.join(format!(".{name}.new")));
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
