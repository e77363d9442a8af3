//! Operations on container instances and their attributes.

use serde::Deserialize;
use serde_json::{Value, json};

use super::tags::{self, Tag};
use super::{Ecs, Instance, InstanceOptions, Page, includes, missing, short};
use crate::effect::Ctx;
use crate::error::{ApiError, ApiResult, input};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct InstanceInput {
    cluster: Option<String>,
    container_instance: Option<String>,
    #[serde(default)]
    container_instances: Vec<String>,
    status: Option<String>,
    filter: Option<String>,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    total_resources: Vec<Value>,
    #[serde(default)]
    attributes: Vec<Attribute>,
    tags: Option<Vec<Tag>>,
    #[serde(flatten)]
    page: Page,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attribute {
    name: String,
    value: Option<String>,
    target_type: Option<String>,
    target_id: Option<String>,
}

impl Ecs {
    /// Adds an instance to a cluster, as a start option or a test does; its ARN.
    ///
    /// # Errors
    /// `ClusterNotFoundException`.
    pub fn add_instance(&mut self, ctx: &mut Ctx<'_>, cluster: &str, options: InstanceOptions) -> ApiResult<String> {
        let name = self.cluster(Some(cluster))?.name.clone();
        let instance = Instance::new(ctx, &name, options);
        let arn = instance.arn.clone();
        self.instances.insert(arn.clone(), instance);
        self.instance_changed(ctx, &arn);
        self.wake_services(ctx, &self.cluster_arn_of(&arn));
        Ok(arn)
    }

    /// The ECS agent of an instance connects or disconnects.
    ///
    /// # Errors
    /// `InvalidParameterException` for an unknown instance.
    pub fn set_agent_connected(&mut self, ctx: &mut Ctx<'_>, arn: &str, connected: bool) -> ApiResult<()> {
        let unknown = || ApiError::invalid(format!("Container instance {arn} not found."));
        self.instances.get_mut(arn).ok_or_else(unknown)?.agent_connected = connected;
        self.instance_changed(ctx, arn);
        self.wake_services(ctx, &self.cluster_arn_of(arn));
        Ok(())
    }

    fn cluster_arn_of(&self, instance_arn: &str) -> String {
        self.instances.get(instance_arn).map(|i| i.cluster_arn.clone()).unwrap_or_default()
    }

    pub(super) fn instance(&self, cluster_arn: &str, reference: &str) -> Option<&Instance> {
        self.instances
            .values()
            .find(|i| i.cluster_arn == cluster_arn && (i.arn == reference || i.id() == short(reference)))
            .filter(|i| i.status != "INACTIVE")
    }
}

fn find(ecs: &Ecs, cluster_arn: &str, reference: &str) -> ApiResult<String> {
    let found = ecs.instance(cluster_arn, reference).map(|i| i.arn.clone());
    found.ok_or_else(|| ApiError::invalid("The referenced container instance was not found."))
}

/// RegisterContainerInstance: the call that ECS agents make.
pub(super) fn register(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: InstanceInput = input(value)?;
    let resource = |name: &str| {
        let found = request.total_resources.iter().find(|r| r.get("name").and_then(Value::as_str) == Some(name));
        found.and_then(|r| r.get("integerValue")).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok())
    };
    let mut options = InstanceOptions::default();
    options.cpu = resource("CPU").unwrap_or(options.cpu);
    options.memory = resource("MEMORY").unwrap_or(options.memory);
    options.attributes = request.attributes.into_iter().map(|a| (a.name, a.value)).collect();
    let tags = tags::checked(request.tags)?;
    let arn = ecs.add_instance(ctx, request.cluster.as_deref().unwrap_or("default"), options)?;
    if let Some(instance) = ecs.instances.get_mut(&arn) {
        instance.tags = tags;
    }
    let view = ecs.instances.get(&arn).map(|i| ecs.instance_view(i, false, true, ctx.now));
    Ok(json!({"containerInstance": view}))
}

