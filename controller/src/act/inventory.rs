//! Everything that Tasuki made in a scope, found by tags, labels and names, and how it is removed.

use super::{Executor, raw};
use crate::act::budget::Priority;
use crate::observe::reads::Reads;
use crate::scope::{CallError, Scope, api};
use tasuki_core::action::{
    Action, ActionKind, DAEMON_SERVICE, FAMILY_SUFFIX, HOLD, NEXT, OWNER_TAG, is_daemon_service,
};
use tasuki_core::fleet::{Change, ScopeId, Str};
use tasuki_core::transform::project;

/// Something that Tasuki made, or changed and must change back.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owned {
    /// Where.
    pub scope: ScopeId,
    /// Cluster ARN; empty for a definition.
    pub cluster: Str,
    /// What.
    pub kind: OwnedKind,
}

/// What kind of thing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum OwnedKind {
    /// A service of the owner's that runs a definition with our sidecar.
    Injected {
        /// Service ARN.
        service: Str,
        /// What it runs.
        definition: Str,
    },
    /// Sidecars that a Kubernetes namespace's new pods get.
    Offer {
        /// The namespace's service.
        service: Str,
    },
    /// A daemon service.
    Daemon {
        /// Service ARN.
        service: Str,
    },
    /// A custom attribute.
    Attribute {
        /// Container-instance ARN.
        node: Str,
        /// Name.
        name: Str,
    },
    /// An ACTIVE definition.
    Definition {
        /// ARN.
        definition: Str,
    },
}

impl std::fmt::Display for Owned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            OwnedKind::Injected { service, definition } => write!(f, "sidecar in {service} ({definition})"),
            OwnedKind::Offer { service } => write!(f, "sidecars for the new pods of {service}"),
            OwnedKind::Daemon { service } => write!(f, "daemon service {service}"),
            OwnedKind::Attribute { node, name } => write!(f, "attribute {name} on {node}"),
            OwnedKind::Definition { definition } => write!(f, "task definition {definition}"),
        }
    }
}

impl Owned {
    /// The action that removes it.
    pub fn removal(&self, monitor: &str) -> Action {
        let kind = match self.kind.clone() {
            OwnedKind::Injected { service, definition } => ActionKind::Uninject { service, from: definition },
            OwnedKind::Offer { service } => ActionKind::WithdrawSidecar { service },
            OwnedKind::Daemon { service } => ActionKind::DeleteDaemon { service },
            OwnedKind::Attribute { node, name } => ActionKind::DeleteAttribute { node, name },
            OwnedKind::Definition { definition } => ActionKind::Deregister { definition },
        };
        Action {
            scope: self.scope.clone(),
            cluster: self.cluster.clone(),
            monitor: monitor.into(),
            why: "tasuki uninstall".to_owned(),
            kind,
        }
    }
}

impl Executor {
    /// Everything that Tasuki made in `scope`, in the order in which it is to be removed: services
    /// first, definitions last. Definitions that are deregistered already are not in it; AWS keeps
    /// them INACTIVE while tasks run on them.
    ///
    /// # Errors
    /// [`CallError`] of the first read that failed: half an inventory would be a false one.
    pub async fn inventory(&self, scope: &ScopeId) -> Result<Vec<Owned>, CallError> {
        let Some(scope) = self.scopes.get(scope) else { return Ok(Vec::new()) };
        let reads = Reads { scope: &scope, priority: Priority::Tidy };
        let owned = |cluster: &Str, kind| Owned { scope: scope.id.clone(), cluster: cluster.clone(), kind };
        let (mut services, mut attributes) = (Vec::new(), Vec::new());
        for cluster in reads.list_clusters().await? {
            let arns = reads.list_services(&cluster).await?;
            for service in reads.services(&cluster, &arns).await?.into_iter().filter(|service| service.active) {
                if is_daemon_service(&service.name) && service.tags.contains_key(OWNER_TAG) {
                    services.push(owned(&cluster, OwnedKind::Daemon { service: service.arn }));
                } else if family(&service.definition).ends_with(FAMILY_SUFFIX) {
                    let kind = OwnedKind::Injected { service: service.arn, definition: service.definition };
                    services.push(owned(&cluster, kind));
                }
            }
            let arns = reads.list_nodes(&cluster).await?;
            for node in reads.nodes(&cluster, &arns).await? {
                for name in [HOLD, NEXT].into_iter().filter(|name| node.attributes.contains_key(*name)) {
                    let kind = OwnedKind::Attribute { node: node.arn.clone(), name: name.into() };
                    attributes.push(owned(&cluster, kind));
                }
            }
        }
        let mut all = services;
        all.append(&mut attributes);
        for definition in definitions(&scope).await? {
            all.push(owned(&Str::from(""), OwnedKind::Definition { definition }));
        }
        Ok(all)
    }

    /// What the fleet should know of Tasuki's own ACTIVE definitions in `scope`: one change each.
    /// A process that has just started knows none of them, and decide can deregister only what the
    /// fleet knows. Costs a call for every revision, at the lowest priority.
    ///
    /// # Errors
    /// [`CallError`] of the first read that failed.
    pub async fn own_definitions(&self, scope: &ScopeId) -> Result<Vec<Change>, CallError> {
        let Some(scope) = self.scopes.get(scope) else { return Ok(Vec::new()) };
        let mut changes = Vec::new();
        for arn in definitions(&scope).await? {
            let described = raw::describe(&scope, Priority::Tidy, &arn).await?;
            let projected = described.and_then(|described| project(&described.definition, None));
            changes.extend(projected.map(|definition| Change::Definition(Box::new(definition))));
        }
        Ok(changes)
    }
}

/// ACTIVE revisions of families that carry our name and our tag.
async fn definitions(scope: &Scope) -> Result<Vec<Str>, CallError> {
    let mut found = Vec::new();
    for family in families(scope).await? {
        let ours = raw::describe(scope, Priority::Tidy, &family).await?;
        if ours.is_none_or(|latest| latest.tag(OWNER_TAG).is_none()) {
            continue;
        }
        let mut token: Option<String> = None;
        loop {
            let page = scope
                .call(api::LIST_DEFINITIONS, Priority::Tidy, || {
                    let call = scope.read.list_task_definitions().family_prefix(&family).max_results(100);
                    call.status(aws_sdk_ecs::types::TaskDefinitionStatus::Active).set_next_token(token.clone()).send()
                })
                .await?;
            found.extend(page.task_definition_arns().iter().map(|arn| Str::from(arn.as_str())));
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                break;
            }
        }
    }
    Ok(found)
}

async fn families(scope: &Scope) -> Result<Vec<String>, CallError> {
    let mut found = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let page = scope
            .call(api::LIST_FAMILIES, Priority::Tidy, || {
                let call = scope.read.list_task_definition_families().max_results(100);
                call.status(aws_sdk_ecs::types::TaskDefinitionFamilyStatus::Active).set_next_token(token.clone()).send()
            })
            .await?;
        let ours = |family: &&String| **family == DAEMON_SERVICE || family.ends_with(FAMILY_SUFFIX);
        found.extend(page.families().iter().filter(ours).cloned());
        token = page.next_token.filter(|token| !token.is_empty());
        if token.is_none() {
            return Ok(found);
        }
    }
}

/// The family that a definition's ARN names.
fn family(definition: &str) -> &str {
    let name = definition.rsplit('/').next().unwrap_or(definition);
    name.split(':').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_read_from_an_arn_or_a_name() {
        assert_eq!(family("arn:aws:ecs:eu-west-1:1:task-definition/web-tasuki:12"), "web-tasuki");
        assert_eq!(family("web:3"), "web");
    }
}
