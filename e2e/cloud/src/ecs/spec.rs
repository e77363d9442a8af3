//! From a task and its definition to the order that the runtime gets: overrides applied, defaults resolved.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::{Container, Definition, Instance, Task};
use crate::effect::Ctx;
use crate::runtime::*;

/// SIGTERM to SIGKILL, when the definition does not say.
const STOP_TIMEOUT: u64 = 30;

fn list<'a>(value: &'a Value, member: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(member).and_then(Value::as_array).into_iter().flatten()
}

fn text(value: &Value, member: &str) -> Option<String> {
    value.get(member).and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_owned)
}

fn flag(value: &Value, member: &str) -> bool {
    value.get(member).and_then(Value::as_bool).unwrap_or(false)
}

fn number<T: TryFrom<i64>>(value: &Value, member: &str) -> Option<T> {
    value.get(member).and_then(Value::as_i64).and_then(|n| T::try_from(n).ok())
}

fn strings(value: &Value, member: &str) -> Vec<String> {
    list(value, member).filter_map(Value::as_str).map(str::to_owned).collect()
}

/// `None` when absent: an empty list is a value of its own.
fn strings_if_given(value: &Value, member: &str) -> Option<Vec<String>> {
    value.get(member).filter(|v| v.is_array()).map(|_| strings(value, member)).filter(|l| !l.is_empty())
}

fn pairs(value: &Value, member: &str, key: &str, val: &str) -> Vec<(String, String)> {
    list(value, member).filter_map(|e| Some((text(e, key)?, text(e, val).unwrap_or_default()))).collect()
}

fn map(value: &Value, member: &str) -> BTreeMap<String, String> {
    let entries = value.get(member).and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}

fn seconds(value: &Value, member: &str) -> Option<Duration> {
    number::<u64>(value, member).map(Duration::from_secs)
}

/// The order for a task.
pub(super) fn task_spec(ctx: &Ctx<'_>, task: &Task, definition: &Definition, instance: Option<&Instance>) -> TaskSpec {
    let body = Value::Object(definition.body.clone());
    let fargate = task.launch_type == LaunchType::Fargate;
    let network_mode = match definition.text("networkMode").unwrap_or_default() {
        "awsvpc" => NetworkMode::Awsvpc,
        "host" => NetworkMode::Host,
        "none" => NetworkMode::None,
        _ if fargate => NetworkMode::Awsvpc,
        _ => NetworkMode::Bridge,
    };
    let pid_mode = match definition.text("pidMode").unwrap_or_default() {
        "task" => PidMode::Task,
        "host" => PidMode::Host,
        _ => PidMode::Private,
    };
    let ipc_mode = match definition.text("ipcMode").unwrap_or_default() {
        "task" => IpcMode::Task,
        "host" => IpcMode::Host,
        "none" => IpcMode::None,
        _ => IpcMode::Private,
    };
    let architecture = body.get("runtimePlatform").and_then(|p| text(p, "cpuArchitecture"));
    let containers = task
        .containers
        .iter()
        .filter_map(|c| {
            let original = definition.containers().find(|d| text(d, "name").as_deref() == Some(&c.name))?;
            let over =
                list(&task.overrides, "containerOverrides").find(|o| text(o, "name").as_deref() == Some(&c.name));
            Some(container_spec(ctx, task, c, original, over.unwrap_or(&Value::Null)))
        })
        .collect();
    TaskSpec {
        task_arn: task.arn.clone(),
        task_id: task.id.clone(),
        cluster_arn: task.cluster_arn.clone(),
        account: ctx.place.account.clone(),
        region: ctx.place.region.clone(),
        family: task.family.clone(),
        revision: task.revision,
        service: task.service.clone(),
        launch_type: task.launch_type,
        instance: instance.map(|i| InstanceRef { arn: i.arn.clone(), ec2_instance_id: i.ec2_instance_id.clone() }),
        network_mode,
        pid_mode,
        ipc_mode,
        cpu: task.cpu.parse().ok(),
        memory: task.memory.parse().ok(),
        cpu_architecture: match architecture.as_deref() {
            Some("ARM64") => Architecture::Arm64,
            Some("X86_64") => Architecture::X86_64,
            _ => Architecture::Native,
        },
        containers,
        volumes: list(&body, "volumes").map(volume).collect(),
        credentials_id: task.credentials_id.clone(),
        subnets: task.eni.iter().map(|e| e.subnet.clone()).collect(),
        security_groups: task.security_groups.clone(),
    }
}

