//! Kubernetes watches into changes of the fleet: pods are tasks, nodes are nodes, the agent's
//! DaemonSets are the daemon.
//!
//! ```text
//!  pods ───────┐                      ┌─▶ Change::TaskRead, Task (ended)
//!  nodes ──────┼─▶ watch ─▶ project ──┼─▶ Change::NodeRead, NodeGone
//!  DaemonSets ─┤     │                └─▶ Change::Service, Definition
//!  events ─────┤     └─ after each complete list: Change::Swept
//!  offers ─────┤   (`sidecars.live`: each namespace is a service, see offers.rs)
//!  quotas ─────┘
//! ```
//!
//! *Guarantees*: nothing is reported as swept before every kind was listed in full; what a list no
//! longer holds is gone from the fleet. *Assumptions*: one watch gives an object's versions in order.
//! *Caveats*: a pod that came and went between two lists was never seen.

mod lean;
mod lists;
mod offers;
mod project;
#[cfg(test)]
mod tests;
mod watch;

pub use project::{Roles, controller, node, pod_name, pod_task, workload};
pub use watch::{KubernetesStatus, watch};