pub(super) fn deregister(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: InstanceInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.arn.clone();
    let arn = find(ecs, &cluster, request.container_instance.as_deref().unwrap_or_default())?;
    if !request.force && ecs.tasks_on(&arn).any(|t| t.is_running()) {
        return Err(ApiError::invalid("Found running tasks on the instance."));
    }
    if let Some(instance) = ecs.instances.get_mut(&arn) {
        instance.status = "INACTIVE";
        instance.agent_connected = false;
    }
    ecs.instance_changed(ctx, &arn);
    ecs.lose_tasks_of(ctx, &arn);
    ecs.wake_services(ctx, &cluster);
    let view = ecs.instances.get(&arn).map(|i| ecs.instance_view(i, false, true, ctx.now));
    Ok(json!({"containerInstance": view}))
}

pub(super) fn describe(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: InstanceInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.clone();
    let asked = &request.container_instances;
    if asked.is_empty() || asked.len() > 100 {
        return Err(ApiError::invalid("containerInstances must have 1 to 100 items."));
    }
    let with_tags = includes(&request.include, "TAGS");
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for reference in asked {
        match ecs.instance(&cluster.arn, reference) {
            Some(instance) => found.push(ecs.instance_view(instance, false, with_tags, ctx.now)),
            None => {
                failures.push(missing(&ctx.arn(format!("container-instance/{}/{}", cluster.name, short(reference)))))
            }
        }
    }
    Ok(json!({"containerInstances": found, "failures": failures}))
}

pub(super) fn list(ecs: &mut Ecs, value: Value) -> ApiResult {
    let request: InstanceInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.arn.clone();
    let filter =
        request.filter.as_deref().filter(|f| !f.is_empty()).map(super::constraint::Expression::parse).transpose()?;
    let wanted = |i: &&Instance| {
        i.cluster_arn == cluster
            && request.status.as_deref().map_or(i.status != "INACTIVE", |s| i.status == s)
            && filter.as_ref().is_none_or(|f| f.holds(i))
    };
    let arns = ecs.instances.values().filter(wanted).map(|i| i.arn.clone()).collect();
    request.page.cut("containerInstanceArns", arns, 100, 100)
}

