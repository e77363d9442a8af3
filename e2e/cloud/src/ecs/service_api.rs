//! CreateService, UpdateService, DeleteService, DescribeServices, ListServices.

use std::collections::VecDeque;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::place::Constraints;
use super::service::{Controller, Scheduling, Service};
use super::tags::{self, Tag};
use super::{Ecs, Page, cluster_name, deployment, includes, missing, short, task_api};
use crate::effect::Ctx;
use crate::error::{ApiError, ApiResult, input};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceInput {
    cluster: Option<String>,
    service_name: Option<String>,
    service: Option<String>,
    task_definition: Option<String>,
    desired_count: Option<i64>,
    launch_type: Option<String>,
    capacity_provider_strategy: Option<Value>,
    scheduling_strategy: Option<String>,
    deployment_controller: Option<ControllerInput>,
    deployment_configuration: Option<ConfigurationInput>,
    network_configuration: Option<Value>,
    placement_constraints: Option<Value>,
    placement_strategy: Option<Value>,
    load_balancers: Option<Value>,
    service_registries: Option<Value>,
    health_check_grace_period_seconds: Option<Value>,
    platform_version: Option<String>,
    volume_configurations: Option<Value>,
    tags: Option<Vec<Tag>>,
    propagate_tags: Option<String>,
    #[serde(rename = "enableECSManagedTags")]
    managed_tags: Option<bool>,
    enable_execute_command: Option<bool>,
    #[serde(default)]
    force_new_deployment: bool,
    #[serde(default)]
    force: bool,
    client_token: Option<String>,
    #[serde(default)]
    services: Vec<String>,
    #[serde(default)]
    include: Vec<String>,
    #[serde(flatten)]
    page: Page,
}

#[derive(Debug, Deserialize)]
struct ControllerInput {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigurationInput {
    minimum_healthy_percent: Option<usize>,
    maximum_percent: Option<usize>,
    deployment_circuit_breaker: Option<BreakerInput>,
}

#[derive(Debug, Deserialize)]
struct BreakerInput {
    enable: bool,
    rollback: bool,
}

impl Ecs {
    /// The service that is not INACTIVE, by name or ARN.
    pub(super) fn service_of(&self, cluster_arn: &str, reference: &str) -> ApiResult<&Service> {
        let found = self.any_service(cluster_arn, reference).filter(|s| s.is_active());
        found.ok_or_else(|| ApiError::new("ServiceNotFoundException", "Service not found."))
    }

