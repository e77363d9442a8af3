//! The first check: what the agent knows of its task is what ECS knows of it. Pure.

use super::directory::Known;
use super::refuse::{Code, Refused};
use std::collections::BTreeSet;
use std::net::IpAddr;
use tasuki_api::agent::{ContainerEvidence, Identity};
use tasuki_core::fleet::TaskStatus;

/// Containers that AWS itself adds and that one side may not list.
const FOREIGN_CONTAINERS: &str = "aws-guardduty-agent";

/// Whether the connection came from the task's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// It did.
    Verified,
    /// It did not, or the task's address is not known: a load balancer or NAT is in between, or the
    /// task uses its host's network.
    Unverified,
}

/// Compares source and task address.
pub fn address(known: &Known, source: IpAddr) -> Address {
    match known.task.address {
        Some(address) if address == source.to_canonical() => Address::Verified,
        _ => Address::Unverified,
    }
}

/// Checks an identity against what is known of its task; gives the runtime id of the agent's
/// own container.
pub fn check<'a>(identity: &'a Identity, known: &Known) -> Result<&'a ContainerEvidence, Refused> {
    let task = &known.task;
    if task.status >= TaskStatus::Stopped {
        return Err(Refused::new(Code::TaskStopped, format!("task {} has stopped", task.arn)));
    }
    if identity.kind != known.kind {
        let message = format!("an agent in task {} speaks as {:?}, not as {:?}", task.arn, known.kind, identity.kind);
        return Err(Refused::new(Code::KindNotAllowed, message));
    }
    if *identity.container != *known.agent_container {
        let message =
            format!("the agent's container is `{}`, not `{}`", known.agent_container, shown(&identity.container));
        return Err(Refused::new(Code::ContainerNotAgent, message));
    }
    let claimed: BTreeSet<(&str, &str)> = identity
        .containers
        .iter()
        .filter(|c| !c.runtime_id.is_empty() && !c.name.starts_with(FOREIGN_CONTAINERS))
        .map(|c| (c.arn.as_str(), c.runtime_id.as_str()))
        .collect();
    let started: BTreeSet<(&str, &str)> = task
        .containers
        .iter()
        .filter(|c| !c.name.starts_with(FOREIGN_CONTAINERS))
        .filter_map(|c| Some((&*c.arn, c.runtime_id.as_deref()?)))
        .collect();
    for (arn, runtime_id) in &claimed {
        let Some(container) = task.containers.iter().find(|c| *c.arn == **arn) else {
            return Err(mismatch(known, "a container of another task is listed"));
        };
        if container.runtime_id.as_deref().is_some_and(|known| known != *runtime_id) {
            return Err(mismatch(known, "a container's runtime id is another one"));
        }
    }
    if claimed != started {
        let message = format!(
            "ECS knows {} started containers of task {}, the agent {}; read them again in a moment",
            started.len(),
            task.arn,
            claimed.len()
        );
        return Err(Refused::new(Code::EvidencePending, message));
    }
    let own = task.containers.iter().find(|c| *c.name == *identity.container);
    let (Some(own), Some(evidence)) =
        (own, own.and_then(|own| identity.containers.iter().find(|c| *c.arn == *own.arn && !c.runtime_id.is_empty())))
    else {
        return Err(mismatch(known, "the agent's own container is not among them"));
    };
    match &own.image_digest {
        None => Err(Refused::new(Code::EvidencePending, "ECS does not know the agent's image digest yet")),
        Some(digest) if known.approved_digests.contains(digest) => Ok(evidence),
        Some(digest) => Err(Refused::new(
            Code::ImageNotApproved,
            format!("container `{}` of task {} runs {digest}, which no monitor approves here", own.name, task.arn),
        )),
    }
}

fn mismatch(known: &Known, what: &str) -> Refused {
    Refused::new(Code::EvidenceMismatch, format!("the containers are not those of task {}: {what}", known.task.arn))
}

/// Text from outside as it may stand in a message: short and printable.
pub fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}
