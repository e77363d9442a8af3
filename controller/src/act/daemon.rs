//! The daemon services: one agent on every node.

use super::definition::{Maker, ensure};
use super::deploy::{point, still};
use super::outcome::Stop;
use super::run::Run;
use crate::observe::api::service as read_service;
use crate::scope::api;
use aws_sdk_ecs::operation::RequestId;
use aws_sdk_ecs::types as ecs;
use tasuki_api::coverage::Reason;
use tasuki_core::action::{
    AgentSpec, DAEMON_SERVICE_NEXT, EXTERNAL_DAEMON_SERVICE_NEXT, HOLD, NEXT, OWNER_TAG, is_daemon_service,
};
use tasuki_core::fleet::{Change, LaunchType, Str};
use tasuki_core::transform::daemon_definition;

/// Creates a daemon service; one that exists is left as it is.
pub(super) async fn create(run: &Run<'_>, name: &Str, launch: LaunchType, agent: &AgentSpec) -> Result<(), Stop> {
    match run.find_service(name).await? {
        Some(service) if service.active => {
            return Err(Stop::Changed(format!("service {name} exists already, with {}", service.definition)));
        }
        Some(service) if service.running > 0 => {
            return Err(Stop::Changed(format!("the former service {name} is still being deleted")));
        }
        _ => {}
    }
    let definition = ensure(run, daemon_definition(agent), Vec::new(), Maker::Tasuki(None)).await?;
    let launch = match launch {
        LaunchType::External => ecs::LaunchType::External,
        _ => ecs::LaunchType::Ec2,
    };
    let constraints = constraints(name);
    let tag = ecs::Tag::builder().key(OWNER_TAG).value(&*run.action.monitor).build();
    let strategy = ecs::DeploymentConfiguration::builder().minimum_healthy_percent(0).maximum_percent(100).build();
    let output = run
        .journaled(api::CREATE_SERVICE, name, async |id| {
            let call = run
                .scope
                .call(api::CREATE_SERVICE, run.priority, || {
                    let call = run.scope.act.create_service().cluster(&*run.action.cluster).service_name(&**name);
                    call.task_definition(&*definition)
                        .scheduling_strategy(ecs::SchedulingStrategy::Daemon)
                        // Without it a cluster's default capacity provider strategy refuses DAEMON.
                        .launch_type(launch.clone())
                        .deployment_configuration(strategy.clone())
                        .set_placement_constraints(Some(constraints.clone()))
                        .client_token(id.to_string())
                        .enable_ecs_managed_tags(true)
                        .propagate_tags(ecs::PropagateTags::Service)
                        .tags(tag.clone())
                        .send()
                })
                .await;
            Ok(call?)
        })
        .await?;
    run.request_id(output.request_id());
    run.after(&*definition);
    if let Some(created) = output.service().and_then(read_service) {
        run.change(Change::Service(Box::new(created)));
    }
    Ok(())
}

/// Points a daemon service at another agent.
pub(super) async fn update(run: &Run<'_>, service: &Str, from: &Str, agent: &AgentSpec) -> Result<(), Stop> {
    still(&ours(run, service).await?, from)?;
    run.before(&**from);
    let to = ensure(run, daemon_definition(agent), Vec::new(), Maker::Tasuki(None)).await?;
    if to == *from {
        return Err(Stop::Changed(format!("it runs {to} already")));
    }
    still(&ours(run, service).await?, from)?;
    point(run, service, &to).await
}

/// Points a daemon service back at a definition that it ran before.
pub(super) async fn revert(run: &Run<'_>, service: &Str, from: &Str, to: &Str) -> Result<(), Stop> {
    still(&ours(run, service).await?, from)?;
    run.before(&**from);
    point(run, service, to).await
}

/// Deletes a daemon service with its tasks.
pub(super) async fn delete(run: &Run<'_>, service: &Str) -> Result<(), Stop> {
    let current = ours(run, service).await?;
    run.before(&*current.definition);
    let output = run
        .journaled(api::DELETE_SERVICE, service, async |_| {
            let call = run
                .scope
                .call(api::DELETE_SERVICE, run.priority, || {
                    run.scope.act.delete_service().cluster(&*run.action.cluster).service(&**service).force(true).send()
                })
                .await;
            Ok(call?)
        })
        .await?;
    run.request_id(output.request_id());
    if let Some(deleted) = output.service().and_then(read_service) {
        run.change(Change::Service(Box::new(deleted)));
    }
    Ok(())
}

/// Reads a daemon service again; one that Tasuki did not make is not touched.
async fn ours(run: &Run<'_>, service: &str) -> Result<tasuki_core::fleet::Service, Stop> {
    let current = run.service(service).await?;
    if !is_daemon_service(&current.name) || !current.tags.contains_key(OWNER_TAG) {
        let detail = format!("service {} has no tag {OWNER_TAG}: it is not Tasuki's", current.name);
        return Err(Stop::Blocked(Reason::NodeWithoutAgent, detail));
    }
    Ok(current)
}

/// Where the daemon of this service may run: never on a node without Linux; the serving one not
/// where it is held, the next one only where it was called.
fn constraints(service: &str) -> Vec<ecs::PlacementConstraint> {
    let turn = match service {
        DAEMON_SERVICE_NEXT | EXTERNAL_DAEMON_SERVICE_NEXT => format!("attribute:{NEXT} exists"),
        _ => format!("attribute:{HOLD} !exists"),
    };
    let member = |expression: String| {
        let constraint = ecs::PlacementConstraint::builder();
        constraint.r#type(ecs::PlacementConstraintType::MemberOf).expression(expression).build()
    };
    vec![member("attribute:ecs.os-type == linux".to_owned()), member(turn)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serving_daemon_yields_where_it_is_held_and_the_next_one_comes_where_it_is_called() {
        let expressions = |service: &str| -> Vec<String> {
            constraints(service).iter().map(|constraint| constraint.expression().unwrap().to_owned()).collect()
        };
        assert_eq!(expressions("tasuki"), ["attribute:ecs.os-type == linux", "attribute:tasuki.hold !exists"]);
        assert_eq!(expressions("tasuki-next"), ["attribute:ecs.os-type == linux", "attribute:tasuki.next exists"]);
        assert_eq!(expressions("tasuki-external-next")[1], "attribute:tasuki.next exists");
    }
}
