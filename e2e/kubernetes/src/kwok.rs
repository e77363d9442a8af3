//! Nodes that only claim to run their pods: thousands of them cost nothing.

use crate::node::is_ready;
use crate::plane::ControlPlane;
use crate::programs::program;
use anyhow::Result;
use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;
use tasuki_e2e::process::{Process, until};

/// Label of every node that claims; its value is the prefix of its name.
pub const LABEL: &str = "tasuki.test/kwok";

/// A running KWOK; dropping it ends it, and its nodes become NotReady.
pub struct Kwok {
    process: Process,
    nodes: Api<Node>,
}

impl Kwok {
    /// Starts it for one plane.
    pub async fn start(plane: &ControlPlane) -> Result<Self> {
        let client: Client = plane.client().await?;
        let stages = plane.directory().join("kwok.yaml");
        std::fs::write(&stages, include_str!("kwok.yaml"))?;
        let mut command = Command::new(program("kwok")?);
        let number = plane.bridge().number;
        command.arg(format!("--kubeconfig={}", plane.kubeconfig().display())).args([
            &format!("--config={}", stages.display()),
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-lease-duration-seconds=40",
            // Its pods' addresses lead nowhere.
            "--cidr=10.204.0.0/16",
            "--node-ip=10.205.0.1",
            &format!("--server-address=127.201.{number}.1:10247"),
        ]);
        // Neither settings nor caches of the user's.
        command.env("HOME", plane.directory()).env("KWOK_WORKDIR", plane.directory().join("kwok"));
        let process = Process::start("kwok", command, plane.directory())?;
        Ok(Self { process, nodes: Api::all(client) })
    }

    /// Makes `count` nodes `<prefix>-0`, `<prefix>-1`, … with these labels and waits until all are Ready; returns their names.
    pub async fn nodes(
        &mut self,
        prefix: &str,
        count: usize,
        labels: &BTreeMap<String, String>,
    ) -> Result<Vec<String>> {
        let names: Vec<_> = (0..count).map(|number| format!("{prefix}-{number}")).collect();
        for name in &names {
            self.nodes.create(&PostParams::default(), &node(name, prefix, labels)?).await?;
        }
        let listed = ListParams::default().labels(&format!("{LABEL}={prefix}"));
        until("all nodes of KWOK are Ready", Duration::from_secs(120), || {
            let alive = self.process.alive();
            let (nodes, listed) = (&self.nodes, &listed);
            async move {
                if alive.is_err() {
                    return Ok(Some(alive));
                }
                let ready = nodes.list(listed).await?.iter().filter(|node| is_ready(node)).count();
                Ok((ready >= count).then_some(Ok(())))
            }
        })
        .await??;
        Ok(names)
    }

    /// Ends it; dropping it does the same.
    pub fn stop(self) {}
}

fn node(name: &str, prefix: &str, labels: &BTreeMap<String, String>) -> Result<Node> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let mut all = BTreeMap::from([
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), architecture.to_owned()),
        ("kubernetes.io/hostname".to_owned(), name.to_owned()),
        (LABEL.to_owned(), prefix.to_owned()),
    ]);
    all.extend(labels.clone());
    let room = json!({ "cpu": "32", "memory": "256Gi", "pods": "110" });
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name, "labels": all, "annotations": { "kwok.x-k8s.io/node": "fake" } },
        "status": {
            "allocatable": room,
            "capacity": room,
            "nodeInfo": {
                "architecture": architecture,
                "operatingSystem": "linux",
                "kernelVersion": "6.1.0-kwok",
                "osImage": "KWOK",
                "kubeletVersion": "v1.36.3",
                "kubeProxyVersion": "",
                "bootID": "", "containerRuntimeVersion": "kwok", "machineID": "", "systemUUID": "",
            },
        },
    }))?)
}