fn volume(value: &Value) -> VolumeSpec {
    let host = value.get("host").and_then(|h| text(h, "sourcePath"));
    let docker = value.get("dockerVolumeConfiguration").filter(|d| d.is_object());
    let source = match (host, docker) {
        (Some(path), _) => VolumeSource::HostPath(path),
        (None, Some(docker)) => VolumeSource::Docker {
            shared: text(docker, "scope").as_deref() == Some("shared"),
            driver: text(docker, "driver"),
            driver_opts: map(docker, "driverOpts"),
            autoprovision: flag(docker, "autoprovision"),
        },
        (None, None) => VolumeSource::Scratch,
    };
    VolumeSpec { name: text(value, "name").unwrap_or_default(), source }
}

fn container_spec(ctx: &Ctx<'_>, task: &Task, container: &Container, c: &Value, over: &Value) -> ContainerSpec {
    let empty = Value::Null;
    let linux = c.get("linuxParameters").unwrap_or(&empty);
    let capabilities = linux.get("capabilities").unwrap_or(&empty);
    let log = c.get("logConfiguration").unwrap_or(&empty);
    ContainerSpec {
        name: container.name.clone(),
        container_arn: container.arn.clone(),
        image: container.image.clone(),
        essential: container.essential,
        entry_point: strings_if_given(c, "entryPoint"),
        command: strings_if_given(over, "command").or_else(|| strings_if_given(c, "command")),
        environment: environment(ctx, task, container, c, over),
        working_directory: text(c, "workingDirectory"),
        user: text(c, "user"),
        privileged: flag(c, "privileged"),
        readonly_root_filesystem: flag(c, "readonlyRootFilesystem"),
        cpu: number(over, "cpu").or_else(|| number(c, "cpu")).unwrap_or(0),
        memory: number(over, "memory").or_else(|| number(c, "memory")),
        memory_reservation: number(over, "memoryReservation").or_else(|| number(c, "memoryReservation")),
        capabilities_add: strings(capabilities, "add"),
        capabilities_drop: strings(capabilities, "drop"),
        init_process_enabled: flag(linux, "initProcessEnabled"),
        shared_memory_size: number(linux, "sharedMemorySize"),
        devices: list(linux, "devices").filter_map(device).collect(),
        tmpfs: list(linux, "tmpfs")
            .filter_map(|t| {
                let size = number(t, "size")?;
                Some(Tmpfs {
                    container_path: text(t, "containerPath")?,
                    size,
                    mount_options: strings(t, "mountOptions"),
                })
            })
            .collect(),
        max_swap: number(linux, "maxSwap"),
        swappiness: number(linux, "swappiness"),
        mount_points: list(c, "mountPoints")
            .filter_map(|m| {
                let (source_volume, container_path) = (text(m, "sourceVolume")?, text(m, "containerPath")?);
                Some(MountPoint { source_volume, container_path, read_only: flag(m, "readOnly") })
            })
            .collect(),
        volumes_from: list(c, "volumesFrom")
            .filter_map(|v| {
                Some(VolumeFrom { source_container: text(v, "sourceContainer")?, read_only: flag(v, "readOnly") })
            })
            .collect(),
        port_mappings: list(c, "portMappings").filter_map(port).collect(),
        depends_on: list(c, "dependsOn").filter_map(dependency).collect(),
        start_timeout: seconds(c, "startTimeout"),
        stop_timeout: seconds(c, "stopTimeout").unwrap_or(Duration::from_secs(STOP_TIMEOUT)),
        health_check: c.get("healthCheck").filter(|h| h.is_object()).map(health_check),
        restart_policy: c.get("restartPolicy").filter(|p| flag(p, "enabled")).map(|p| RestartPolicy {
            ignored_exit_codes: list(p, "ignoredExitCodes").filter_map(|n| i32::try_from(n.as_i64()?).ok()).collect(),
            restart_attempt_period: seconds(p, "restartAttemptPeriod").unwrap_or(Duration::from_secs(300)),
        }),
        labels: labels(task, container, c),
        system_controls: pairs(c, "systemControls", "namespace", "value"),
        ulimits: list(c, "ulimits")
            .filter_map(|u| {
                let (soft, hard) = (number(u, "softLimit")?, number(u, "hardLimit")?);
                Some(Ulimit { name: text(u, "name")?, soft, hard })
            })
            .collect(),
        docker_security_options: strings(c, "dockerSecurityOptions"),
        links: strings(c, "links"),
        hostname: text(c, "hostname"),
        extra_hosts: pairs(c, "extraHosts", "hostname", "ipAddress"),
        dns_servers: strings(c, "dnsServers"),
        dns_search_domains: strings(c, "dnsSearchDomains"),
        interactive: flag(c, "interactive"),
        pseudo_terminal: flag(c, "pseudoTerminal"),
        disable_networking: flag(c, "disableNetworking"),
        log_driver: text(log, "logDriver"),
        log_options: map(log, "options"),
        metadata_token: container.metadata_token.clone(),
    }
}

