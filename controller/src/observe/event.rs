//! What EventBridge says, as the fleet's types. Times are ISO texts, the network attachment is
//! called `eni`, and AWS adds fields and types without notice: whatever is not needed is ignored,
//! and what is optional may be missing or of another type.

use super::words::{is_network, launch, node_launch, task_status, text};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;
use tasuki_core::fleet::{Change, Container, Node, ScopeId, Str, Task};

/// What an event is worth.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// Account and Region that the envelope names.
    pub scope: ScopeId,
    /// What it says itself.
    pub change: Option<Change>,
    /// What it says to look at.
    pub follow: Vec<Follow>,
}

/// Something to read again, because an event hinted at it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Follow {
    /// A service, always.
    Service {
        /// Cluster ARN.
        cluster: Str,
        /// Service ARN.
        service: Str,
    },
    /// A service, unless it is known.
    UnknownService {
        /// Cluster ARN.
        cluster: Str,
        /// Service ARN.
        service: Str,
    },
    /// A node, unless it is known and connected.
    UnknownNode {
        /// Cluster ARN.
        cluster: Str,
        /// Container-instance ARN.
        node: Str,
    },
    /// A cluster, unless it is known.
    UnknownCluster {
        /// Cluster ARN.
        cluster: Str,
    },
}

/// Why a body is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Not JSON, or not an envelope.
    #[error("the body is not an EventBridge envelope: {0}")]
    NotAnEnvelope(String),
    /// Something that is needed is missing.
    #[error("the event lacks {0}")]
    Lacks(&'static str),
    /// An ARN in it belongs to another account or Region than the envelope says.
    #[error("the event of {scope} speaks of {arn}")]
    Foreign {
        /// Account and Region of the envelope.
        scope: ScopeId,
        /// The ARN.
        arn: String,
    },
}

/// Reads one body of the queue. An event of an unknown type is usable and says nothing.
///
/// # Errors
/// [`Unusable`] names what is wrong with the body.
pub fn parse(body: &str) -> Result<Parsed, Unusable> {
    let event: Value = serde_json::from_str(body).map_err(|error| Unusable::NotAnEnvelope(error.to_string()))?;
    let kind = str_of(&event, "detail-type").ok_or(Unusable::Lacks("detail-type"))?;
    let scope = ScopeId {
        account: text(str_of(&event, "account")).ok_or(Unusable::Lacks("account"))?,
        region: text(str_of(&event, "region")).ok_or(Unusable::Lacks("region"))?,
    };
    let detail = event.get("detail").ok_or(Unusable::Lacks("detail"))?;
    if str_of(&event, "source") != Some("aws.ecs") {
        return Ok(Parsed { scope, change: None, follow: Vec::new() });
    }
    let (change, follow) = match kind {
        "ECS Task State Change" => {
            let task = task(detail)?;
            own(&scope, [&*task.arn, &*task.cluster])?;
            let mut follow = vec![Follow::UnknownCluster { cluster: task.cluster.clone() }];
            if let Some(node) = &task.node {
                follow.push(Follow::UnknownNode { cluster: task.cluster.clone(), node: node.clone() });
            }
            if let Some(service) = task.service_name().and_then(|name| service_arn(&task.cluster, name)) {
                follow.push(Follow::UnknownService { cluster: task.cluster.clone(), service });
            }
            (Some(Change::Task(Box::new(task))), follow)
        }
        "ECS Container Instance State Change" => {
            let node = node(detail)?;
            own(&scope, [&*node.arn, &*node.cluster])?;
            let gone = matches!(str_of(detail, "status"), Some("INACTIVE" | "DEREGISTERED"));
            let follow = vec![Follow::UnknownCluster { cluster: node.cluster.clone() }];
            (Some(if gone { Change::NodeGone(node.arn) } else { Change::Node(Box::new(node)) }), follow)
        }
        "ECS Deployment State Change" | "ECS Service Action" => {
            let first = event.get("resources").and_then(|resources| resources.get(0)).and_then(Value::as_str);
            let service = text(first).ok_or(Unusable::Lacks("resources[0]"))?;
            let cluster = text(str_of(detail, "clusterArn"))
                .or_else(|| cluster_of(&service))
                .ok_or(Unusable::Lacks("a cluster in detail.clusterArn or resources[0]"))?;
            own(&scope, [&*service, &*cluster])?;
            (None, vec![Follow::UnknownCluster { cluster: cluster.clone() }, Follow::Service { cluster, service }])
        }
        _ => (None, Vec::new()),
    };
    Ok(Parsed { scope, change, follow })
}

