//! What ECS's API says, as the fleet's types. Times are epochs, the network attachment is called
//! `ElasticNetworkInterface`.

use super::words::{is_network, launch, node_launch, task_status, text};
use aws_sdk_ecs::primitives::DateTime;
use aws_sdk_ecs::types as ecs;
use jiff::Timestamp;
use std::collections::BTreeMap;
use tasuki_core::fleet::{
    Cluster, Container, Deployment, DeploymentController, Node, RolloutState, ScopeId, Service, Str, Strategy, Task,
};

/// Service events that are kept, the newest first.
const EVENTS: usize = 5;

/// A cluster; none without an ARN.
pub fn cluster(cluster: &ecs::Cluster, scope: &ScopeId, document: &Str) -> Option<Cluster> {
    let arn = text(cluster.cluster_arn())?;
    Some(Cluster {
        name: text(cluster.cluster_name()).unwrap_or_else(|| last(&arn)),
        arn,
        scope: scope.clone(),
        aws_scope: document.clone(),
        tags: tags(cluster.tags()),
        capacity_providers: cluster.capacity_providers().to_vec(),
    })
}

/// A task; none without its ARNs.
pub fn task(task: &ecs::Task) -> Option<Task> {
    let network = task.attachments().iter().find(|attachment| is_network(attachment.r#type().unwrap_or_default()));
    let detail = |name: &str| {
        network?.details().iter().find(|detail| detail.name() == Some(name)).and_then(ecs::KeyValuePair::value)
    };
    let interface = || task.containers().iter().flat_map(ecs::Container::network_interfaces).next();
    let address = detail("privateIPv4Address")
        .or_else(|| interface()?.private_ipv4_address())
        .or_else(|| detail("privateIPv6Address"))
        .or_else(|| interface()?.ipv6_address());
    let attribute = |name: &str| {
        task.attributes().iter().find(|attribute| attribute.name() == name).and_then(ecs::Attribute::value)
    };
    Some(Task {
        arn: text(task.task_arn())?,
        cluster: text(task.cluster_arn())?,
        group: text(task.group()).unwrap_or_default(),
        started_by: text(task.started_by()),
        definition: text(task.task_definition_arn())?,
        launch: launch(
            task.launch_type().map(ecs::LaunchType::as_str),
            task.capacity_provider_name(),
            task.container_instance_arn().is_some(),
        ),
        platform_version: text(task.platform_version()),
        platform_family: text(task.platform_family()),
        architecture: text(attribute("ecs.cpu-architecture")),
        node: text(task.container_instance_arn()),
        containers: task.containers().iter().filter_map(container).collect(),
        status: task_status(task.last_status().unwrap_or_default()),
        desired_stopped: task.desired_status() == Some("STOPPED"),
        version: task.version(),
        created_at: time(task.created_at()),
        started_at: time(task.started_at()),
        stopped_at: time(task.stopped_at()),
        stop_code: text(task.stop_code().map(ecs::TaskStopCode::as_str)),
        stopped_reason: text(task.stopped_reason()),
        address: address.and_then(|address| address.parse().ok()),
    })
}

fn container(container: &ecs::Container) -> Option<Container> {
    Some(Container {
        name: text(container.name())?,
        arn: text(container.container_arn()).unwrap_or_default(),
        runtime_id: text(container.runtime_id()),
        image: text(container.image()).unwrap_or_default(),
        image_digest: text(container.image_digest()),
        status: text(container.last_status()).unwrap_or_default(),
        exit_code: container.exit_code(),
        reason: text(container.reason()),
    })
}

/// A service; none without its ARNs and definition. An EXTERNAL service without a task set has none.
pub fn service(service: &ecs::Service) -> Option<Service> {
    let configuration = service.deployment_configuration();
    let network = service.network_configuration().and_then(ecs::NetworkConfiguration::awsvpc_configuration);
    let list = |values: &[String]| values.iter().map(|value| value.as_str().into()).collect();
    let daemon = service.scheduling_strategy() == Some(&ecs::SchedulingStrategy::Daemon);
    let strategy = configuration.and_then(ecs::DeploymentConfiguration::strategy);
    let mut deployments: Vec<_> = service.deployments().iter().filter_map(deployment).collect();
    deployments.sort_by_key(|deployment| !deployment.primary);
    Some(Service {
        arn: text(service.service_arn())?,
        cluster: text(service.cluster_arn())?,
        name: text(service.service_name())?,
        definition: text(service.task_definition()).or_else(|| {
            service
                .task_sets()
                .iter()
                .find(|set| set.status() == Some("PRIMARY"))
                .and_then(|set| text(set.task_definition()))
        })?,
        active: service.status() == Some("ACTIVE"),
        controller: match service.deployment_controller().map(|controller| controller.r#type().as_str()) {
            Some("CODE_DEPLOY") => DeploymentController::CodeDeploy,
            Some("EXTERNAL") => DeploymentController::External,
            _ => DeploymentController::Ecs,
        },
        strategy: match strategy {
            None | Some(ecs::DeploymentStrategy::Rolling) => Strategy::Rolling,
            Some(_) => Strategy::TrafficShifting,
        },
        daemon,
        launch: launch(
            service.launch_type().map(ecs::LaunchType::as_str),
            service.capacity_provider_strategy().first().map(ecs::CapacityProviderStrategyItem::capacity_provider),
            false,
        ),
        desired: count(service.desired_count()),
        running: count(service.running_count()),
        // Defaults of the API: a REPLICA service keeps 100 and may double, a DAEMON service stops first.
        minimum_healthy: count(configuration.and_then(|c| c.minimum_healthy_percent()).unwrap_or(if daemon {
            0
        } else {
            100
        })),
        maximum: count(configuration.and_then(|c| c.maximum_percent()).unwrap_or(if daemon { 100 } else { 200 })),
        has_hooks: configuration.is_some_and(|configuration| !configuration.lifecycle_hooks().is_empty()),
        express: service.resource_management_type() == Some(&ecs::ResourceManagementType::Ecs),
        deployments,
        tags: tags(service.tags()),
        platform_version: text(service.platform_version()),
        subnets: network.map(|network| list(network.subnets())).unwrap_or_default(),
        security_groups: network.map(|network| list(network.security_groups())).unwrap_or_default(),
        events: service.events().iter().take(EVENTS).filter_map(|event| text(event.message())).collect(),
        created_at: time(service.created_at()),
    })
}

fn deployment(deployment: &ecs::Deployment) -> Option<Deployment> {
    // Absent where another controller than ECS deploys, or before ECS said anything.
    let rollout = match deployment.rollout_state() {
        Some(ecs::DeploymentRolloutState::Completed) => RolloutState::Completed,
        Some(ecs::DeploymentRolloutState::Failed) => RolloutState::Failed,
        _ => RolloutState::InProgress,
    };
    Some(Deployment {
        id: text(deployment.id())?,
        primary: deployment.status() == Some("PRIMARY"),
        definition: text(deployment.task_definition()).unwrap_or_default(),
        rollout,
        rollout_reason: text(deployment.rollout_state_reason()),
        desired: count(deployment.desired_count()),
        pending: count(deployment.pending_count()),
        running: count(deployment.running_count()),
        failed: count(deployment.failed_tasks()),
        created_at: time(deployment.created_at()),
    })
}

/// A node of `cluster`; none without an ARN.
pub fn node(node: &ecs::ContainerInstance, cluster: &str) -> Option<Node> {
    let free = |name: &str| {
        let resource = node.remaining_resources().iter().find(|resource| resource.name() == Some(name));
        resource.map_or(0, |resource| count(resource.integer_value()))
    };
    let attributes: BTreeMap<String, String> = node
        .attributes()
        .iter()
        .map(|attribute| (attribute.name().to_owned(), attribute.value().unwrap_or_default().to_owned()))
        .collect();
    Some(Node {
        arn: text(node.container_instance_arn())?,
        cluster: cluster.into(),
        instance_id: text(node.ec2_instance_id()),
        active: node.status() == Some("ACTIVE"),
        connected: node.agent_connected(),
        turned_at: None,
        taints: Vec::new(),
        free_memory: free("MEMORY"),
        free_cpu: free("CPU"),
        launch: node_launch(node.ec2_instance_id(), attributes.keys()),
        version: node.version(),
        attributes,
    })
}

fn tags(tags: &[ecs::Tag]) -> BTreeMap<String, String> {
    let pair = |tag: &ecs::Tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned()));
    tags.iter().filter_map(pair).collect()
}

fn time(time: Option<&DateTime>) -> Option<Timestamp> {
    let time = time?;
    Timestamp::new(time.secs(), i32::try_from(time.subsec_nanos()).ok()?).ok()
}

fn count(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

fn last(arn: &str) -> Str {
    arn.rsplit('/').next().unwrap_or(arn).into()
}
