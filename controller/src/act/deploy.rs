//! Pointing a service at another definition: the one call that starts a deployment.

use super::outcome::Stop;
use super::run::Run;
use crate::observe::api::service as read_service;
use crate::scope::api;
use aws_sdk_ecs::operation::RequestId;
use tasuki_api::coverage::Reason;
use tasuki_core::fleet::{Change, RolloutState, Service};

/// Points `service` at `to`. Only cluster, service and taskDefinition are ever sent: what is not
/// sent keeps its value, and a desired count would fight autoscaling.
pub(super) async fn point(run: &Run<'_>, service: &str, to: &str) -> Result<(), Stop> {
    let output = run
        .journaled(api::UPDATE_SERVICE, to, async |_| {
            let call = run
                .scope
                .call(api::UPDATE_SERVICE, run.priority, || {
                    let call = run.scope.act.update_service().cluster(&*run.action.cluster);
                    call.service(service).task_definition(to).send()
                })
                .await;
            Ok(call?)
        })
        .await?;
    run.request_id(output.request_id());
    run.after(to);
    if let Some(updated) = output.service().and_then(read_service) {
        run.change(Change::Service(Box::new(updated)));
    }
    Ok(())
}

/// Fails unless the service still runs what the action was decided on.
pub(super) fn still(service: &Service, from: &str) -> Result<(), Stop> {
    match *service.definition == *from {
        true => Ok(()),
        false => Err(Stop::Changed(format!("service {} runs {} now, not {from}", service.name, service.definition))),
    }
}

/// Fails while a deployment runs: a new one would take its place, and it is not ours.
pub(super) fn settled(service: &Service) -> Result<(), Stop> {
    let moving = service.deployments.len() > 1
        || service.deployments.iter().any(|deployment| deployment.rollout == RolloutState::InProgress);
    match moving {
        false => Ok(()),
        true => Err(Stop::Blocked(
            Reason::DeploymentInProgress,
            format!("a deployment of {} is running; it is left alone", service.name),
        )),
    }
}
