//! Which function answers which operation, and which timer does what.

use serde_json::Value;

use super::{Ecs, cluster, definition, deployment, instance_api, service_api, tags, task_api};
use crate::effect::{Ctx, Timer};
use crate::error::ApiResult;

/// Runs an operation. `None`: there is no such operation.
pub(super) fn dispatch(ecs: &mut Ecs, ctx: &mut Ctx<'_>, operation: &str, input: Value) -> Option<ApiResult> {
    let answer = match operation {
        "CreateCluster" => cluster::create(ecs, ctx, input),
        "DeleteCluster" => cluster::delete(ecs, input),
        "DescribeClusters" => cluster::describe(ecs, ctx, input),
        "ListClusters" => cluster::list(ecs, input),
        "UpdateCluster" | "UpdateClusterSettings" | "PutClusterCapacityProviders" => cluster::update(ecs, input),
        "RegisterTaskDefinition" => definition::register(ecs, ctx, input),
        "DescribeTaskDefinition" => definition::describe(ecs, input),
        "DeregisterTaskDefinition" => definition::deregister(ecs, ctx, input),
        "DeleteTaskDefinitions" => definition::delete(ecs, ctx, input),
        "ListTaskDefinitions" => definition::list(ecs, input),
        "ListTaskDefinitionFamilies" => definition::families(ecs, input),
        "CreateService" => service_api::create(ecs, ctx, input),
        "UpdateService" => service_api::update(ecs, ctx, input),
        "DeleteService" => service_api::delete(ecs, ctx, input),
        "DescribeServices" => service_api::describe(ecs, ctx, input),
        "ListServices" => service_api::list(ecs, input),
        "ListServiceDeployments" => deployment::list(ecs, input),
        "DescribeServiceDeployments" => deployment::describe(ecs, input),
        "StopServiceDeployment" => deployment::stop(ecs, ctx, input),
        "DescribeServiceRevisions" => deployment::revisions(ecs, input),
        "RunTask" => task_api::run(ecs, ctx, input),
        "StartTask" => task_api::start(ecs, ctx, input),
        "StopTask" => task_api::stop(ecs, ctx, input),
        "ListTasks" => task_api::list(ecs, input),
        "DescribeTasks" => task_api::describe(ecs, ctx, input),
        "RegisterContainerInstance" => instance_api::register(ecs, ctx, input),
        "DeregisterContainerInstance" => instance_api::deregister(ecs, ctx, input),
        "DescribeContainerInstances" => instance_api::describe(ecs, ctx, input),
        "ListContainerInstances" => instance_api::list(ecs, input),
        "UpdateContainerInstancesState" => instance_api::update_state(ecs, ctx, input),
        "PutAttributes" => instance_api::put_attributes(ecs, ctx, input),
        "DeleteAttributes" => instance_api::delete_attributes(ecs, ctx, input),
        "ListAttributes" => instance_api::list_attributes(ecs, input),
        "TagResource" => tags::tag(ecs, input),
        "UntagResource" => tags::untag(ecs, input),
        "ListTagsForResource" => tags::list(ecs, input),
        _ => return None,
    };
    Some(answer)
}

/// Runs a timer that an ECS state machine set.
pub(crate) fn timer(ecs: &mut Ecs, ctx: &mut Ctx<'_>, timer: &Timer) {
    match timer {
        Timer::TaskProvisioned(arn) => ecs.provisioned(ctx, arn),
        Timer::TaskDeprovisioned(arn) => ecs.stopped(ctx, arn),
        Timer::TaskSteady(arn) => ecs.steady(ctx, arn),
        Timer::TaskForgotten(arn) => {
            ecs.tasks.remove(arn);
        }
        Timer::Service(arn) => ecs.reconcile(ctx, arn),
        Timer::ServiceForgotten(arn) => {
            if ecs.services.get(arn).is_some_and(|s| !s.is_active()) {
                ecs.services.shift_remove(arn);
            }
        }
        Timer::Deliver(_) | Timer::QueueWake => {}
    }
}

/// The throttle bucket that an operation draws from: name, burst, refill per second. [DOC request-throttling.html]
pub fn bucket(operation: &str) -> Option<(&'static str, f64, f64)> {
    Some(match operation {
        "CreateCluster"
        | "DeleteCluster"
        | "PutClusterCapacityProviders"
        | "UpdateCluster"
        | "UpdateClusterSettings" => ("cluster-modify", 20.0, 1.0),
        "DescribeClusters" | "ListClusters" => ("cluster-read", 50.0, 20.0),
        "RegisterTaskDefinition" | "DeregisterTaskDefinition" => ("task-definition-modify", 20.0, 1.0),
        "DescribeTaskDefinition" | "ListTaskDefinitions" | "ListTaskDefinitionFamilies" => {
            ("task-definition-read", 50.0, 20.0)
        }
        "DeleteTaskDefinitions" => ("task-definition-delete", 5.0, 1.0),
        "TagResource" | "UntagResource" => ("tag-modify", 20.0, 10.0),
        "ListTagsForResource" => ("tag-read", 50.0, 20.0),
        "RunTask"
        | "StartTask"
        | "StopTask"
        | "PutAttributes"
        | "DeleteAttributes"
        | "DeregisterContainerInstance"
        | "UpdateContainerInstancesState" => ("cluster-resource-modify", 100.0, 40.0),
        "DescribeTasks" | "ListTasks" | "DescribeContainerInstances" | "ListContainerInstances" | "ListAttributes" => {
            ("cluster-resource-read", 100.0, 20.0)
        }
        "RegisterContainerInstance" => ("agent-modify", 200.0, 120.0),
        "CreateService" | "UpdateService" | "DeleteService" => ("service-modify", 50.0, 5.0),
        "DescribeServices" | "ListServices" => ("service-read", 100.0, 20.0),
        "DescribeServiceDeployments" | "ListServiceDeployments" | "DescribeServiceRevisions" => {
            ("service-deployment-read", 50.0, 20.0)
        }
        _ => return None,
    })
}