fn task(detail: &Value) -> Result<Task, Unusable> {
    let need = |name: &str, label| text(str_of(detail, name)).ok_or(Unusable::Lacks(label));
    let network = list(detail, "attachments").find(|item| str_of(item, "type").is_some_and(is_network));
    let in_attachment = |name: &str| {
        list(network?, "details").find(|pair| str_of(pair, "name") == Some(name)).and_then(|pair| str_of(pair, "value"))
    };
    let interface = || list(detail, "containers").flat_map(|item| list(item, "networkInterfaces")).next();
    let address = in_attachment("privateIPv4Address")
        .or_else(|| str_of(interface()?, "privateIpv4Address"))
        .or_else(|| in_attachment("privateIPv6Address"))
        .or_else(|| str_of(interface()?, "ipv6Address"));
    let architecture = list(detail, "attributes")
        .find(|item| str_of(item, "name") == Some("ecs.cpu-architecture"))
        .and_then(|item| str_of(item, "value"));
    Ok(Task {
        arn: need("taskArn", "detail.taskArn")?,
        cluster: need("clusterArn", "detail.clusterArn")?,
        group: text(str_of(detail, "group")).unwrap_or_default(),
        started_by: text(str_of(detail, "startedBy")),
        definition: need("taskDefinitionArn", "detail.taskDefinitionArn")?,
        launch: launch(
            str_of(detail, "launchType"),
            str_of(detail, "capacityProviderName"),
            detail.get("containerInstanceArn").is_some(),
        ),
        platform_version: text(str_of(detail, "platformVersion")),
        platform_family: text(str_of(detail, "platformFamily")),
        architecture: text(architecture),
        node: text(str_of(detail, "containerInstanceArn")),
        containers: list(detail, "containers").filter_map(container).collect(),
        status: task_status(&need("lastStatus", "detail.lastStatus")?),
        desired_stopped: str_of(detail, "desiredStatus") == Some("STOPPED"),
        version: detail.get("version").and_then(Value::as_i64).ok_or(Unusable::Lacks("detail.version"))?,
        created_at: time(detail, "createdAt"),
        started_at: time(detail, "startedAt"),
        stopped_at: time(detail, "stoppedAt"),
        stop_code: text(str_of(detail, "stopCode")),
        stopped_reason: text(str_of(detail, "stoppedReason")),
        address: address.and_then(|address| address.parse().ok()),
    })
}

fn container(item: &Value) -> Option<Container> {
    Some(Container {
        name: text(str_of(item, "name"))?,
        arn: text(str_of(item, "containerArn")).unwrap_or_default(),
        runtime_id: text(str_of(item, "runtimeId")),
        image: text(str_of(item, "image")).unwrap_or_default(),
        image_digest: text(str_of(item, "imageDigest")),
        status: text(str_of(item, "lastStatus")).unwrap_or_default(),
        exit_code: item.get("exitCode").and_then(Value::as_i64).and_then(|code| i32::try_from(code).ok()),
        reason: text(str_of(item, "reason")),
    })
}

