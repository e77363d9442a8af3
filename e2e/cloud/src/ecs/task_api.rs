//! RunTask, StartTask, StopTask, ListTasks, DescribeTasks.

use serde::Deserialize;
use serde_json::{Value, json};

use super::lifecycle::Order;
use super::place::Constraints;
use super::tags::{self, Tag};
use super::task::Form;
use super::{Ecs, Page, Task, includes, missing, short};
use crate::effect::Ctx;
use crate::error::{ApiError, ApiResult, input};
use crate::runtime::LaunchType;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RunInput {
    cluster: Option<String>,
    task_definition: String,
    count: Option<usize>,
    launch_type: Option<String>,
    capacity_provider_strategy: Option<Value>,
    network_configuration: Option<Value>,
    overrides: Option<Value>,
    group: Option<String>,
    started_by: Option<String>,
    placement_constraints: Option<Value>,
    tags: Option<Vec<Tag>>,
    propagate_tags: Option<String>,
    #[serde(default, rename = "enableECSManagedTags")]
    managed_tags: bool,
    #[serde(default)]
    enable_execute_command: bool,
    client_token: Option<String>,
    #[serde(default)]
    container_instances: Vec<String>,
}

/// The launch type that a call asks for, and the capacity provider when it came by one.
pub(super) fn launch_type(
    launch_type: Option<&str>,
    strategy: Option<&Value>,
    default_strategy: &Value,
) -> ApiResult<(LaunchType, Option<String>)> {
    let given = strategy.filter(|s| s.as_array().is_some_and(|list| !list.is_empty()));
    match (launch_type, given) {
        (Some(_), Some(_)) => Err(ApiError::invalid(
            "Specifying both a launch type and capacity provider strategy is not supported. Remove one and try again.",
        )),
        (Some("EC2"), None) => Ok((LaunchType::Ec2, None)),
        (Some("FARGATE"), None) => Ok((LaunchType::Fargate, None)),
        (Some("EXTERNAL"), None) => Ok((LaunchType::External, None)),
        (Some(other), None) => Err(ApiError::invalid(format!("Unknown launch type '{other}'."))),
        (None, given) => {
            let strategy = given.unwrap_or(default_strategy);
            let provider = strategy.as_array().and_then(|list| list.first()).and_then(|s| s.get("capacityProvider"));
            match provider.and_then(Value::as_str) {
                None => Ok((LaunchType::Ec2, None)),
                Some(name @ ("FARGATE" | "FARGATE_SPOT")) => Ok((LaunchType::Fargate, Some(name.into()))),
                Some(name) => Ok((LaunchType::Ec2, Some(name.into()))),
            }
        }
    }
}

pub(super) fn run(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: RunInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.clone();
    let token = request.client_token.as_ref().map(|t| format!("run/{}/{t}", cluster.name));
    if let Some(answer) = token.as_ref().and_then(|t| ecs.tokens.get(t)) {
        return Ok(answer.clone());
    }
    let count = request.count.unwrap_or(1);
    if !(1..=10).contains(&count) {
        return Err(ApiError::invalid("count must be between 1 and 10."));
    }
    let definition = ecs.usable_definition(&request.task_definition)?.clone();
    let (kind, provider) = launch_type(
        request.launch_type.as_deref(),
        request.capacity_provider_strategy.as_ref(),
        &cluster.default_strategy,
    )?;
    let constraints = Constraints::parse(request.placement_constraints.as_ref())?;
    let order = order(&request, &definition, &cluster.arn, kind, provider)?;
    if kind != LaunchType::Fargate && ecs.candidates(&cluster.arn, kind).next().is_none() {
        return Err(ApiError::invalid("No Container Instances were found in your cluster."));
    }
    let (mut tasks, mut failures) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let instance = if kind == LaunchType::Fargate {
            None
        } else {
            let needs = super::place::needs(&definition);
            match ecs.pick(&cluster.arn, kind, &needs, &constraints, &order.group) {
                Ok(arn) => Some(arn),
                Err(why) => {
                    failures.push(super::without_nulls(json!({"arn": why.closest, "reason": why.code})));
                    continue;
                }
            }
        };
        let arn = ecs.create_task(ctx, &definition, &order, instance);
        tasks.extend(ecs.tasks.get(&arn).map(|t| t.view(Form::Api, true, ctx.now)));
    }
    let answer = json!({"tasks": tasks, "failures": failures});
    ecs.remember_token(token, &answer);
    Ok(answer)
}

