//! A real Kubernetes on one machine: control plane, nodes whose pods are containers, and nodes that
//! only claim to run their pods.
//!
//! Its programs are built by `tools/kubernetes.sh`. Everything has addresses, mounts, cgroups and a
//! container runtime of its own, so that what the machine runs besides is neither seen nor touched,
//! and everything ends with the value that started it. Where a test is killed, the two scripts of
//! this crate, which hold the network and the nodes, tidy up. Needs root.
//!
//! Addresses, of the plane with number N (the first free one): `10.201.N.1` is the host and the API
//! server, `10.201.N.2` to `.5` are nodes, `10.202.N.0/24` are their pods, `127.201.N.1` is etcd.
//! Services have `10.96.0.0/16`, which only nodes and pods reach.

pub mod agents;
mod bridge;
pub mod certificates;
mod kubeconfig;
pub mod kwok;
pub mod node;
pub mod plane;
pub mod programs;
pub mod registry;
pub mod release;
pub mod world;

pub use agents::Agents;
pub use kwok::Kwok;
pub use node::Node;
pub use plane::{ControlPlane, Options};
pub use programs::{helm, kubectl};
pub use release::Release;
