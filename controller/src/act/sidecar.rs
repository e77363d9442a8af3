//! The sidecar goes into a service, and out of it.
//!
//! ```text
//!  read service ─▶ describe its definition ─▶ same content registered? ─▶ read service again ─▶ UpdateService
//!   (as decided?)                              no: RegisterTaskDefinition   (as decided?)
//! ```
//! A process killed at any arrow starts again from the left and finds what it left behind.

use super::definition::{Maker, ensure, existing};
use super::deploy::{point, settled, still};
use super::outcome::Stop;
use super::raw;
use super::run::Run;
use crate::observe::reads::DESCRIBE_BATCH;
use crate::scope::api;
use tasuki_api::coverage::Reason;
use tasuki_core::action::SidecarSpec;
use tasuki_core::fleet::{DeploymentController, Service, Str, Strategy};
use tasuki_core::transform::{self, content_hash, project};

/// Registers the injected definition and points the service at it.
pub(super) async fn inject(run: &Run<'_>, service: &Str, from: &Str, spec: &SidecarSpec) -> Result<(), Stop> {
    ready(&run.service(service).await?, from)?;
    run.before(&**from);
    let described = existing(run, from).await?;
    // A definition of ours is replaced by one from the same source.
    let mark = project(&described.definition, None).and_then(|projected| projected.sidecar);
    let source = mark.and_then(|mark| mark.source).unwrap_or_else(|| from.clone());
    let injected = transform::inject(&described.definition, spec, &source)?;
    let to = ensure(run, injected, described.tags, Maker::Tasuki(Some(spec))).await?;
    unprotected(run, service).await?;
    // Registering may have waited for its budget: what was true then need not be true now.
    ready(&run.service(service).await?, from)?;
    point(run, service, &to).await
}

/// Points the service back at a definition without the sidecar: the one that it was made from, or a
/// fresh one where that cannot be used any more.
pub(super) async fn uninject(run: &Run<'_>, service: &Str, from: &Str) -> Result<(), Stop> {
    let current = run.service(service).await?;
    still(&current, from)?;
    settled(&current)?;
    run.before(&**from);
    let to = without_sidecar(run, from).await?;
    let current = run.service(service).await?;
    still(&current, from)?;
    settled(&current)?;
    point(run, service, &to).await
}

/// The definition that `injected` was made from, registered afresh where it is gone or INACTIVE.
pub(super) async fn without_sidecar(run: &Run<'_>, injected: &str) -> Result<Str, Stop> {
    let described = existing(run, injected).await?;
    let mark = project(&described.definition, None).and_then(|projected| projected.sidecar);
    let Some(mark) = mark else { return Err(Stop::Changed(format!("{injected} carries no sidecar"))) };
    let Some(source) = &mark.source else {
        return Err(Stop::Changed(format!(
            "the owner's pipeline put the sidecar into {injected}; it is not Tasuki's to take out"
        )));
    };
    if let Some(original) = raw::describe(&run.scope, run.priority, source).await?
        && original.active()
        && mark.source_hash.as_deref() == Some(content_hash(&original.definition).as_str())
    {
        return Ok(original.arn());
    }
    let stripped = transform::strip(&described.definition)?;
    ensure(run, stripped, described.tags, Maker::Owner).await
}

/// Everything that a deployment of ours requires of a service, read again.
fn ready(service: &Service, from: &str) -> Result<(), Stop> {
    still(service, from)?;
    let blocked = |reason, detail: &str| Err(Stop::Blocked(reason, format!("service {}: {detail}", service.name)));
    match () {
        () if service.controller != DeploymentController::Ecs => {
            blocked(Reason::UnsupportedController, "its deployment controller is not ECS")
        }
        () if service.express => blocked(Reason::ManagedByExpress, "it is managed by ECS Express Mode"),
        () if service.has_hooks => blocked(Reason::HasLifecycleHooks, "its deployments run lifecycle hooks"),
        () if service.strategy != Strategy::Rolling => {
            blocked(Reason::UnsupportedController, "its deployments shift traffic")
        }
        () if service.minimum_healthy == 0 || service.maximum <= 100 => {
            blocked(Reason::WouldInterrupt, "its percentages let a deployment interrupt it")
        }
        () => settled(service),
    }
}

/// Fails while a task of the service is under scale-in protection: the deployment could not end.
async fn unprotected(run: &Run<'_>, service: &Str) -> Result<(), Stop> {
    let cluster = &run.action.cluster;
    let tasks = run.reads().list_tasks_of(cluster, service).await?;
    for batch in tasks.chunks(DESCRIBE_BATCH) {
        let names: Vec<String> = batch.iter().map(|task| task.to_string()).collect();
        let answer = run
            .scope
            .call(api::GET_PROTECTION, run.priority, || {
                run.scope.read.get_task_protection().cluster(&**cluster).set_tasks(Some(names.clone())).send()
            })
            .await;
        let output = match answer {
            Ok(output) => output,
            // An endpoint without this API, such as a local cloud, holds no protection.
            Err(error) if matches!(error.code.as_deref(), Some("UnknownOperationException" | "InvalidAction")) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(task) = output.protected_tasks().iter().find(|task| task.protection_enabled()) {
            let detail = format!("task {} is under scale-in protection", task.task_arn().unwrap_or_default());
            return Err(Stop::Blocked(Reason::ProtectedTasks, detail));
        }
    }
    Ok(())
}
