//! Taking a deployment back that made a service worse.

use super::deploy::point;
use super::outcome::Stop;
use super::run::Run;
use super::sidecar::without_sidecar;
use crate::scope::{Kind, api};
use aws_sdk_ecs::operation::RequestId;
use aws_sdk_ecs::types::{ServiceDeploymentStatus, StopServiceDeploymentStopType};
use tasuki_core::fleet::{Service, Str};

/// Rolls the deployment back: by ECS itself while it runs, else by a new deployment of the former
/// definition. A deployment that is not the newest any more is left alone.
pub(super) async fn roll_back(run: &Run<'_>, service: &Str, deployment: &Str, definition: &Str) -> Result<(), Stop> {
    let current = run.service(service).await?;
    let newest = current.deployments.iter().find(|candidate| candidate.primary);
    if !newest.is_some_and(|newest| newest.id == *deployment && newest.definition == *definition) {
        return Err(Stop::Changed(format!("deployment {deployment} is not the newest of {} any more", current.name)));
    }
    run.before(&**definition);
    if stop(run, service).await? {
        run.after("rolled back by ECS");
        run.find_service(service).await?;
        return Ok(());
    }
    let former = former(run, &current, definition).await?;
    point(run, service, &former).await
}

/// Asks ECS to roll the running deployment back; false where none runs or ECS cannot.
async fn stop(run: &Run<'_>, service: &Str) -> Result<bool, Stop> {
    let listed = run
        .scope
        .call(api::LIST_DEPLOYMENTS, run.priority, || {
            let call = run.scope.read.list_service_deployments().cluster(&*run.action.cluster).service(&**service);
            call.status(ServiceDeploymentStatus::Pending).status(ServiceDeploymentStatus::InProgress).send()
        })
        .await;
    let listed = match listed {
        Ok(listed) => listed,
        Err(error) if matches!(error.kind, Kind::Refused | Kind::Missing | Kind::Denied) => {
            tracing::info!(%service, error = %error.detail(), "running deployments cannot be listed; the former definition is deployed");
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    let newest = listed.service_deployments().iter().max_by_key(|running| running.created_at().map(|at| at.secs()));
    let Some(arn) = newest.and_then(|running| running.service_deployment_arn()) else { return Ok(false) };
    let answer = run
        .journaled(api::STOP_DEPLOYMENT, arn, async |_| {
            Ok(run
                .scope
                .call(api::STOP_DEPLOYMENT, run.priority, || {
                    let call = run.scope.act.stop_service_deployment().service_deployment_arn(arn);
                    call.stop_type(StopServiceDeploymentStopType::Rollback).send()
                })
                .await)
        })
        .await?;
    match answer {
        Ok(output) => {
            run.request_id(output.request_id());
            Ok(true)
        }
        Err(error) if matches!(error.kind, Kind::Refused | Kind::Missing | Kind::Denied) => {
            tracing::info!(%service, error = %error.detail(), "ECS does not roll back; the former definition is deployed");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// What the service ran before: what another deployment of it still runs, or what the injected
/// definition was made from.
async fn former(run: &Run<'_>, service: &Service, definition: &str) -> Result<Str, Stop> {
    let others = service.deployments.iter().filter(|other| !other.primary && *other.definition != *definition);
    if let Some(other) = others.max_by_key(|other| other.running) {
        return Ok(other.definition.clone());
    }
    without_sidecar(run, definition).await
}