    pub(super) fn any_service(&self, cluster_arn: &str, reference: &str) -> Option<&Service> {
        // The newest one: an INACTIVE predecessor of the same name has the same ARN and is replaced on create.
        let services = cluster_arn.replacen(":cluster/", ":service/", 1);
        self.services.get(&format!("{services}/{}", short(reference)))
    }
}

fn percents(scheduling: Scheduling, given: &ConfigurationInput, old: (usize, usize)) -> ApiResult<(usize, usize)> {
    let minimum = given.minimum_healthy_percent.unwrap_or(old.0);
    let maximum = given.maximum_percent.unwrap_or(old.1);
    if scheduling == Scheduling::Daemon && maximum != 100 {
        return Err(ApiError::invalid("The daemon scheduling strategy requires maximumPercent to be 100."));
    }
    if minimum > 100 && scheduling == Scheduling::Daemon || maximum < 100 && minimum >= maximum {
        return Err(ApiError::invalid(
            "Both maximumPercent and minimumHealthyPercent cannot be 100 or less as this will block deployments.",
        ));
    }
    if scheduling == Scheduling::Replica && minimum >= 100 && maximum <= 100 {
        return Err(ApiError::invalid(
            "Both maximumPercent and minimumHealthyPercent cannot be 100 as this will block deployments.",
        ));
    }
    Ok((minimum, maximum))
}

pub(super) fn create(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: ServiceInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.clone();
    let name = request.service_name.clone().unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 255 || !name.chars().all(plain) {
        return Err(ApiError::invalid("Invalid service name. Up to 255 letters, numbers, hyphens and underscores."));
    }
    let token = request.client_token.as_ref().map(|t| format!("service/{}/{t}", cluster.name));
    if let Some(answer) = token.as_ref().and_then(|t| ecs.tokens.get(t)) {
        return Ok(answer.clone());
    }
    if ecs.any_service(&cluster.arn, &name).is_some_and(|s| s.is_active()) {
        return Err(ApiError::invalid("Creation of service was not idempotent."));
    }
    let scheduling = match request.scheduling_strategy.as_deref() {
        None | Some("REPLICA") => Scheduling::Replica,
        Some("DAEMON") => Scheduling::Daemon,
        Some(other) => return Err(ApiError::invalid(format!("Unknown scheduling strategy '{other}'."))),
    };
    let controller = match request.deployment_controller.as_ref().map(|c| c.kind.as_str()) {
        None | Some("ECS") => Controller::Ecs,
        Some("CODE_DEPLOY") => Controller::CodeDeploy,
        Some("EXTERNAL") => Controller::External,
        Some(other) => return Err(ApiError::invalid(format!("Unknown deployment controller '{other}'."))),
    };
    let strategy = request.capacity_provider_strategy.as_ref();
    if scheduling == Scheduling::Daemon {
        let has_default = cluster.default_strategy.as_array().is_some_and(|s| !s.is_empty());
        if strategy.is_some_and(|s| s.as_array().is_some_and(|l| !l.is_empty()))
            || (has_default && request.launch_type.is_none())
        {
            return Err(ApiError::invalid(
                "Specifying a capacity provider strategy is not supported when you create a service using the DAEMON scheduling strategy.",
            ));
        }
        if request.launch_type.as_deref() == Some("FARGATE") {
            return Err(ApiError::invalid(
                "The daemon scheduling strategy is not supported for the FARGATE launch type.",
            ));
        }
        if controller != Controller::Ecs {
            return Err(ApiError::invalid(format!(
                "The daemon scheduling strategy is not supported with the {} deployment controller.",
                controller.as_str()
            )));
        }
        if request.desired_count.is_some() {
            return Err(ApiError::invalid(
                "The daemon scheduling strategy does not support a desired count for services. Remove the desired count value and try again.",
            ));
        }
        if request.volume_configurations.is_some() {
            return Err(ApiError::invalid(
                "volumeConfigurations is not supported with the DAEMON scheduling strategy.",
            ));
        }
    }
    let (kind, provider) = task_api::launch_type(request.launch_type.as_deref(), strategy, &cluster.default_strategy)?;
    let definition_arn = match (&request.task_definition, controller) {
        (Some(reference), _) => {
            let definition = ecs.usable_definition(reference)?;
            task_api::check_network(definition, kind, request.network_configuration.as_ref())?;
            definition.arn.clone()
        }
        (None, Controller::External) => String::new(),
        (None, _) => return Err(ApiError::invalid("TaskDefinition can not be blank.")),
    };
    let defaults = if scheduling == Scheduling::Daemon { (0, 100) } else { (100, 200) };
    let configuration = request.deployment_configuration.unwrap_or_default();
    let (minimum, maximum) = percents(scheduling, &configuration, defaults)?;
    let breaker = configuration.deployment_circuit_breaker.filter(|b| b.enable).map(|b| b.rollback);
    let arn = ctx.arn(format!("service/{}/{name}", cluster.name));
    let mut kept = Map::new();
    for (member, value) in [
        ("loadBalancers", request.load_balancers),
        ("serviceRegistries", request.service_registries),
        ("placementConstraints", request.placement_constraints.clone()),
        ("placementStrategy", request.placement_strategy),
        ("healthCheckGracePeriodSeconds", request.health_check_grace_period_seconds),
        ("capacityProviderStrategy", request.capacity_provider_strategy),
        ("platformVersion", request.platform_version.map(Value::from)),
        ("deploymentController", request.deployment_controller.map(|c| c.kind.into())),
    ] {
        kept.extend(value.filter(|v| !v.is_null()).map(|v| (member.to_owned(), v)));
    }
    let desired = usize::try_from(request.desired_count.unwrap_or(1))
        .map_err(|_| ApiError::invalid("desiredCount must not be negative."))?;
    if desired > 5_000 {
        return Err(ApiError::invalid("desiredCount exceeds the limit of 5000."));
    }
    let mut service = Service {
        arn: arn.clone(),
        name,
        cluster_arn: cluster.arn.clone(),
        status: "ACTIVE",
        scheduling,
        desired,
        launch_type: kind,
        provider,
        controller,
        constraints: Constraints::parse(request.placement_constraints.as_ref())?,
        minimum,
        maximum,
        breaker,
        definition_arn: definition_arn.clone(),
        kept,
        tags: tags::checked(request.tags)?,
        propagate: request.propagate_tags.unwrap_or_else(|| "NONE".into()),
        managed_tags: request.managed_tags.unwrap_or(false),
        exec: request.enable_execute_command.unwrap_or(false),
        deployments: Vec::new(),
        records: VecDeque::new(),
        revisions: Vec::new(),
        events: VecDeque::new(),
        created: ctx.now,
        created_by: ctx.caller.to_owned(),
        retry_at: None,
        woken: false,
        steady: false,
        waiting: false,
    };
    if controller != Controller::External {
        deployment::begin(&mut service, ctx, definition_arn, request.network_configuration);
    }
    let answer = json!({"service": ecs.service_view(&service, true)});
    ecs.services.insert(arn.clone(), service);
    ecs.wake_service(ctx, &arn);
    ecs.remember_token(token, &answer);
    Ok(answer)
}

pub(super) fn update(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: ServiceInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.clone();
    let reference = request.service.clone().unwrap_or_default();
    let service = ecs
        .any_service(&cluster.arn, &reference)
        .ok_or_else(|| ApiError::new("ServiceNotFoundException", "Service not found."))?
        .clone();
    if service.status != "ACTIVE" {
        return Err(ApiError::new("ServiceNotActiveException", "Service was not ACTIVE."));
    }
    let wants_rollout = request.task_definition.is_some()
        || request.network_configuration.is_some()
        || request.platform_version.is_some()
        || request.load_balancers.is_some()
        || request.force_new_deployment;
    match service.controller {
        Controller::CodeDeploy if request.task_definition.is_some() => {
            return Err(ApiError::invalid(
                "Unable to update task definition on services with a CODE_DEPLOY deployment controller. Use AWS CodeDeploy to trigger a new deployment.",
            ));
        }
        Controller::CodeDeploy if wants_rollout => {
            return Err(ApiError::invalid(
                "Unable to force a new deployment on services with a CODE_DEPLOY deployment controller. Use AWS CodeDeploy to trigger a new deployment.",
            ));
        }
        Controller::External if wants_rollout => {
            return Err(ApiError::invalid(
                "Unable to update this service with an EXTERNAL deployment controller. Use a task set to trigger a new deployment.",
            ));
        }
        _ => {}
    }
    if service.scheduling == Scheduling::Daemon && request.desired_count.is_some() {
        return Err(ApiError::invalid(
            "The daemon scheduling strategy does not support a desired count for services. Remove the desired count value and try again.",
        ));
    }
    let current = service.primary().cloned();
    let network = request.network_configuration.clone().or_else(|| current.as_ref().and_then(|c| c.network.clone()));
    let definition_arn = match &request.task_definition {
        Some(reference) => {
            let definition = ecs.usable_definition(reference)?;
            task_api::check_network(definition, service.launch_type, network.as_ref())?;
            definition.arn.clone()
        }
        None => service.definition_arn.clone(),
    };
    let configuration = request.deployment_configuration.unwrap_or_default();
    let (minimum, maximum) = percents(service.scheduling, &configuration, (service.minimum, service.maximum))?;
    let constraints = request.placement_constraints.as_ref().map(|c| Constraints::parse(Some(c))).transpose()?;
    let desired = request
        .desired_count
        .map(|count| usize::try_from(count).map_err(|_| ApiError::invalid("desiredCount must not be negative.")))
        .transpose()?;
    let changed = current.as_ref().is_some_and(|c| c.definition_arn != definition_arn || c.network != network);
    let Some(service) = ecs.services.get_mut(&service.arn) else {
        return Err(ApiError::new("ServiceNotFoundException", "Service not found."));
    };
    (service.minimum, service.maximum) = (minimum, maximum);
    if let Some(breaker) = configuration.deployment_circuit_breaker {
        service.breaker = breaker.enable.then_some(breaker.rollback);
    }
    if let Some(constraints) = constraints {
        service.constraints = constraints;
    }
    service.desired = desired.unwrap_or(service.desired);
    service.propagate = request.propagate_tags.unwrap_or_else(|| service.propagate.clone());
    service.managed_tags = request.managed_tags.unwrap_or(service.managed_tags);
    service.exec = request.enable_execute_command.unwrap_or(service.exec);
    for (member, value) in [
        ("loadBalancers", request.load_balancers),
        ("serviceRegistries", request.service_registries),
        ("placementConstraints", request.placement_constraints),
        ("placementStrategy", request.placement_strategy),
        ("healthCheckGracePeriodSeconds", request.health_check_grace_period_seconds),
        ("platformVersion", request.platform_version.map(Value::from)),
    ] {
        service.kept.extend(value.filter(|v| !v.is_null()).map(|v| (member.to_owned(), v)));
    }
    if service.controller == Controller::Ecs && (changed || request.force_new_deployment) {
        deployment::begin(service, ctx, definition_arn, network);
    }
    let arn = service.arn.clone();
    ecs.wake_service(ctx, &arn);
    let view = ecs.services.get(&arn).map(|s| ecs.service_view(s, true));
    Ok(json!({"service": view}))
}

pub(super) fn delete(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: ServiceInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.arn.clone();
    let found = ecs
        .any_service(&cluster, request.service.as_deref().unwrap_or_default())
        .ok_or_else(|| ApiError::new("ServiceNotFoundException", "Service not found."))?;
    let arn = found.arn.clone();
    if found.status != "ACTIVE" {
        return Ok(json!({"service": ecs.service_view(found, true)}));
    }
    if found.scheduling == Scheduling::Replica && found.desired > 0 && !request.force {
        return Err(ApiError::invalid("The service cannot be stopped while it is scaled above 0."));
    }
    if let Some(service) = ecs.services.get_mut(&arn) {
        service.status = "DRAINING";
        service.desired = 0;
    }
    ecs.wake_service(ctx, &arn);
    Ok(json!({"service": ecs.services.get(&arn).map(|s| ecs.service_view(s, true))}))
}

pub(super) fn describe(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: ServiceInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.clone();
    if request.services.is_empty() {
        return Err(ApiError::invalid("Services cannot be empty."));
    }
    if request.services.len() > 10 {
        return Err(ApiError::invalid("Too many services. Maximum is 10."));
    }
    let with_tags = includes(&request.include, "TAGS");
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for reference in &request.services {
        match ecs.any_service(&cluster.arn, reference) {
            Some(service) => found.push(ecs.service_view(service, with_tags)),
            None => {
                failures.push(missing(&ctx.arn(format!("service/{}/{}", cluster_name(&cluster.arn), short(reference)))))
            }
        }
    }
    Ok(json!({"services": found, "failures": failures}))
}

pub(super) fn list(ecs: &mut Ecs, value: Value) -> ApiResult {
    let request: ServiceInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.arn.clone();
    let wanted = |s: &&Service| {
        s.cluster_arn == cluster
            && s.is_active()
            && request.launch_type.as_ref().is_none_or(|l| l == s.launch_type.as_str())
            && match request.scheduling_strategy.as_deref() {
                Some("DAEMON") => s.scheduling == Scheduling::Daemon,
                Some("REPLICA") => s.scheduling == Scheduling::Replica,
                _ => true,
            }
    };
    let arns = ecs.services.values().filter(wanted).map(|s| s.arn.clone()).collect();
    request.page.cut("serviceArns", arns, 10, 100)
}