pub(super) fn start(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: RunInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.clone();
    let definition = ecs.usable_definition(&request.task_definition)?.clone();
    if request.container_instances.is_empty() || request.container_instances.len() > 10 {
        return Err(ApiError::invalid("containerInstances must have 1 to 10 items."));
    }
    let (mut tasks, mut failures) = (Vec::new(), Vec::new());
    for reference in &request.container_instances {
        let Some(instance) = ecs.instance(&cluster.arn, reference).cloned() else {
            failures.push(missing(&ctx.arn(format!("container-instance/{}/{}", cluster.name, short(reference)))));
            continue;
        };
        let kind = if instance.external { LaunchType::External } else { LaunchType::Ec2 };
        if let Err(why) = ecs.fits(&instance, &super::place::needs(&definition), &Constraints::default()) {
            failures.push(json!({"arn": instance.arn, "reason": why.code}));
            continue;
        }
        let order = order(&request, &definition, &cluster.arn, kind, None)?;
        let arn = ecs.create_task(ctx, &definition, &order, Some(instance.arn));
        tasks.extend(ecs.tasks.get(&arn).map(|t| t.view(Form::Api, true, ctx.now)));
    }
    Ok(json!({"tasks": tasks, "failures": failures}))
}

/// Network configuration against network mode; shared with services.
pub(super) fn check_network(
    definition: &super::Definition,
    kind: LaunchType,
    network: Option<&Value>,
) -> ApiResult<()> {
    if !definition.fits(kind.as_str()) {
        let message = "Task definition does not support launch_type ".to_owned() + kind.as_str() + ".";
        return Err(ApiError::invalid(message));
    }
    let awsvpc = definition.text("networkMode") == Some("awsvpc");
    let subnets = network.and_then(|n| n.get("awsvpcConfiguration")?.get("subnets")?.as_array()).map_or(0, Vec::len);
    match (awsvpc, subnets) {
        (true, 0) => {
            Err(ApiError::invalid("Network Configuration must be provided when networkMode 'awsvpc' is specified."))
        }
        (false, 1..) => Err(ApiError::invalid(
            "Network Configuration is not valid for the given networkMode of this task definition.",
        )),
        (_, 17..) => Err(ApiError::invalid("subnets can have at most 16 items.")),
        _ => Ok(()),
    }
}