fn node(detail: &Value) -> Result<Node, Unusable> {
    let need = |name: &str, label| text(str_of(detail, name)).ok_or(Unusable::Lacks(label));
    let free = |name: &str| {
        let resource = list(detail, "remainingResources").find(|item| str_of(item, "name") == Some(name));
        let value = resource.and_then(|item| item.get("integerValue")).and_then(Value::as_u64);
        value.and_then(|value| u32::try_from(value).ok()).unwrap_or(0)
    };
    let attributes: BTreeMap<String, String> = list(detail, "attributes")
        .filter_map(|item| {
            Some((str_of(item, "name")?.to_owned(), str_of(item, "value").unwrap_or_default().to_owned()))
        })
        .collect();
    let instance_id = str_of(detail, "ec2InstanceId");
    Ok(Node {
        arn: need("containerInstanceArn", "detail.containerInstanceArn")?,
        cluster: need("clusterArn", "detail.clusterArn")?,
        instance_id: text(instance_id),
        active: str_of(detail, "status") == Some("ACTIVE"),
        connected: detail.get("agentConnected").and_then(Value::as_bool).unwrap_or(false),
        turned_at: None,
        taints: Vec::new(),
        free_memory: free("MEMORY"),
        free_cpu: free("CPU"),
        launch: node_launch(instance_id, attributes.keys()),
        version: detail.get("version").and_then(Value::as_i64).ok_or(Unusable::Lacks("detail.version"))?,
        attributes,
    })
}

/// A body may come from anyone who can write to the queue: it may speak only of its own scope.
fn own<'a>(scope: &ScopeId, arns: impl IntoIterator<Item = &'a str>) -> Result<(), Unusable> {
    for arn in arns {
        let mut parts = arn.split(':').skip(2);
        let (service, region, account) = (parts.next(), parts.next(), parts.next());
        if (service, region, account) != (Some("ecs"), Some(&*scope.region), Some(&*scope.account)) {
            return Err(Unusable::Foreign { scope: scope.clone(), arn: arn.to_owned() });
        }
    }
    Ok(())
}

/// The service of this name in this cluster.
fn service_arn(cluster: &str, name: &str) -> Option<Str> {
    let (head, cluster) = cluster.split_once(":cluster/")?;
    Some(format!("{head}:service/{cluster}/{name}").into())
}

/// The cluster that a service's ARN names; old short ARNs name none.
fn cluster_of(service: &str) -> Option<Str> {
    let (head, tail) = service.split_once(":service/")?;
    let (cluster, _) = tail.split_once('/')?;
    Some(format!("{head}:cluster/{cluster}").into())
}

