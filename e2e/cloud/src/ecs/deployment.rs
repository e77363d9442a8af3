//! Deployments of a service: begin, complete, fail, roll back; and the service-deployment operations.
//!
//! ```text
//!  service deployment: IN_PROGRESS ─▶ SUCCESSFUL
//!                        │  └─ a newer one begins ─▶ STOPPED
//!                        └─ breaker with rollback, or StopServiceDeployment ─▶ ROLLBACK_IN_PROGRESS ─▶ ROLLBACK_SUCCESSFUL
//! ```

use serde::Deserialize;
use serde_json::{Value, json};

use super::service::{Deployment, MAX_RECORDS, Record, Revision, Rollout, Service};
use super::{Ecs, cluster_name, missing};
use crate::clock::{epoch, iso};
use crate::effect::Ctx;
use crate::error::{ApiError, ApiResult, input};

/// Begins a deployment of `definition_arn`: the new PRIMARY.
pub(super) fn begin(service: &mut Service, ctx: &mut Ctx<'_>, definition_arn: String, network: Option<Value>) {
    let revision = new_revision(service, ctx, definition_arn.clone(), network.clone());
    let sources = service.deployments.iter().map(|d| d.revision_arn.clone()).collect();
    for record in &mut service.records {
        if ["PENDING", "IN_PROGRESS", "ROLLBACK_IN_PROGRESS"].contains(&record.status) {
            record.status = "STOPPED";
            record.reason = Some("A newer deployment began.".into());
            record.finished = Some(ctx.now);
            record.updated = ctx.now;
        }
    }
    let id = push(service, ctx, definition_arn, revision.clone(), network, None);
    let path = format!("{}/{}", cluster_name(&service.cluster_arn), service.name);
    let unique = ctx.hex_id();
    let record = Record {
        arn: ctx.arn(format!("service-deployment/{path}/{}", &unique[..21])),
        deployment: id,
        status: "IN_PROGRESS",
        reason: None,
        sources,
        target: revision,
        rollback: None,
        created: ctx.now,
        updated: ctx.now,
        finished: None,
        stopped: None,
    };
    service.records.push_front(record);
    service.records.truncate(MAX_RECORDS);
}

fn new_revision(service: &mut Service, ctx: &mut Ctx<'_>, definition_arn: String, network: Option<Value>) -> String {
    let path = format!("{}/{}", cluster_name(&service.cluster_arn), service.name);
    let unique = ctx.decimal_id();
    let arn = ctx.arn(format!("service-revision/{path}/{unique}"));
    service.revisions.push(Revision { arn: arn.clone(), definition_arn, network, created: ctx.now });
    if service.revisions.len() > MAX_RECORDS {
        service.revisions.remove(0);
    }
    arn
}

fn push(
    service: &mut Service,
    ctx: &mut Ctx<'_>,
    definition_arn: String,
    revision_arn: String,
    network: Option<Value>,
    reason: Option<String>,
) -> String {
    let id = format!("ecs-svc/{}", ctx.decimal_id());
    let reason = reason.unwrap_or_else(|| format!("ECS deployment {id} in progress."));
    service.definition_arn.clone_from(&definition_arn);
    let deployment = Deployment {
        id: id.clone(),
        definition_arn,
        revision_arn,
        network,
        rollout: Rollout::InProgress,
        reason: reason.clone(),
        failed: 0,
        consecutive: 0,
        created: ctx.now,
        updated: ctx.now,
    };
    service.deployments.insert(0, deployment);
    service.retry_at = None;
    service.steady = false;
    announce(service, ctx, "INFO", "SERVICE_DEPLOYMENT_IN_PROGRESS", &id, &reason);
    id
}

