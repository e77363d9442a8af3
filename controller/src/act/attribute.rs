//! Custom attributes on nodes: which daemon may stand where. Both calls may be repeated freely.

use super::outcome::Stop;
use super::run::Run;
use crate::scope::{Kind, api};
use aws_sdk_ecs::operation::RequestId;
use aws_sdk_ecs::types as ecs;
use jiff::Timestamp;
use tasuki_core::fleet::{Change, Str};

/// Sets an attribute on a node.
pub(super) async fn put(run: &Run<'_>, node: &Str, name: &str) -> Result<(), Stop> {
    let attribute = attribute(node, name)?;
    let output = run
        .scope
        .call(api::PUT_ATTRIBUTES, run.priority, || {
            run.scope.act.put_attributes().cluster(&*run.action.cluster).attributes(attribute.clone()).send()
        })
        .await?;
    run.request_id(output.request_id());
    run.after(name);
    tell(run, node).await
}

/// Takes an attribute from a node.
pub(super) async fn delete(run: &Run<'_>, node: &Str, name: &str) -> Result<(), Stop> {
    let attribute = attribute(node, name)?;
    run.before(name);
    let answer = run
        .scope
        .call(api::DELETE_ATTRIBUTES, run.priority, || {
            run.scope.act.delete_attributes().cluster(&*run.action.cluster).attributes(attribute.clone()).send()
        })
        .await;
    match answer {
        Ok(output) => run.request_id(output.request_id()),
        // Gone already, with its node or without.
        Err(error) if error.kind == Kind::Missing => {}
        Err(error) => return Err(error.into()),
    }
    tell(run, node).await
}

/// ECS sends no event for an attribute, so the node is read at once.
async fn tell(run: &Run<'_>, node: &Str) -> Result<(), Stop> {
    let read_at = Timestamp::now();
    match run.reads().nodes(&run.action.cluster, std::slice::from_ref(node)).await?.pop() {
        Some(node) => run.change(Change::NodeRead { read_at, node: Box::new(node) }),
        None => run.change(Change::NodeGone(node.clone())),
    }
    Ok(())
}

fn attribute(node: &str, name: &str) -> Result<ecs::Attribute, Stop> {
    let attribute =
        ecs::Attribute::builder().name(name).target_type(ecs::TargetType::ContainerInstance).target_id(node);
    attribute.build().map_err(|error| Stop::Changed(format!("attribute {name} of {node} cannot be written: {error}")))
}
