//! The first check: what the agent knows of its task is what ECS knows of it. Pure. The part that pods
//! share with ECS tasks is [`standing`] and [`approved`].

use super::directory::Known;
use super::refuse::{Code, Refused};
use std::collections::BTreeSet;
use std::net::IpAddr;
use tasuki_api::agent::{ContainerEvidence, Identity};
use tasuki_core::fleet::{Container, TaskStatus};

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
    standing(identity, known)?;
    let task = &known.task;
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
    approved(own, known)?;
    Ok(evidence)
}

/// Whether an agent may be here at all: the task runs, and has an agent of this kind by this name.
pub fn standing(identity: &Identity, known: &Known) -> Result<(), Refused> {
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
    Ok(())
}

/// Whether the agent's container runs an image that a monitor approves.
pub fn approved(own: &Container, known: &Known) -> Result<(), Refused> {
    match &own.image_digest {
        None => Err(Refused::new(Code::EvidencePending, "the digest of the agent's image is not known yet")),
        Some(digest) if known.approved_digests.contains(digest) => Ok(()),
        Some(digest) => Err(Refused::new(
            Code::ImageNotApproved,
            format!(
                "container `{}` of task {} runs {digest}, which no monitor approves here",
                own.name, known.task.arn
            ),
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
