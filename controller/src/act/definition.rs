//! Task definitions: described on request, registered once, deregistered when nothing needs them.

use super::outcome::Stop;
use super::raw::{self, Described};
use super::run::Run;
use crate::scope::{Kind, api};
use aws_sdk_ecs::operation::RequestId;
use serde_json::{Value, json};
use tasuki_api::coverage::Reason;
use tasuki_core::action::{OWNER_TAG, SidecarSpec};
use tasuki_core::fleet::{Change, Str};
use tasuki_core::transform::{content_hash, project};

/// Tag on definitions that Tasuki registers: the hash of what was sent. ECS answers a definition
/// with defaults filled in, so its content cannot be compared with what is about to be sent.
pub(super) const CONTENT_TAG: &str = "tasuki.dev/content";
/// Tags that one resource may have (Amazon ECS quotas).
const MOST_TAGS: usize = 50;

/// Describes `arn` for the fleet: the projection, its hash, and what keeps the sidecar out of it.
pub(super) async fn describe(run: &Run<'_>, arn: &Str, sidecar: Option<&SidecarSpec>) -> Result<(), Stop> {
    let described = existing(run, arn).await?;
    let projected = project(&described.definition, sidecar)
        .ok_or_else(|| Stop::Changed(format!("{arn} was answered without its ARN")))?;
    run.change(Change::Definition(Box::new(projected)));
    Ok(())
}

/// Describes a definition that must exist.
pub(super) async fn existing(run: &Run<'_>, arn: &str) -> Result<Described, Stop> {
    let described = raw::describe(&run.scope, run.priority, arn).await?;
    described.ok_or_else(|| Stop::Changed(format!("definition {arn} does not exist")))
}

/// Whose a definition that is about to be registered will be.
#[derive(Clone, Copy)]
pub(super) enum Maker<'a> {
    /// Ours: it gets our tags, is known again by them, and is judged for this sidecar.
    Tasuki(Option<&'a SidecarSpec>),
    /// The owner's, in the owner's family, as it was before: nothing of ours stays on it, and it is known
    /// again by its content. It was read from ECS, so ECS's defaults are filled in on both sides.
    Owner,
}

impl<'a> Maker<'a> {
    fn tags(self, owners_tags: Vec<Value>, monitor: &str, hash: &str) -> Result<Vec<Value>, Stop> {
        match self {
            Self::Tasuki(_) => with_ours(owners_tags, monitor, hash),
            Self::Owner => Ok(owners(owners_tags)),
        }
    }

    fn made(self, latest: &Described, hash: &str) -> bool {
        match self {
            Self::Tasuki(_) => latest.tag(CONTENT_TAG) == Some(hash),
            Self::Owner => content_hash(&latest.definition) == hash,
        }
    }

    fn sidecar(self) -> Option<&'a SidecarSpec> {
        match self {
            Self::Tasuki(sidecar) => sidecar,
            Self::Owner => None,
        }
    }
}

/// The latest ACTIVE revision of the definition's family if it has exactly this content, else a
/// new revision: so a process that died after registering finds its revision again. `tags` are the
/// owner's. The fleet is told of it.
pub(super) async fn ensure(run: &Run<'_>, definition: Value, tags: Vec<Value>, maker: Maker<'_>) -> Result<Str, Stop> {
    let family = definition.get("family").and_then(Value::as_str).unwrap_or_default().to_owned();
    let hash = content_hash(&definition);
    if let Some(known) = registered(run, &family, &hash, maker).await? {
        tracing::debug!(definition = %known.arn(), "revision with this content exists already");
        tell(run, &known, maker.sidecar());
        return Ok(known.arn());
    }
    let tags = maker.tags(tags, &run.action.monitor, &hash)?;
    let Value::Object(fields) = definition else {
        return Err(Stop::Blocked(Reason::UnsupportedPlatform, "the definition is not a JSON object".to_owned()));
    };
    let registered_now = run
        .journaled(api::REGISTER_DEFINITION, &format!("{family} {hash}"), async |_| {
            raw::register(run, fields, tags).await
        })
        .await;
    let lost = match registered_now {
        // No answer is not a no: it may be there.
        Err(Stop::Call(error)) if error.kind == Kind::Unanswered => Some(Stop::Call(error)),
        Err(other) => return Err(other),
        Ok(_) => None,
    };
    // ECS answers it with its defaults filled in, as every later read will.
    match (registered(run, &family, &hash, maker).await?, lost) {
        (Some(found), _) => {
            tell(run, &found, maker.sidecar());
            Ok(found.arn())
        }
        (None, Some(lost)) => Err(lost),
        (None, None) => Err(Stop::Changed(format!("someone else registered a newer revision of {family} just now"))),
    }
}

