//! Heartbeats: cut down to what the agent may speak for, then handed to the engine.

use super::evidence::{Address, shown};
use super::pods;
use super::refuse::{Code, Refused};
use super::sessions::Session;
use super::{Inner, directory::Known};
use std::collections::BTreeSet;
use tasuki_api::agent::{AgentKind, Heartbeat, HeartbeatReply};
use tasuki_core::fleet::{AgentReport, Change, TaskStatus};
use tokio::sync::mpsc::error::SendTimeoutError;

/// Largest heartbeat, bytes: a node of 500 tasks, with every family and type explained, is a third of it.
pub(super) const HEARTBEAT_LIMIT: usize = 256 << 10;

/// Takes a heartbeat.
pub(super) async fn take(inner: &Inner, session: &Session, body: &[u8]) -> Result<HeartbeatReply, Refused> {
    let mut heartbeat: Heartbeat = serde_json::from_slice(body).map_err(|error| {
        Refused::new(Code::Malformed, format!("the heartbeat is not readable: {}", shown(&error.to_string())))
    })?;
    let now = (inner.clock)();
    let known = inner.current(session)?;
    let claimed = heartbeat.tasks.len();
    let node = known.task.node.clone().filter(|_| session.kind == AgentKind::Node);
    match session.kind {
        AgentKind::Sidecar => heartbeat.tasks.retain(|task| *task == *known.task.arn),
        AgentKind::Node => {
            let tasks = node.as_deref().map(|node| inner.directory.tasks_on(node)).unwrap_or_default();
            let here: BTreeSet<&str> = tasks.iter().map(|task| &*task.arn).collect();
            heartbeat.tasks.retain_mut(|task| {
                if here.contains(task.as_str()) || *task == *known.task.arn {
                    return true;
                }
                // A static pod has another name on its node.
                let same = pods::named(&tasks, task);
                same.is_some_and(|same| {
                    *task = same.arn.to_string();
                    true
                })
            });
        }
    }
    inner.tally.add("ForeignTask", u64::try_from(claimed - heartbeat.tasks.len()).unwrap_or(0));
    let own = known.task.containers.iter().find(|c| c.runtime_id.as_deref() == Some(&*session.runtime_id));
    let report = AgentReport {
        task: known.task.arn.clone(),
        kind: session.kind,
        node,
        image_digest: own.and_then(|container| container.image_digest.clone()),
        received_at: now,
        conflict: session.conflict(),
        heartbeat_seconds: u32::try_from(session.interval.as_secs()).unwrap_or(60),
        address_verified: session.address == Address::Verified,
        signed: session.signed,
        heartbeat,
    };
    let change = Change::Agent(Box::new(report));
    match inner.changes.send_timeout(change, std::time::Duration::from_secs(2)).await {
        Ok(()) => inner.tally.one("Heartbeat"),
        Err(SendTimeoutError::Timeout(_) | SendTimeoutError::Closed(_)) => return Err(Refused::busy("the engine")),
    }
    Ok(HeartbeatReply {
        policy: inner.policies.hash(known.monitor.as_deref()),
        heartbeat_seconds: session.interval.as_secs().unsigned_abs(),
        time: now,
    })
}

impl Inner {
    /// The session's task as it is now; ends the session where it has stopped or its agent's
    /// container is another one.
    pub(super) fn current(&self, session: &Session) -> Result<Known, Refused> {
        let known = self.directory.task(session.task()).unwrap_or_else(|| session.enrolled.clone());
        if known.task.status >= TaskStatus::Stopped {
            self.sessions.end(session);
            return Err(Refused::new(Code::TaskStopped, format!("task {} has stopped", session.task())));
        }
        let own = known.task.containers.iter().find(|c| *c.name == *known.agent_container);
        if own.and_then(|c| c.runtime_id.as_deref()).is_some_and(|id| id != session.runtime_id) {
            self.sessions.end(session);
            return Err(Refused::new(Code::SessionUnknown, "the agent's container was replaced; enrol anew"));
        }
        Ok(known)
    }
}