fn device(value: &Value) -> Option<Device> {
    let host_path = text(value, "hostPath")?;
    let permissions =
        strings_if_given(value, "permissions").unwrap_or_else(|| ["read", "write", "mknod"].map(String::from).to_vec());
    Some(Device {
        container_path: text(value, "containerPath").unwrap_or_else(|| host_path.clone()),
        host_path,
        permissions,
    })
}

fn port(value: &Value) -> Option<PortMapping> {
    let protocol = if text(value, "protocol").as_deref() == Some("udp") { Protocol::Udp } else { Protocol::Tcp };
    let container_port = number(value, "containerPort")?;
    Some(PortMapping { container_port, host_port: number(value, "hostPort").unwrap_or(0), protocol })
}

fn dependency(value: &Value) -> Option<Dependency> {
    let condition = match text(value, "condition")?.as_str() {
        "COMPLETE" => DependencyCondition::Complete,
        "SUCCESS" => DependencyCondition::Success,
        "HEALTHY" => DependencyCondition::Healthy,
        _ => DependencyCondition::Start,
    };
    Some(Dependency { container: text(value, "containerName")?, condition })
}

fn health_check(value: &Value) -> HealthCheck {
    HealthCheck {
        command: strings(value, "command"),
        interval: seconds(value, "interval").unwrap_or(Duration::from_secs(30)),
        timeout: seconds(value, "timeout").unwrap_or(Duration::from_secs(5)),
        retries: number(value, "retries").unwrap_or(3),
        start_period: seconds(value, "startPeriod").unwrap_or_default(),
    }
}

/// The definition's labels and the five that the ECS agent sets.
fn labels(task: &Task, container: &Container, c: &Value) -> BTreeMap<String, String> {
    let mut labels = map(c, "dockerLabels");
    for (name, value) in [
        ("task-arn", task.arn.clone()),
        ("container-name", container.name.clone()),
        ("task-definition-family", task.family.clone()),
        ("task-definition-version", task.revision.to_string()),
        ("cluster", super::cluster_name(&task.cluster_arn).to_owned()),
    ] {
        labels.insert(format!("com.amazonaws.ecs.{name}"), value);
    }
    labels
}

fn environment(ctx: &Ctx<'_>, task: &Task, container: &Container, c: &Value, over: &Value) -> Vec<(String, String)> {
    let base = &ctx.settings.metadata_base;
    let mut all = pairs(c, "environment", "name", "value");
    all.extend(pairs(over, "environment", "name", "value"));
    let execution = if task.launch_type == LaunchType::Fargate { "AWS_ECS_FARGATE" } else { "AWS_ECS_EC2" };
    all.push(("ECS_CONTAINER_METADATA_URI_V4".into(), format!("{base}/v4/{}", container.metadata_token)));
    all.push(("ECS_AGENT_URI".into(), format!("{base}/api/{}", container.metadata_token)));
    all.push(("AWS_EXECUTION_ENV".into(), execution.into()));
    all.push(("AWS_REGION".into(), ctx.place.region.clone()));
    all.push(("AWS_DEFAULT_REGION".into(), ctx.place.region.clone()));
    if let Some(id) = &task.credentials_id {
        all.push(("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI".into(), format!("/v2/credentials/{id}")));
    }
    all.extend(ctx.settings.container_environment.iter().cloned());
    all
}
