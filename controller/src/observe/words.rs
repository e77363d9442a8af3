//! ECS's words for states, shared by both parsers.

use tasuki_core::fleet::{LaunchType, Str, TaskStatus};

/// `lastStatus` of a task. An unknown one counts as running: it keeps the task visible.
pub(super) fn task_status(word: &str) -> TaskStatus {
    match word {
        "PROVISIONING" => TaskStatus::Provisioning,
        "PENDING" => TaskStatus::Pending,
        "ACTIVATING" => TaskStatus::Activating,
        "DEACTIVATING" => TaskStatus::Deactivating,
        "STOPPING" => TaskStatus::Stopping,
        "DEPROVISIONING" => TaskStatus::Deprovisioning,
        "STOPPED" | "DELETED" => TaskStatus::Stopped,
        _ => TaskStatus::Running,
    }
}

/// `launchType`, or what a capacity provider's name says where there is none.
pub(super) fn launch(launch_type: Option<&str>, capacity_provider: Option<&str>, on_node: bool) -> LaunchType {
    match (launch_type, capacity_provider) {
        (Some("FARGATE"), _) => LaunchType::Fargate,
        (Some("EC2"), _) => LaunchType::Ec2,
        (Some("EXTERNAL"), _) => LaunchType::External,
        (Some("MANAGED_INSTANCES"), _) => LaunchType::ManagedInstances,
        (_, Some("FARGATE" | "FARGATE_SPOT")) => LaunchType::Fargate,
        // Any other provider stands on instances in the customer's account.
        (_, Some(_)) => LaunchType::Ec2,
        (_, None) if on_node => LaunchType::Ec2,
        (_, None) => LaunchType::Fargate,
    }
}

/// Where a node stands, by its attributes and id: ECS gives it no launch type.
pub(super) fn node_launch(
    instance_id: Option<&str>,
    mut attribute_names: impl Iterator<Item = impl AsRef<str>>,
) -> LaunchType {
    let external = instance_id.is_some_and(|id| id.starts_with("mi-"))
        || attribute_names.any(|name| name.as_ref() == "ecs.capability.external");
    if external { LaunchType::External } else { LaunchType::Ec2 }
}

/// The address of a task among the details of its attachment.
pub(super) fn is_network(attachment: &str) -> bool {
    // `eni` in events, `ElasticNetworkInterface` in the API.
    matches!(attachment, "eni" | "ElasticNetworkInterface")
}

/// A text that is there and not empty.
pub(super) fn text(value: Option<&str>) -> Option<Str> {
    value.filter(|text| !text.is_empty()).map(Str::from)
}