fn order(
    request: &RunInput,
    definition: &super::Definition,
    cluster_arn: &str,
    kind: LaunchType,
    provider: Option<String>,
) -> ApiResult<Order> {
    check_network(definition, kind, request.network_configuration.as_ref())?;
    let names: Vec<&str> = definition.containers().filter_map(|c| c.get("name")?.as_str()).collect();
    let overridden = request.overrides.as_ref().and_then(|o| o.get("containerOverrides")?.as_array());
    for one in overridden.into_iter().flatten() {
        let name = one.get("name").and_then(Value::as_str).unwrap_or_default();
        if !names.contains(&name) {
            return Err(ApiError::invalid(format!(
                "Override for container named {name} is not a container in the TaskDefinition."
            )));
        }
    }
    if request.group.as_ref().is_some_and(|g| g.starts_with("service:")) {
        return Err(ApiError::invalid("Invalid namespace for group."));
    }
    let mut all = Vec::new();
    if request.propagate_tags.as_deref() == Some("TASK_DEFINITION") {
        all.extend(definition.tags.iter().cloned());
    }
    if request.managed_tags {
        all.push(Tag { key: "aws:ecs:clusterName".into(), value: super::cluster_name(cluster_arn).into() });
    }
    tags::merge(&mut all, tags::checked(request.tags.clone())?);
    Ok(Order {
        cluster_arn: cluster_arn.into(),
        launch_type: kind,
        capacity_provider: provider,
        group: request.group.clone().unwrap_or_else(|| format!("family:{}", definition.family)),
        started_by: request.started_by.clone(),
        service: None,
        network: request.network_configuration.clone(),
        overrides: request.overrides.clone(),
        tags: all,
        exec: request.enable_execute_command,
    })
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TaskInput {
    cluster: Option<String>,
    task: Option<String>,
    reason: Option<String>,
    #[serde(default)]
    tasks: Vec<String>,
    #[serde(default)]
    include: Vec<String>,
    container_instance: Option<String>,
    family: Option<String>,
    service_name: Option<String>,
    desired_status: Option<String>,
    launch_type: Option<String>,
    started_by: Option<String>,
    #[serde(flatten)]
    page: Page,
}

impl Ecs {
    fn task(&self, cluster_arn: &str, reference: &str) -> Option<&Task> {
        let by_arn = self.tasks.get(reference);
        let found = by_arn.or_else(|| self.tasks.of(cluster_arn).find(|t| t.id == short(reference)));
        found.filter(|t| t.cluster_arn == cluster_arn)
    }
}

pub(super) fn stop(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: TaskInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.arn.clone();
    let arn = ecs
        .task(&cluster, request.task.as_deref().unwrap_or_default())
        .map(|t| t.arn.clone())
        .ok_or_else(|| ApiError::invalid("The referenced task was not found."))?;
    let reason = request.reason.unwrap_or_else(|| "Task stopped by user".into());
    ecs.stop_task(ctx, &arn, "UserInitiated", &reason);
    Ok(json!({"task": ecs.tasks.get(&arn).map(|t| t.view(Form::Api, true, ctx.now))}))
}

pub(super) fn list(ecs: &mut Ecs, value: Value) -> ApiResult {
    let request: TaskInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.arn.clone();
    if let Some(service) = &request.service_name {
        ecs.service_of(&cluster, service)?;
    }
    let wanted_status = request.desired_status.as_deref().unwrap_or("RUNNING");
    let wanted = |t: &&Task| {
        t.desired_status() == wanted_status
            && request
                .container_instance
                .as_ref()
                .is_none_or(|i| t.instance_arn.as_deref().is_some_and(|a| short(a) == short(i)))
            && request.family.as_ref().is_none_or(|f| *f == t.family)
            && request.service_name.as_ref().is_none_or(|s| t.service.as_deref() == Some(short(s)))
            && request.launch_type.as_ref().is_none_or(|l| l == t.launch_type.as_str())
            && request.started_by.as_ref().is_none_or(|s| t.started_by.as_ref() == Some(s))
    };
    let arns = ecs.tasks.of(&cluster).filter(wanted).map(|t| t.arn.clone()).collect();
    request.page.cut("taskArns", arns, 100, 100)
}

pub(super) fn describe(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: TaskInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.clone();
    if request.tasks.is_empty() {
        return Err(ApiError::invalid("Tasks cannot be empty."));
    }
    if request.tasks.len() > 100 {
        return Err(ApiError::invalid("tasks can have at most 100 items."));
    }
    let with_tags = includes(&request.include, "TAGS");
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for reference in &request.tasks {
        match ecs.task(&cluster.arn, reference) {
            Some(task) => found.push(task.view(Form::Api, with_tags, ctx.now)),
            None => failures.push(missing(&ctx.arn(format!("task/{}/{}", cluster.name, short(reference))))),
        }
    }
    Ok(json!({"tasks": found, "failures": failures}))
}
