//! Changes in a Kubernetes cluster: the agent's DaemonSets, one label of nodes and, where the chart has `sidecars.live`,
//! the ConfigMap of what is offered in sidecars and Jobs that try it. Nothing else.
//!
//! *Guarantees*: every step can be repeated; each is one call, or a few of which each leaves a state
//! that the next run recognises. What is changed is compared first: by uid, by resourceVersion, or by
//! the label's value. *Assumptions*: one executor works on one target at a time.

mod calls;
mod daemon_set;
mod executor;
mod sidecars;
#[cfg(test)]
mod tests;

pub use executor::KubernetesExecutor;
