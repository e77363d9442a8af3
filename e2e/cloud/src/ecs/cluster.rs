//! Clusters.

use serde::Deserialize;
use serde_json::{Value, json};

use super::tags::{self, Tag};
use super::{Ecs, Page, cluster_name, includes, missing, without_nulls};
use crate::effect::Ctx;
use crate::error::{ApiError, ApiResult, input};

/// A cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Name, the last part of the ARN.
    pub name: String,
    /// ARN.
    pub arn: String,
    /// ACTIVE; a deleted cluster stays describable as INACTIVE.
    pub active: bool,
    /// Tags.
    pub tags: Vec<Tag>,
    settings: Value,
    configuration: Value,
    capacity_providers: Vec<String>,
    /// `defaultCapacityProviderStrategy`.
    pub default_strategy: Value,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClusterInput {
    cluster_name: Option<String>,
    cluster: Option<String>,
    tags: Option<Vec<Tag>>,
    settings: Option<Value>,
    configuration: Option<Value>,
    capacity_providers: Option<Vec<String>>,
    default_capacity_provider_strategy: Option<Value>,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    clusters: Vec<String>,
}

pub(super) fn create(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: ClusterInput = input(value)?;
    let name = request.cluster_name.unwrap_or_else(|| "default".into());
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 255 || !name.chars().all(plain) {
        return Err(ApiError::invalid("Invalid cluster name. Up to 255 letters, numbers, hyphens and underscores."));
    }
    let tags = tags::checked(request.tags)?;
    if !ecs.clusters.get(&name).is_some_and(|cluster| cluster.active) {
        let cluster = Cluster {
            arn: ctx.arn(format!("cluster/{name}")),
            name: name.clone(),
            active: true,
            tags,
            settings: request.settings.unwrap_or_else(|| json!([{"name": "containerInsights", "value": "disabled"}])),
            configuration: request.configuration.unwrap_or(Value::Null),
            capacity_providers: request.capacity_providers.unwrap_or_default(),
            default_strategy: request.default_capacity_provider_strategy.unwrap_or_else(|| json!([])),
        };
        ecs.clusters.insert(name.clone(), cluster);
    }
    let all = ["TAGS", "SETTINGS", "CONFIGURATIONS"].map(String::from);
    Ok(json!({"cluster": ecs.cluster_view(&name, &all)}))
}

pub(super) fn delete(ecs: &mut Ecs, value: Value) -> ApiResult {
    let request: ClusterInput = input(value)?;
    let (name, arn) = {
        let cluster = ecs.cluster(request.cluster.as_deref())?;
        (cluster.name.clone(), cluster.arn.clone())
    };
    if ecs.services.values().any(|s| s.cluster_arn == arn && s.is_active()) {
        let message = "The Cluster cannot be deleted while Services are active.";
        return Err(ApiError::new("ClusterContainsServicesException", message));
    }
    if ecs.tasks.of(&arn).any(|t| !t.is_stopped()) {
        let message = "The Cluster cannot be deleted while Tasks are active.";
        return Err(ApiError::new("ClusterContainsTasksException", message));
    }
    if ecs.instances.values().any(|i| i.cluster_arn == arn && i.status != "INACTIVE") {
        let message = "The Cluster cannot be deleted while Container Instances are active or draining.";
        return Err(ApiError::new("ClusterContainsContainerInstancesException", message));
    }
    if let Some(cluster) = ecs.clusters.get_mut(&name) {
        cluster.active = false;
    }
    Ok(json!({"cluster": ecs.cluster_view(&name, &[])}))
}

pub(super) fn describe(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let mut request: ClusterInput = input(value)?;
    if request.clusters.is_empty() {
        request.clusters.push("default".into());
    }
    if request.clusters.len() > 100 {
        return Err(ApiError::invalid("clusters can have at most 100 items."));
    }
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for reference in &request.clusters {
        match ecs.cluster_view(cluster_name(reference), &request.include) {
            Value::Null => failures.push(missing(&ctx.arn(format!("cluster/{}", cluster_name(reference))))),
            view => found.push(view),
        }
    }
    Ok(json!({"clusters": found, "failures": failures}))
}

pub(super) fn list(ecs: &mut Ecs, value: Value) -> ApiResult {
    let page: Page = input(value)?;
    let arns = ecs.clusters.values().filter(|c| c.active).map(|c| c.arn.clone()).collect();
    page.cut("clusterArns", arns, 100, 100)
}

pub(super) fn update(ecs: &mut Ecs, value: Value) -> ApiResult {
    let request: ClusterInput = input(value)?;
    let name = ecs.cluster(request.cluster.as_deref())?.name.clone();
    if let Some(cluster) = ecs.clusters.get_mut(&name) {
        if let Some(settings) = request.settings {
            cluster.settings = settings;
        }
        if let Some(configuration) = request.configuration {
            cluster.configuration = configuration;
        }
        if let Some(providers) = request.capacity_providers {
            cluster.capacity_providers = providers;
        }
        if let Some(strategy) = request.default_capacity_provider_strategy {
            cluster.default_strategy = strategy;
        }
    }
    let all = ["SETTINGS", "CONFIGURATIONS"].map(String::from);
    Ok(json!({"cluster": ecs.cluster_view(&name, &all)}))
}

impl Ecs {
    /// A cluster as DescribeClusters shows it, or null.
    fn cluster_view(&self, name: &str, include: &[String]) -> Value {
        let Some(cluster) = self.clusters.get(name) else { return Value::Null };
        let tasks = || self.tasks.of(&cluster.arn);
        let active_services = self.services.values().filter(|s| s.cluster_arn == cluster.arn && s.is_active());
        let instances = self.instances.values().filter(|i| i.cluster_arn == cluster.arn && i.status != "INACTIVE");
        let shown = |what: &str, value: &Value| if includes(include, what) { value.clone() } else { json!([]) };
        without_nulls(json!({
            "clusterArn": cluster.arn,
            "clusterName": cluster.name,
            "status": if cluster.active { "ACTIVE" } else { "INACTIVE" },
            "registeredContainerInstancesCount": instances.count(),
            "runningTasksCount": tasks().filter(|t| t.is_running()).count(),
            "pendingTasksCount": tasks().filter(|t| t.is_pending()).count(),
            "activeServicesCount": active_services.count(),
            "statistics": [],
            "tags": if includes(include, "TAGS") { json!(cluster.tags) } else { json!([]) },
            "settings": shown("SETTINGS", &cluster.settings),
            "configuration": if includes(include, "CONFIGURATIONS") { cluster.configuration.clone() } else { Value::Null },
            "capacityProviders": cluster.capacity_providers,
            "defaultCapacityProviderStrategy": cluster.default_strategy,
        }))
    }
}