fn tell(run: &Run<'_>, described: &Described, sidecar: Option<&SidecarSpec>) {
    if let Some(projected) = project(&described.definition, sidecar) {
        run.change(Change::Definition(Box::new(projected)));
    }
}

/// The latest ACTIVE revision of `family`, if it was registered with content `hash`.
async fn registered(run: &Run<'_>, family: &str, hash: &str, maker: Maker<'_>) -> Result<Option<Described>, Stop> {
    let latest = raw::describe(&run.scope, run.priority, family).await?;
    Ok(latest.filter(|latest| latest.active() && maker.made(latest, hash)))
}

/// Deregisters a revision of ours. Whether something still needs it is decide's to know.
pub(super) async fn deregister(run: &Run<'_>, arn: &Str) -> Result<(), Stop> {
    let mut described = existing(run, arn).await?;
    if described.tag(OWNER_TAG).is_none() {
        return Err(Stop::Changed(format!("{arn} has no tag {OWNER_TAG}: it is not Tasuki's to deregister")));
    }
    if !described.active() {
        tell(run, &described, None);
        return Err(Stop::Changed(format!("{arn} is deregistered already")));
    }
    run.before("ACTIVE");
    let output = run
        .scope
        .call(api::DEREGISTER_DEFINITION, run.priority, || {
            run.scope.act.deregister_task_definition().task_definition(&**arn).send()
        })
        .await?;
    run.request_id(output.request_id());
    run.after("INACTIVE");
    described.definition["status"] = "INACTIVE".into();
    tell(run, &described, None);
    Ok(())
}

/// The owner's tags as RegisterTaskDefinition takes them: AWS's own may not be set, ours are not theirs.
pub(super) fn owners(tags: Vec<Value>) -> Vec<Value> {
    let keep = |tag: &Value| {
        let key = tag.get("key").and_then(Value::as_str).unwrap_or_default();
        !key.starts_with("aws:") && key != OWNER_TAG && key != CONTENT_TAG
    };
    tags.into_iter().filter(keep).collect()
}

fn with_ours(tags: Vec<Value>, monitor: &str, hash: &str) -> Result<Vec<Value>, Stop> {
    let mut tags = owners(tags);
    tags.push(json!({ "key": OWNER_TAG, "value": monitor }));
    tags.push(json!({ "key": CONTENT_TAG, "value": hash }));
    if tags.len() > MOST_TAGS {
        let detail =
            format!("the definition has {} tags of its own and Tasuki needs two of {MOST_TAGS}", tags.len() - 2);
        return Err(Stop::Blocked(Reason::NoRoom, detail));
    }
    Ok(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owners_tags_stay_and_aws_own_are_left_out() {
        let tag = |key: &str| json!({ "key": key, "value": "v" });
        let tags =
            with_ours(vec![tag("team"), tag("aws:cloudformation:stack-name"), tag(CONTENT_TAG)], "m", "h").unwrap();
        let keys: Vec<_> = tags.iter().map(|tag| tag["key"].as_str().unwrap()).collect();
        assert_eq!(keys, ["team", OWNER_TAG, CONTENT_TAG]);
        assert_eq!(tags[2]["value"], "h");
        let many = (0..49).map(|index| tag(&format!("k{index}"))).collect();
        assert!(matches!(with_ours(many, "m", "h"), Err(Stop::Blocked(Reason::NoRoom, _))));
    }
}
