//! A service as DescribeServices shows it.

use serde_json::{Value, json};

use super::service::{Controller, Scheduling, Service};
use super::{Ecs, without_nulls};
use crate::clock::epoch;

/// `deploymentConfiguration`.
pub(super) fn configuration(service: &Service) -> Value {
    let breaker = service.breaker;
    json!({
        "deploymentCircuitBreaker": {"enable": breaker.is_some(), "rollback": breaker == Some(true)},
        "maximumPercent": service.maximum,
        "minimumHealthyPercent": service.minimum,
        "strategy": "ROLLING",
    })
}

impl Ecs {
    pub(super) fn service_view(&self, service: &Service, with_tags: bool) -> Value {
        let desired = self.desired(service);
        let running = |id: Option<&str>| {
            let fits = |t: &&super::Task| {
                t.is_running() && t.is_live() && id.is_none_or(|id| t.started_by.as_deref() == Some(id))
            };
            self.tasks_of(service).filter(fits).count()
        };
        let pending = |id: Option<&str>| {
            let fits = |t: &&super::Task| {
                t.is_pending() && t.is_live() && id.is_none_or(|id| t.started_by.as_deref() == Some(id))
            };
            self.tasks_of(service).filter(fits).count()
        };
        let fargate = service.launch_type == crate::runtime::LaunchType::Fargate;
        let strategy = service.kept.get("capacityProviderStrategy").cloned();
        let deployments: Vec<Value> = service
            .deployments
            .iter()
            .enumerate()
            .map(|(at, d)| {
                without_nulls(json!({
                    "id": d.id,
                    "status": if at == 0 { "PRIMARY" } else { "ACTIVE" },
                    "taskDefinition": d.definition_arn,
                    "desiredCount": if at == 0 { desired } else { 0 },
                    "pendingCount": pending(Some(&d.id)),
                    "runningCount": running(Some(&d.id)),
                    "failedTasks": d.failed,
                    "createdAt": epoch(d.created),
                    "updatedAt": epoch(d.updated),
                    "launchType": if strategy.is_some() { Value::Null } else { service.launch_type.as_str().into() },
                    "capacityProviderStrategy": strategy,
                    "platformVersion": if fargate { json!("1.4.0") } else { Value::Null },
                    "platformFamily": if fargate { json!("Linux") } else { Value::Null },
                    "networkConfiguration": d.network,
                    "rolloutState": d.rollout.as_str(),
                    "rolloutStateReason": d.reason,
                }))
            })
            .collect();
        let events: Vec<Value> = service
            .events
            .iter()
            .map(|e| json!({"id": e.id, "createdAt": epoch(e.at), "message": e.message}))
            .collect();
        let mut view = json!({
            "serviceArn": service.arn,
            "serviceName": service.name,
            "clusterArn": service.cluster_arn,
            "status": service.status,
            "desiredCount": desired,
            "runningCount": running(None),
            "pendingCount": pending(None),
            "taskDefinition": service.definition_arn,
            "deployments": deployments,
            "deploymentConfiguration": configuration(service),
            "events": events,
            "createdAt": epoch(service.created),
            "createdBy": service.created_by,
            "schedulingStrategy": match service.scheduling { Scheduling::Replica => "REPLICA", Scheduling::Daemon => "DAEMON" },
            "propagateTags": service.propagate,
            "enableECSManagedTags": service.managed_tags,
            "enableExecuteCommand": service.exec,
            "networkConfiguration": service.primary().and_then(|p| p.network.clone()),
            "availabilityZoneRebalancing": "DISABLED",
            "resourceManagementType": "CUSTOMER",
            "tags": if with_tags { json!(service.tags) } else { Value::Null },
        });
        if service.controller != Controller::Ecs || service.kept.contains_key("deploymentController") {
            view["deploymentController"] = json!({"type": service.controller.as_str()});
        }
        if strategy.is_none() {
            view["launchType"] = service.launch_type.as_str().into();
        }
        if fargate {
            view["platformVersion"] = "LATEST".into();
            view["platformFamily"] = "Linux".into();
        }
        for (name, default) in [
            ("loadBalancers", json!([])),
            ("serviceRegistries", json!([])),
            ("placementConstraints", json!([])),
            ("placementStrategy", json!([])),
        ] {
            view[name] = service.kept.get(name).cloned().unwrap_or(default);
        }
        for name in ["capacityProviderStrategy", "healthCheckGracePeriodSeconds", "platformVersion"] {
            if let Some(value) = service.kept.get(name) {
                view[name] = value.clone();
            }
        }
        if let Some(record) =
            service.records.iter().find(|r| ["IN_PROGRESS", "ROLLBACK_IN_PROGRESS"].contains(&r.status))
        {
            view["currentServiceDeployment"] = record.arn.clone().into();
        }
        without_nulls(view)
    }
}
