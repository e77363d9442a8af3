//! Every AWS call that Tasuki makes on ECS, with its budget group and what may be repeated.

use crate::act::budget::Group;

/// One AWS API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api {
    /// As IAM names it, such as `ecs:ListTasks`.
    pub name: &'static str,
    /// Whose tokens it takes.
    pub group: Group,
    /// Whether a call whose answer was lost may simply be made again.
    pub repeatable: bool,
}

const fn repeatable(name: &'static str, group: Group) -> Api {
    Api { name, group, repeatable: true }
}

const fn once(name: &'static str, group: Group) -> Api {
    Api { name, group, repeatable: false }
}

/// ListClusters.
pub const LIST_CLUSTERS: Api = repeatable("ecs:ListClusters", Group::ClusterRead);
/// DescribeClusters.
pub const DESCRIBE_CLUSTERS: Api = repeatable("ecs:DescribeClusters", Group::ClusterRead);
/// ListServices.
pub const LIST_SERVICES: Api = repeatable("ecs:ListServices", Group::ServiceRead);
/// DescribeServices.
pub const DESCRIBE_SERVICES: Api = repeatable("ecs:DescribeServices", Group::ServiceRead);
/// ListTasks.
pub const LIST_TASKS: Api = repeatable("ecs:ListTasks", Group::ClusterResourceRead);
/// DescribeTasks.
pub const DESCRIBE_TASKS: Api = repeatable("ecs:DescribeTasks", Group::ClusterResourceRead);
/// ListContainerInstances.
pub const LIST_NODES: Api = repeatable("ecs:ListContainerInstances", Group::ClusterResourceRead);
/// DescribeContainerInstances.
pub const DESCRIBE_NODES: Api = repeatable("ecs:DescribeContainerInstances", Group::ClusterResourceRead);
/// DescribeTaskDefinition.
pub const DESCRIBE_DEFINITION: Api = repeatable("ecs:DescribeTaskDefinition", Group::DefinitionRead);
/// ListTaskDefinitions.
pub const LIST_DEFINITIONS: Api = repeatable("ecs:ListTaskDefinitions", Group::DefinitionRead);
/// ListTaskDefinitionFamilies.
pub const LIST_FAMILIES: Api = repeatable("ecs:ListTaskDefinitionFamilies", Group::DefinitionRead);
/// ListServiceDeployments.
pub const LIST_DEPLOYMENTS: Api = repeatable("ecs:ListServiceDeployments", Group::ServiceDeploymentRead);
/// GetTaskProtection.
pub const GET_PROTECTION: Api = repeatable("ecs:GetTaskProtection", Group::TaskProtection);
/// RegisterTaskDefinition: twice makes two revisions.
pub const REGISTER_DEFINITION: Api = once("ecs:RegisterTaskDefinition", Group::DefinitionModify);
/// DeregisterTaskDefinition.
pub const DEREGISTER_DEFINITION: Api = repeatable("ecs:DeregisterTaskDefinition", Group::DefinitionModify);
/// CreateService: repeatable under one client token.
pub const CREATE_SERVICE: Api = repeatable("ecs:CreateService", Group::ServiceModify);
/// UpdateService: twice makes two deployments.
pub const UPDATE_SERVICE: Api = once("ecs:UpdateService", Group::ServiceModify);
/// DeleteService.
pub const DELETE_SERVICE: Api = once("ecs:DeleteService", Group::ServiceModify);
/// StopServiceDeployment.
pub const STOP_DEPLOYMENT: Api = once("ecs:StopServiceDeployment", Group::ServiceModify);
/// PutAttributes.
pub const PUT_ATTRIBUTES: Api = repeatable("ecs:PutAttributes", Group::ClusterResourceModify);
/// DeleteAttributes.
pub const DELETE_ATTRIBUTES: Api = once("ecs:DeleteAttributes", Group::ClusterResourceModify);