/// The PRIMARY has arrived: older deployments go.
pub(super) fn complete(service: &mut Service, ctx: &mut Ctx<'_>) {
    service.deployments.truncate(1);
    let Some(primary) = service.deployments.first_mut() else { return };
    primary.rollout = Rollout::Completed;
    primary.updated = ctx.now;
    primary.reason = format!("ECS deployment {} completed.", primary.id);
    let (id, reason) = (primary.id.clone(), primary.reason.clone());
    if let Some(record) = service.record_mut(&id) {
        record.status = if record.rollback.is_some() { "ROLLBACK_SUCCESSFUL" } else { "SUCCESSFUL" };
        record.finished = Some(ctx.now);
        record.updated = ctx.now;
    }
    service.say(ctx, format!("(service {}) (deployment {id}) deployment completed.", service.name));
    announce(service, ctx, "INFO", "SERVICE_DEPLOYMENT_COMPLETED", &id, &reason);
}

/// The circuit breaker trips.
pub(super) fn fail(service: &mut Service, ctx: &mut Ctx<'_>) {
    let reason = "ECS deployment circuit breaker: tasks failed to start.";
    let Some(primary) = service.deployments.first_mut() else { return };
    primary.rollout = Rollout::Failed;
    primary.reason = reason.into();
    primary.updated = ctx.now;
    let id = primary.id.clone();
    service.say(ctx, format!("(service {}) (deployment {id}) deployment failed: tasks failed to start.", service.name));
    announce(service, ctx, "ERROR", "SERVICE_DEPLOYMENT_FAILED", &id, reason);
    if service.breaker == Some(true) && roll_back(service, ctx, "ECS deployment circuit breaker", reason) {
        return;
    }
    if let Some(record) = service.record_mut(&id) {
        record.status = "STOPPED";
        record.reason = Some(reason.into());
        record.finished = Some(ctx.now);
        record.updated = ctx.now;
    }
}

/// Brings back the last revision that was deployed successfully. False when there is none.
pub(super) fn roll_back(service: &mut Service, ctx: &mut Ctx<'_>, who: &str, why: &str) -> bool {
    let Some(failed) = service.deployments.first().cloned() else { return false };
    let good = service.records.iter().filter(|r| r.deployment != failed.id).find_map(|r| match r.status {
        "SUCCESSFUL" => Some((r.target.clone(), r.deployment.clone())),
        "ROLLBACK_SUCCESSFUL" => r.rollback.as_ref().map(|(target, ..)| (target.clone(), r.deployment.clone())),
        _ => None,
    });
    let Some((target, old_id)) = good else { return false };
    let Some(revision) = service.revisions.iter().find(|r| r.arn == target).cloned() else { return false };
    if let Some(primary) = service.deployments.first_mut() {
        primary.rollout = Rollout::Failed;
        primary.updated = ctx.now;
    }
    let reason = format!("{who}: rolling back to deploymentId {old_id}.");
    service.say(ctx, format!("(service {}) rolling back to deployment {old_id}.", service.name));
    let id = push(service, ctx, revision.definition_arn, target.clone(), revision.network, Some(reason.clone()));
    let now = ctx.now;
    if let Some(record) = service.record_mut(&failed.id) {
        record.deployment = id;
        record.status = "ROLLBACK_IN_PROGRESS";
        record.reason = Some(why.to_owned());
        record.rollback = Some((target, reason, now));
        record.updated = now;
    }
    true
}

