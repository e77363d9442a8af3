//! The metadata documents, made from the state of a task.

use serde_json::{Value, json};

use crate::clock::iso;
use crate::ecs::{Container, Instance, Task, short};
use crate::runtime::{LaunchType, Protocol};
use crate::world::World;

/// The task and container behind a metadata token.
#[derive(Debug)]
pub struct Found<'a> {
    /// The task.
    pub task: &'a Task,
    /// The container whose token it is.
    pub container: &'a Container,
}

/// Finds a live task by a container's metadata token.
pub fn find<'a>(world: &'a World, token: &str) -> Option<Found<'a>> {
    let tasks = world.places.values().flat_map(|region| region.ecs.tasks.values());
    tasks.filter(|t| token.starts_with(&t.id) && !t.is_stopped()).find_map(|task| {
        let container = task.containers.iter().find(|c| c.metadata_token == token)?;
        Some(Found { task, container })
    })
}

/// `${ECS_CONTAINER_METADATA_URI_V4}`.
pub fn container(task: &Task, container: &Container) -> Value {
    let (mode, address) = match &task.eni {
        Some(eni) => ("awsvpc", eni.ipv4.clone()),
        None => ("bridge", container.ipv4.clone()),
    };
    let limits = json!({"CPU": container.cpu, "Memory": container.memory});
    let mut network = json!({"NetworkMode": mode, "IPv4Addresses": address.into_iter().collect::<Vec<_>>()});
    if let Some(eni) = &task.eni {
        network["MACAddress"] = eni.mac.clone().into();
        network["AttachmentIndex"] = 0.into();
    }
    compact(json!({
        "DockerId": container.runtime_id,
        "Name": container.name,
        "DockerName": container.docker_name.clone().unwrap_or_else(|| container.name.clone()),
        "Image": container.image,
        "ImageID": container.image_id,
        "Ports": ports(container),
        "Labels": container.labels,
        "DesiredStatus": task.desired_status(),
        "KnownStatus": container.last_status,
        "ExitCode": container.exit_code,
        "Limits": compact(limits),
        "CreatedAt": container.started_at.map(iso),
        "StartedAt": container.started_at.map(iso),
        "FinishedAt": container.finished_at.map(iso),
        "Type": "NORMAL",
        "ContainerARN": container.arn,
        "RestartCount": (container.restarts > 0).then_some(container.restarts),
        "Networks": [network],
        "Snapshotter": (task.launch_type == LaunchType::Fargate).then_some("overlayfs"),
    }))
}

/// `${ECS_CONTAINER_METADATA_URI_V4}/task`, and `/taskWithTags`.
pub fn task(task: &Task, with_tags: bool) -> Value {
    let fargate = task.launch_type == LaunchType::Fargate;
    let cluster =
        if fargate { task.cluster_arn.clone() } else { crate::ecs::cluster_name(&task.cluster_arn).to_owned() };
    // The document gives vCPU, the API CPU units.
    let cpu = task.cpu.parse::<f64>().ok().map(|units| units / 1024.0);
    let limits = compact(json!({"CPU": cpu, "Memory": task.memory.parse::<u32>().ok()}));
    let mut document = compact(json!({
        "Cluster": cluster,
        "ServiceName": task.service,
        "TaskARN": task.arn,
        "Family": task.family,
        "Revision": task.revision.to_string(),
        "DesiredStatus": task.desired_status(),
        "KnownStatus": task.last_status.as_str(),
        "Limits": limits.as_object().filter(|l| !l.is_empty()).map(|_| limits.clone()),
        "PullStartedAt": task.times.pull_started.map(iso),
        "PullStoppedAt": task.times.pull_stopped.map(iso),
        "ExecutionStoppedAt": task.times.execution_stopped.map(iso),
        "AvailabilityZone": task.zone,
        "LaunchType": task.launch_type.as_str(),
        "Containers": task.containers.iter().filter(|c| c.runtime_id.is_some()).map(|c| container(task, c)).collect::<Vec<_>>(),
    }));
    if with_tags {
        let tags: serde_json::Map<String, Value> =
            task.tags.iter().map(|t| (t.key.clone(), t.value.clone().into())).collect();
        document["TaskTags"] = Value::Object(tags);
    }
    document
}

/// `/stats`: the runtime's latest sample, or an empty one.
pub fn stats(world: &World, task: &Task, container: &Container) -> Value {
    world.runtime.stats(&task.arn, &container.name).unwrap_or_else(|| json!({}))
}

/// `/v1/metadata`.
pub fn introspection(instance: &Instance) -> Value {
    json!({
        "Cluster": crate::ecs::cluster_name(&instance.cluster_arn),
        "ContainerInstanceArn": instance.arn,
        "Version": "Amazon ECS Agent - v1.105.1 (*00000000)",
    })
}

/// One entry of `/v1/tasks`.
pub fn introspection_task(task: &Task) -> Value {
    let containers: Vec<Value> = task
        .containers
        .iter()
        .filter(|c| c.runtime_id.is_some())
        .map(|c| {
            compact(json!({
                "DockerId": c.runtime_id,
                "DockerName": c.docker_name,
                "Name": c.name,
                "Image": c.image,
                "ImageID": c.image_id,
                "CreatedAt": c.started_at.map(iso),
                "StartedAt": c.started_at.map(iso),
                "Ports": ports(c),
                "RestartCount": (c.restarts > 0).then_some(c.restarts),
            }))
        })
        .collect();
    json!({
        "Arn": task.arn,
        "DesiredStatus": task.desired_status(),
        "KnownStatus": task.last_status.as_str(),
        "Family": task.family,
        "Version": task.revision.to_string(),
        "Containers": containers,
    })
}

/// The ARN of the first ACTIVE instance of a cluster, for the introspection endpoint of a one-machine cloud.
pub fn first_instance(world: &World, cluster: &str) -> Option<String> {
    let all = world.places.values().flat_map(|region| region.ecs.instances.values());
    all.filter(|i| short(&i.cluster_arn) == cluster && i.status == "ACTIVE").map(|i| i.arn.clone()).next()
}

fn ports(container: &Container) -> Value {
    let list: Vec<Value> = container
        .ports
        .iter()
        .map(|p| {
            let protocol = if p.protocol == Protocol::Tcp { "tcp" } else { "udp" };
            json!({"ContainerPort": p.container_port, "HostPort": p.host_port, "Protocol": protocol})
        })
        .collect();
    if list.is_empty() { Value::Null } else { Value::Array(list) }
}

/// Absent members are left out.
fn compact(mut value: Value) -> Value {
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, member| !member.is_null());
    }
    value
}
