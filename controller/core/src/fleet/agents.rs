//! What the agents say, after the gateway has checked who they are.

use super::Str;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tasuki_api::agent::{AgentKind, Heartbeat};

/// A heartbeat of an agent whose identity the gateway has checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentReport {
    /// ARN of the agent's own task: its key.
    pub task: Str,
    /// What it may speak for.
    pub kind: AgentKind,
    /// Container instance that it speaks for, for [`AgentKind::Node`].
    pub node: Option<Str>,
    /// Digest of the image that it runs, as ECS says.
    pub image_digest: Option<Str>,
    /// When the gateway received it, by the gateway's clock.
    pub received_at: Timestamp,
    /// A second key claimed to be this agent, and when.
    pub conflict: Option<Timestamp>,
    /// Seconds until its next heartbeat, as the gateway asks of it.
    pub heartbeat_seconds: u32,
    /// It came from its task's own address.
    pub address_verified: bool,
    /// Its task's role signed for it.
    pub signed: bool,
    /// What it says.
    pub heartbeat: Heartbeat,
}