/// An `ECS Deployment State Change`: no cluster in the detail, the service in `resources`.
fn announce(service: &Service, ctx: &mut Ctx<'_>, kind: &str, name: &str, deployment: &str, reason: &str) {
    let detail = json!({
        "eventType": kind, "eventName": name, "deploymentId": deployment, "updatedAt": iso(ctx.now), "reason": reason,
    });
    ctx.emit("ECS Deployment State Change", vec![service.arn.clone()], detail);
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RecordInput {
    cluster: Option<String>,
    service: Option<String>,
    #[serde(default)]
    status: Vec<String>,
    #[serde(default)]
    service_deployment_arns: Vec<String>,
    #[serde(default)]
    service_revision_arns: Vec<String>,
    service_deployment_arn: Option<String>,
    stop_type: Option<String>,
    next_token: Option<String>,
    max_results: Option<usize>,
}

pub(super) fn list(ecs: &mut Ecs, value: Value) -> ApiResult {
    use base64::Engine;
    let request: RecordInput = input(value)?;
    let reference = request.service.as_deref().unwrap_or_default();
    let cluster = ecs.cluster(request.cluster.as_deref().or_else(|| cluster_in(reference)))?.arn.clone();
    let service = ecs.service_of(&cluster, reference)?;
    let fits = |r: &&Record| request.status.is_empty() || request.status.iter().any(|s| s == r.status);
    let all: Vec<Value> = service.records.iter().filter(fits).map(|r| brief(service, r)).collect();
    let engine = base64::engine::general_purpose::STANDARD;
    let from: usize = match &request.next_token {
        None => 0,
        Some(token) => {
            let text = engine.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            text.and_then(|t| t.parse().ok()).ok_or_else(|| ApiError::invalid("Invalid token"))?
        }
    };
    let size = request.max_results.unwrap_or(20).clamp(1, 100);
    let mut answer = json!({"serviceDeployments": all.iter().skip(from).take(size).collect::<Vec<_>>()});
    if from.saturating_add(size) < all.len() {
        answer["nextToken"] = engine.encode((from + size).to_string()).into();
    }
    Ok(answer)
}

/// The cluster part of a service ARN.
pub(super) fn cluster_in(service: &str) -> Option<&str> {
    service.rsplit_once(":service/")?.1.split('/').next()
}

fn brief(service: &Service, record: &Record) -> Value {
    let mut view = json!({
        "serviceDeploymentArn": record.arn,
        "serviceArn": service.arn,
        "clusterArn": service.cluster_arn,
        "createdAt": epoch(record.created),
        "startedAt": epoch(record.created),
        "targetServiceRevisionArn": record.target,
        "status": record.status,
    });
    if let Some(reason) = &record.reason {
        view["statusReason"] = reason.clone().into();
    }
    if let Some(at) = record.finished {
        view["finishedAt"] = epoch(at);
    }
    view
}

pub(super) fn describe(ecs: &mut Ecs, value: Value) -> ApiResult {
    let request: RecordInput = input(value)?;
    if request.service_deployment_arns.is_empty() || request.service_deployment_arns.len() > 20 {
        return Err(ApiError::invalid("serviceDeploymentArns must have 1 to 20 items."));
    }
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for arn in &request.service_deployment_arns {
        let pair = ecs.services.values().find_map(|s| Some((s, s.records.iter().find(|r| r.arn == *arn)?)));
        match pair {
            Some((service, record)) => found.push(ecs.record_view(service, record)),
            None => failures.push(missing(arn)),
        }
    }
    Ok(json!({"serviceDeployments": found, "failures": failures}))
}

pub(super) fn stop(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: RecordInput = input(value)?;
    let arn = request.service_deployment_arn.unwrap_or_default();
    let unknown =
        || ApiError::new("ServiceDeploymentNotFoundException", format!("Service deployment {arn} not found."));
    let service = ecs.services.values_mut().find(|s| s.records.iter().any(|r| r.arn == arn)).ok_or_else(unknown)?;
    let record = service.records.iter_mut().find(|r| r.arn == arn).ok_or_else(unknown)?;
    if !["PENDING", "IN_PROGRESS"].contains(&record.status) {
        let message = format!("Service deployment in status {} cannot be stopped.", record.status);
        return Err(ApiError::new("ConflictException", message));
    }
    if !["ROLLBACK", "ABORT"].contains(&request.stop_type.as_deref().unwrap_or("ROLLBACK")) {
        return Err(ApiError::invalid("stopType must be ROLLBACK or ABORT."));
    }
    record.stopped = Some(ctx.now);
    let name = service.arn.clone();
    let why = "Deployment stopped by StopServiceDeployment.";
    if request.stop_type.as_deref() == Some("ABORT") {
        record.status = "STOPPED";
        record.finished = Some(ctx.now);
        if let Some(primary) = service.deployments.first_mut() {
            primary.rollout = Rollout::Failed;
        }
    } else if !roll_back(service, ctx, "StopServiceDeployment", why) {
        return Err(ApiError::new("ConflictException", "There is no earlier successful deployment to roll back to."));
    }
    ecs.wake_service(ctx, &name);
    Ok(json!({"serviceDeploymentArn": arn}))
}

pub(super) fn revisions(ecs: &mut Ecs, value: Value) -> ApiResult {
    let request: RecordInput = input(value)?;
    if request.service_revision_arns.is_empty() || request.service_revision_arns.len() > 20 {
        return Err(ApiError::invalid("serviceRevisionArns must have 1 to 20 items."));
    }
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for arn in &request.service_revision_arns {
        let pair = ecs.services.values().find_map(|s| Some((s, s.revisions.iter().find(|r| r.arn == *arn)?)));
        match pair {
            Some((service, revision)) => found.push(ecs.revision_view(service, revision)),
            None => failures.push(missing(arn)),
        }
    }
    Ok(json!({"serviceRevisions": found, "failures": failures}))
}

impl Ecs {
    fn record_view(&self, service: &Service, record: &Record) -> Value {
        let current = service.deployments.iter().find(|d| d.id == record.deployment);
        let counts = |revision: &str| {
            let id = service.deployments.iter().find(|d| d.revision_arn == revision).map(|d| d.id.as_str());
            let tasks = || self.tasks_of(service).filter(|t| t.started_by.as_deref() == id && t.is_live());
            let running = tasks().filter(|t| t.is_running()).count();
            json!({"arn": revision, "requestedTaskCount": tasks().count(), "runningTaskCount": running,
                   "pendingTaskCount": tasks().count() - running})
        };
        let mut view = brief(service, record);
        if let Some(view) = view.as_object_mut() {
            view.shift_remove("targetServiceRevisionArn");
        }
        view["updatedAt"] = epoch(record.updated);
        view["sourceServiceRevisions"] = record.sources.iter().map(|r| counts(r)).collect();
        view["targetServiceRevision"] = counts(&record.target);
        view["deploymentConfiguration"] = super::service_view::configuration(service);
        if let Some((target, reason, at)) = &record.rollback {
            view["rollback"] = json!({"reason": reason, "startedAt": epoch(*at), "serviceRevisionArn": target});
        }
        if let Some(at) = record.stopped {
            view["stoppedAt"] = epoch(at);
        }
        if service.breaker.is_some() {
            let triggered = record.reason.as_deref().is_some_and(|r| r.contains("circuit breaker"));
            let desired = self.desired(service);
            view["deploymentCircuitBreaker"] = json!({
                "status": if triggered { "TRIGGERED" } else if record.finished.is_some() { "MONITORING_COMPLETE" } else { "MONITORING" },
                "failureCount": current.map_or(0, |d| d.failed),
                "threshold": service.threshold(desired),
            });
        }
        view
    }

    fn revision_view(&self, service: &Service, revision: &Revision) -> Value {
        let images: Vec<Value> = self
            .definition(&revision.definition_arn)
            .map(|definition| {
                let digest = |name: &str| {
                    let mut tasks = self.tasks_of(service).filter(|t| t.definition_arn == revision.definition_arn);
                    tasks.find_map(|t| t.containers.iter().find(|c| c.name == name)?.image_digest.clone())
                };
                definition
                    .containers()
                    .map(|c| {
                        let name = c.get("name").and_then(Value::as_str).unwrap_or_default();
                        super::without_nulls(
                            json!({"containerName": name, "image": c.get("image"), "imageDigest": digest(name)}),
                        )
                    })
                    .collect()
            })
            .unwrap_or_default();
        super::without_nulls(json!({
            "serviceRevisionArn": revision.arn,
            "serviceArn": service.arn,
            "clusterArn": service.cluster_arn,
            "taskDefinition": revision.definition_arn,
            "launchType": service.launch_type.as_str(),
            "networkConfiguration": revision.network,
            "containerImages": images,
            "guardDutyEnabled": false,
            "createdAt": epoch(revision.created),
        }))
    }
}
