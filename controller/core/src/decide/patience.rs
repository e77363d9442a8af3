//! For which nodes a rollout waits, and how long.

use super::daemon::Roll;
use super::daemon_view::NodeView;
use crate::fleet::LaunchType;
use crate::memory::Rollout;
use jiff::Timestamp;

impl Roll<'_, '_, '_> {
    /// Nothing has moved for the whole deadline. Before this controller began nobody listened, so no agent could speak:
    /// an outage that is longer than the deadline is no fault of the version's.
    pub fn is_late(&self, rollout: &Rollout, node: &NodeView<'_>) -> bool {
        // A node that was away gets its time anew.
        let back = node.node.turned_at.filter(|_| self.daemons.launch == LaunchType::Kubernetes);
        let since = rollout.step_since.max(self.daemons.cluster.world.fleet.born()).max(back.unwrap_or(Timestamp::MIN));
        self.now.duration_since(since) >= self.monitor.deadline()
    }

    /// The new agent has not been heard for as long as it is given, so nothing is lost with it.
    pub fn is_mute(&self, node: &NodeView<'_>) -> bool {
        let since = self.daemons.cluster.world.fleet.born().max(node.node.turned_at.unwrap_or(Timestamp::MIN));
        node.next_agent.is_missing(self.now) && self.now.duration_since(since) >= self.monitor.deadline()
    }

    /// What a moved node says counts: it is not away, nor back for so short a time that its agent cannot have spoken yet.
    pub fn is_judged(&self, node: &NodeView<'_>) -> bool {
        node.next_agent.is_heard() || self.daemons.launch != LaunchType::Kubernetes || self.could_start(node)
    }

    /// The node has been connected for so long that an agent that was asked for could have come.
    pub fn could_start(&self, node: &NodeView<'_>) -> bool {
        let deadline = self.monitor.deadline();
        node.node.connected && node.node.turned_at.is_none_or(|since| self.now.duration_since(since) >= deadline)
    }

    /// An agent can be asked for: its node is Ready. An ECS agent that is disconnected silences no other one.
    pub fn is_awaited(&self, node: &NodeView<'_>) -> bool {
        node.node.connected || self.daemons.launch != LaunchType::Kubernetes
    }
}