pub(super) fn update_state(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: InstanceInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.clone();
    let status = match request.status.as_deref() {
        Some("ACTIVE") => "ACTIVE",
        Some("DRAINING") => "DRAINING",
        _ => return Err(ApiError::invalid("Container instance status should be one of [ACTIVE, DRAINING].")),
    };
    if request.container_instances.is_empty() || request.container_instances.len() > 10 {
        return Err(ApiError::invalid("containerInstances must have 1 to 10 items."));
    }
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for reference in &request.container_instances {
        let Some(arn) = ecs.instance(&cluster.arn, reference).map(|i| i.arn.clone()) else {
            failures.push(missing(&ctx.arn(format!("container-instance/{}/{}", cluster.name, short(reference)))));
            continue;
        };
        let changed = ecs.instances.get_mut(&arn).is_some_and(|i| std::mem::replace(&mut i.status, status) != status);
        if changed {
            ecs.instance_changed(ctx, &arn);
        }
        done.extend(ecs.instances.get(&arn).map(|i| ecs.instance_view(i, false, true, ctx.now)));
    }
    ecs.wake_services(ctx, &cluster.arn);
    Ok(json!({"containerInstances": done, "failures": failures}))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AttributeInput {
    cluster: Option<String>,
    #[serde(default)]
    attributes: Vec<Attribute>,
    target_type: Option<String>,
    attribute_name: Option<String>,
    attribute_value: Option<String>,
    #[serde(default)]
    next_token: Option<String>,
    max_results: Option<usize>,
}

pub(super) fn put_attributes(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    change_attributes(ecs, ctx, value, |instance, attribute| {
        instance.attributes.insert(attribute.name.clone(), attribute.value.clone());
    })
}

pub(super) fn delete_attributes(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    change_attributes(ecs, ctx, value, |instance, attribute| {
        // With a value, only that value goes.
        let current = instance.attributes.get(&attribute.name);
        if attribute.value.is_none() || current == Some(&attribute.value) {
            instance.attributes.shift_remove(&attribute.name);
        }
    })
}

fn change_attributes(
    ecs: &mut Ecs,
    ctx: &mut Ctx<'_>,
    value: Value,
    change: impl Fn(&mut Instance, &Attribute),
) -> ApiResult {
    let request: AttributeInput = input(value)?;
    let cluster = ecs.cluster(request.cluster.as_deref())?.arn.clone();
    if request.attributes.is_empty() || request.attributes.len() > 10 {
        return Err(ApiError::invalid("attributes must have 1 to 10 items."));
    }
    let mut targets = Vec::new();
    for attribute in &request.attributes {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_./\\".contains(c);
        if attribute.name.is_empty() || attribute.name.len() > 128 || !attribute.name.chars().all(fits) {
            return Err(ApiError::invalid(format!("Invalid attribute name '{}'.", attribute.name)));
        }
        if attribute.name.starts_with("ecs.") || attribute.name.starts_with("com.amazonaws.") {
            return Err(ApiError::invalid(format!("Attribute name '{}' is reserved.", attribute.name)));
        }
        let reference = attribute.target_id.as_deref().unwrap_or_default();
        let full = attribute.target_type.as_deref() == Some("container-instance") || reference.starts_with("arn:");
        let found = full.then(|| ecs.instance(&cluster, reference)).flatten().map(|i| i.arn.clone());
        targets
            .push(found.ok_or_else(|| ApiError::new("TargetNotFoundException", "The specified target wasn't found."))?);
    }
    let mut changed = Vec::new();
    for (attribute, arn) in request.attributes.iter().zip(&targets) {
        if let Some(instance) = ecs.instances.get_mut(arn) {
            change(instance, attribute);
            changed.push(attribute_view(&attribute.name, attribute.value.as_ref(), arn));
        }
    }
    // Attributes are not part of the instance's version and raise no event; services look at them anew.
    ecs.wake_services(ctx, &cluster);
    Ok(json!({"attributes": changed}))
}

fn attribute_view(name: &str, value: Option<&String>, arn: &str) -> Value {
    let mut view = json!({"name": name, "targetId": arn});
    if let Some(value) = value {
        view["value"] = value.clone().into();
    }
    view
}

pub(super) fn list_attributes(ecs: &mut Ecs, value: Value) -> ApiResult {
    use base64::Engine;
    let request: AttributeInput = input(value)?;
    if request.target_type.as_deref() != Some("container-instance") {
        return Err(ApiError::invalid("targetType must be container-instance."));
    }
    let cluster = ecs.cluster(request.cluster.as_deref())?.arn.clone();
    let mut all = Vec::new();
    for instance in ecs.instances.values().filter(|i| i.cluster_arn == cluster && i.status != "INACTIVE") {
        for (name, value) in &instance.attributes {
            let name_fits = request.attribute_name.as_ref().is_none_or(|n| n == name);
            let value_fits = request.attribute_value.as_ref().is_none_or(|v| value.as_ref() == Some(v));
            if name_fits && value_fits {
                all.push(attribute_view(name, value.as_ref(), &instance.arn));
            }
        }
    }
    let engine = base64::engine::general_purpose::STANDARD;
    let from: usize = match &request.next_token {
        None => 0,
        Some(token) => engine
            .decode(token)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok())
            .ok_or_else(|| ApiError::invalid("Invalid token"))?,
    };
    let size = request.max_results.unwrap_or(100).clamp(1, 100);
    let mut answer = json!({"attributes": all.iter().skip(from).take(size).collect::<Vec<_>>()});
    if from.saturating_add(size) < all.len() {
        answer["nextToken"] = engine.encode((from + size).to_string()).into();
    }
    Ok(answer)
}