fn str_of<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name)?.as_str()
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn time(value: &Value, name: &str) -> Option<Timestamp> {
    str_of(value, name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::api;
    use aws_sdk_ecs::primitives::DateTime;
    use aws_sdk_ecs::types as ecs;
    use proptest::prelude::*;
    use serde_json::json;

    const TASK: &str = "arn:aws:ecs:us-west-2:111122223333:task/shop/d789e94343414c25b9f6bd59eEXAMPLE";

    /// The shape that AWS documents for a Fargate task, with the placeholders filled in.
    fn envelope() -> Value {
        json!({"version": "0", "id": "9bcdac79-b31f-4d3d-9410-fbd727c29fab", "detail-type": "ECS Task State Change",
        "source": "aws.ecs", "account": "111122223333", "time": "2020-01-23T17:57:58Z", "region": "us-west-2",
        "resources": [TASK],
        "detail": {
            "attachments": [{"id": "1789bcae", "type": "eni", "status": "ATTACHED", "details": [
                {"name": "subnetId", "value": "subnet-abcd1234"}, {"name": "networkInterfaceId", "value": "eni-abcd1234"},
                {"name": "macAddress", "value": "0a:98:eb:a7:29:ba"}, {"name": "privateIPv4Address", "value": "10.0.0.139"}]}],
            "attributes": [{"name": "ecs.cpu-architecture", "value": "x86_64"}],
            "availabilityZone": "us-west-2c", "clusterArn": "arn:aws:ecs:us-west-2:111122223333:cluster/shop",
            "containers": [{"containerArn": "arn:aws:ecs:us-west-2:111122223333:container/cf159fd6", "lastStatus": "RUNNING",
                "name": "app", "image": "web:1", "imageDigest": "sha256:74b2c688", "runtimeId": "106b4f5e", "taskArn": TASK,
                "networkInterfaces": [{"attachmentId": "1789bcae", "privateIpv4Address": "10.0.0.139"}], "cpu": "0"}],
            "createdAt": "2020-01-23T17:57:34.402Z", "launchType": "FARGATE", "cpu": "256", "memory": "512",
            "desiredStatus": "RUNNING", "group": "service:web", "startedBy": "ecs-svc/1", "lastStatus": "RUNNING",
            "overrides": {"containerOverrides": [{"name": "app"}]}, "connectivity": "CONNECTED",
            "connectivityAt": "2020-01-23T17:57:38.453Z", "pullStartedAt": "2020-01-23T17:57:52.103Z",
            "startedAt": "2020-01-23T17:57:58.103Z", "pullStoppedAt": "2020-01-23T17:57:55.103Z",
            "updatedAt": "2020-01-23T17:57:58.103Z", "taskArn": TASK,
            "taskDefinitionArn": "arn:aws:ecs:us-west-2:111122223333:task-definition/web:1", "version": 4,
            "platformVersion": "1.4.0", "somethingNew": {"of": ["tomorrow"]}}})
    }

    fn millis(millis: i64) -> DateTime {
        DateTime::from_millis(millis)
    }

    /// The same task as DescribeTasks gives it.
    fn described() -> ecs::Task {
        let pair = |name: &str, value: &str| ecs::KeyValuePair::builder().name(name).value(value).build();
        let interface =
            ecs::NetworkInterface::builder().attachment_id("1789bcae").private_ipv4_address("10.0.0.139").build();
        ecs::Task::builder()
            .attachments(
                ecs::Attachment::builder()
                    .r#type("ElasticNetworkInterface")
                    .details(pair("subnetId", "subnet-abcd1234"))
                    .details(pair("privateIPv4Address", "10.0.0.139"))
                    .build(),
            )
            .attributes(ecs::Attribute::builder().name("ecs.cpu-architecture").value("x86_64").build().unwrap())
            .cluster_arn("arn:aws:ecs:us-west-2:111122223333:cluster/shop")
            .containers(
                ecs::Container::builder()
                    .container_arn("arn:aws:ecs:us-west-2:111122223333:container/cf159fd6")
                    .last_status("RUNNING")
                    .name("app")
                    .image("web:1")
                    .image_digest("sha256:74b2c688")
                    .runtime_id("106b4f5e")
                    .network_interfaces(interface)
                    .build(),
            )
            .created_at(millis(1_579_802_254_402))
            .started_at(millis(1_579_802_278_103))
            .launch_type(ecs::LaunchType::Fargate)
            .desired_status("RUNNING")
            .last_status("RUNNING")
            .group("service:web")
            .started_by("ecs-svc/1")
            .task_arn(TASK)
            .task_definition_arn("arn:aws:ecs:us-west-2:111122223333:task-definition/web:1")
            .platform_version("1.4.0")
            .version(4)
            .build()
    }

    #[test]
    fn an_event_and_the_api_give_the_same_task() {
        let parsed = parse(&envelope().to_string()).unwrap();
        let Some(Change::Task(from_event)) = parsed.change else { panic!("{parsed:?}") };
        assert_eq!(*from_event, api::task(&described()).unwrap());
        assert_eq!(from_event.address, Some("10.0.0.139".parse().unwrap()));
        let service = "arn:aws:ecs:us-west-2:111122223333:service/shop/web";
        assert!(
            parsed.follow.iter().any(|f| matches!(f, Follow::UnknownService { service: s, .. } if **s == *service))
        );
    }

    #[test]
    fn a_node_event_gives_the_node_and_an_inactive_one_its_end() {
        let arn = "arn:aws:ecs:us-west-2:111122223333:container-instance/shop/b5";
        let mut event = json!({"detail-type": "ECS Container Instance State Change", "source": "aws.ecs", "account": "111122223333",
            "region": "us-west-2", "resources": [arn], "detail": {"agentConnected": true,
            "attributes": [{"name": "ecs.os-type", "value": "linux"}, {"name": "tasuki.next"}],
            "clusterArn": "arn:aws:ecs:us-west-2:111122223333:cluster/shop", "containerInstanceArn": arn, "ec2InstanceId": "i-1",
            "registeredResources": [{"name": "CPU", "type": "INTEGER", "integerValue": 2048}],
            "remainingResources": [{"name": "CPU", "type": "INTEGER", "integerValue": 1988}, {"name": "MEMORY", "type": "INTEGER", "integerValue": 767},
                {"name": "PORTS", "type": "STRINGSET", "stringSetValue": ["22"]}], "status": "ACTIVE", "version": 14801}});
        let Some(Change::Node(node)) = parse(&event.to_string()).unwrap().change else { panic!() };
        assert_eq!(
            (node.free_memory, node.free_cpu, node.version, node.active, node.connected),
            (767, 1988, 14801, true, true)
        );
        assert_eq!(node.attributes.get("tasuki.next").map(String::as_str), Some(""));
        event["detail"]["status"] = "INACTIVE".into();
        assert_eq!(parse(&event.to_string()).unwrap().change, Some(Change::NodeGone(arn.into())));
    }

    #[test]
    fn a_deployment_event_names_its_service_only_in_the_resources() {
        let service = "arn:aws:ecs:us-west-2:111122223333:service/shop/web";
        let event = json!({"detail-type": "ECS Deployment State Change", "source": "aws.ecs", "account": "111122223333",
            "region": "us-west-2", "resources": [service], "detail": {"eventType": "INFO", "eventName": "SERVICE_DEPLOYMENT_COMPLETED",
            "deploymentId": "ecs-svc/123", "updatedAt": "2020-05-23T11:11:11Z", "reason": "ECS deployment completed"}});
        let parsed = parse(&event.to_string()).unwrap();
        let cluster: Str = "arn:aws:ecs:us-west-2:111122223333:cluster/shop".into();
        assert!(parsed.follow.contains(&Follow::Service { cluster, service: service.into() }));
    }

    #[test]
    fn a_body_of_no_use_says_why() {
        assert!(matches!(parse("{"), Err(Unusable::NotAnEnvelope(_))));
        assert_eq!(parse("{}"), Err(Unusable::Lacks("detail-type")));
        let mut event = envelope();
        event["detail"]["version"] = "four".into();
        assert_eq!(parse(&event.to_string()), Err(Unusable::Lacks("detail.version")));
        let mut event = envelope();
        event["account"] = "999999999999".into();
        assert!(matches!(parse(&event.to_string()), Err(Unusable::Foreign { arn, .. }) if arn == TASK));
        let mut event = envelope();
        event["detail-type"] = "ECS Something Of Tomorrow".into();
        let parsed = parse(&event.to_string()).unwrap();
        assert!(parsed.change.is_none() && parsed.follow.is_empty());
    }

    proptest! {
        #[test]
        fn no_mutilated_event_panics(at in 0usize..4000, with in "\\PC{0,8}", cut in 0usize..40) {
            let mut body: Vec<char> = envelope().to_string().chars().collect();
            let at = at.min(body.len());
            let end = (at + cut).min(body.len());
            body.splice(at..end, with.chars());
            let _ = parse(&body.into_iter().collect::<String>());
        }

        #[test]
        fn any_one_field_of_another_type_is_survived(index in 0usize..64, number in any::<i64>()) {
            let mut event = envelope();
            let detail = event["detail"].as_object_mut().unwrap();
            let key = detail.keys().nth(index % detail.len()).unwrap().clone();
            detail.insert(key, json!([number, {"x": null}]));
            let _ = parse(&event.to_string());
        }
    }
}
