//! The cluster's DNS: CoreDNS as a pod of one node.

use crate::node::Node;
use crate::plane::ControlPlane;
use crate::programs::{kubectl, program};
use anyhow::{Context, Result};
use tasuki_e2e::image::Image;

/// Starts it on `node` and waits until it answers.
pub async fn start(plane: &ControlPlane, node: &Node) -> Result<()> {
    let image = Image::default().program("/coredns", &program("coredns")?)?.line("ENTRYPOINT [\"/coredns\"]");
    node.import_image(&image.pack("tasuki.test/coredns:1")?).await?;
    kubectl(plane, &["apply", "--filename", "-"], &include_str!("dns.yaml").replace("NODE", node.name())).await?;
    let wait = ["rollout", "status", "--namespace=kube-system", "deployment/coredns", "--timeout=120s"];
    kubectl(plane, &wait, "").await.context("the cluster's DNS did not start").map(drop)
}
