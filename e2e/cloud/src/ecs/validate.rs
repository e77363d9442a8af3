//! What RegisterTaskDefinition refuses.
//!
//! Limits and sizes from the AWS documentation: 10 containers, 64 KiB, the Fargate table of CPU and memory pairs,
//! SYS_PTRACE as the only capability that may be added on Fargate.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult};

/// Containers in one definition.
const MAX_CONTAINERS: usize = 10;
/// Size of a definition.
const MAX_BYTES: usize = 64 * 1024;

/// Capabilities that ECS lets a definition name (API reference, KernelCapabilities). BPF, PERFMON and CHECKPOINT_RESTORE are
/// not among them.
const CAPABILITIES: &[&str] = &[
    "ALL",
    "AUDIT_CONTROL",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "SYSLOG",
    "WAKE_ALARM",
];

pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn list<'a>(value: Option<&'a Value>) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value.get(member).and_then(Value::as_str).unwrap_or_default()
}

/// True when `requiresCompatibilities` names a launch type.
pub(super) fn asks_for(body: &Map<String, Value>, launch_type: &str) -> bool {
    list(body.get("requiresCompatibilities")).any(|value| value.as_str() == Some(launch_type))
}

/// CPU units or MiB from `"256"`, `".25 vCPU"`, `"1GB"`.
pub(super) fn size(kind: &str, text: &str) -> Option<u32> {
    let text = text.trim();
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let lower = text.to_ascii_lowercase();
    let suffix = if kind == "cpu" { "vcpu" } else { "gb" };
    let amount: f64 = lower.strip_suffix(suffix)?.trim().parse().ok()?;
    let units = (amount * 1024.0).round();
    ((0.0..=1e9).contains(&units)).then_some(units as u32)
}

/// True when Fargate (Linux) offers this pair.
pub(super) fn fargate_pair(cpu: u32, memory: u32) -> bool {
    let stepped = |low: u32, high: u32, step: u32| {
        (low * 1024..=high * 1024).contains(&memory) && (memory - low * 1024).is_multiple_of(step * 1024)
    };
    match cpu {
        256 => matches!(memory, 512 | 1024 | 2048),
        512 => stepped(1, 4, 1),
        1024 => stepped(2, 8, 1),
        2048 => stepped(4, 16, 1),
        4096 => stepped(8, 30, 1),
        8192 => stepped(16, 60, 4),
        16384 => stepped(32, 120, 8),
        32768 => [60, 120, 244].contains(&(memory / 1024)) && memory.is_multiple_of(1024),
        _ => false,
    }
}

/// Checks a definition and says which launch types it fits.
///
/// # Errors
/// `ClientException` with ECS's text.
pub(super) fn definition(body: &Map<String, Value>) -> ApiResult<Vec<&'static str>> {
    let refuse = |message: String| Err(ApiError::client(message));
    let family = body.get("family").and_then(Value::as_str).unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if family.is_empty() || family.len() > 255 || !family.chars().all(plain) {
        return refuse("Invalid task definition family. Up to 255 letters, numbers, hyphens and underscores.".into());
    }
    if serde_json::to_vec(body).map_or(usize::MAX, |bytes| bytes.len()) > MAX_BYTES {
        return refuse("Actual length of the task definition exceeds the 65536 byte limit.".into());
    }
    let containers: Vec<&Value> = list(body.get("containerDefinitions")).collect();
    if containers.is_empty() {
        return refuse("Container list cannot be empty.".into());
    }
    if containers.len() > MAX_CONTAINERS {
        return refuse(format!("Too many containers: a task definition can have at most {MAX_CONTAINERS}."));
    }
    let mode = body.get("networkMode").and_then(Value::as_str).unwrap_or_default();
    if !["", "awsvpc", "bridge", "host", "none"].contains(&mode) {
        return refuse(format!("Invalid network mode '{mode}'."));
    }
    let pid = body.get("pidMode").and_then(Value::as_str).unwrap_or_default();
    if !["", "task", "host"].contains(&pid) {
        return refuse(format!("Invalid pid mode '{pid}'."));
    }
    each_container(body, &containers)?;
    dependencies(&containers)?;
    let fargate = fargate(body, &containers);
    if asks_for(body, "FARGATE") {
        fargate.clone()?;
    }
    let external = mode != "awsvpc";
    if asks_for(body, "EXTERNAL") && !external {
        return refuse("External only supports network modes bridge, host and none.".into());
    }
    let needs_memory = size_of(body, "memory")?.is_none();
    for container in &containers {
        if needs_memory && is_zero(container.get("memory")) && is_zero(container.get("memoryReservation")) {
            let name = text(container, "name");
            return refuse(format!(
                "Invalid setting for container '{name}'. At least one of 'memory' or 'memoryReservation' must be specified."
            ));
        }
    }
    let mut fits = vec!["EC2"];
    if external {
        fits.push("EXTERNAL");
    }
    if fargate.is_ok() {
        fits.push("FARGATE");
    }
    if ["", "awsvpc", "host"].contains(&mode) {
        fits.push("MANAGED_INSTANCES");
    }
    Ok(fits)
}

fn is_zero(value: Option<&Value>) -> bool {
    value.and_then(Value::as_u64).unwrap_or(0) == 0
}

fn size_of(body: &Map<String, Value>, kind: &str) -> ApiResult<Option<u32>> {
    match body.get(kind) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = value.as_str().and_then(|t| size(kind, t)).filter(|n| *n > 0);
            number.map(Some).ok_or_else(|| ApiError::client(format!("Invalid '{kind}' setting for task.")))
        }
    }
}

fn each_container(body: &Map<String, Value>, containers: &[&Value]) -> ApiResult<()> {
    let volumes: Vec<&str> = list(body.get("volumes")).map(|v| text(v, "name")).collect();
    let mut names = Vec::new();
    for container in containers {
        let name = text(container, "name");
        let refuse = |message: String| Err(ApiError::client(message));
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 255 || !name.chars().all(plain) {
            return refuse(format!(
                "Invalid container name '{name}'. Up to 255 letters, numbers, hyphens and underscores."
            ));
        }
        if names.contains(&name) {
            return refuse(format!("Duplicate container name '{name}'."));
        }
        names.push(name);
        if text(container, "image").is_empty() {
            return refuse(format!("Container.image should not be null or empty. Container name: {name}"));
        }
        for mount in list(container.get("mountPoints")) {
            let source = text(mount, "sourceVolume");
            if !volumes.contains(&source) {
                return refuse(format!("Unknown volume '{source}'."));
            }
        }
        let linux = container.get("linuxParameters").and_then(|p| p.get("capabilities"));
        for capability in ["add", "drop"].iter().flat_map(|side| list(linux.and_then(|c| c.get(side)))) {
            let capability = capability.as_str().unwrap_or_default();
            if !CAPABILITIES.contains(&capability) {
                return refuse(format!("Invalid capability '{capability}' for container '{name}'."));
            }
        }
        if let (Some(hard), Some(soft)) = (
            container.get("memory").and_then(Value::as_u64),
            container.get("memoryReservation").and_then(Value::as_u64),
        ) && hard < soft
        {
            return refuse(format!(
                "Invalid setting for container '{name}'. 'memory' must be greater than 'memoryReservation'."
            ));
        }
    }
    if containers.iter().all(|c| c.get("essential") == Some(&Value::Bool(false))) {
        return Err(ApiError::client("At least one container in a task definition must be essential."));
    }
    let task_memory = size_of(body, "memory")?;
    let task_cpu = size_of(body, "cpu")?;
    let sum = |f: &dyn Fn(&Value) -> u64| containers.iter().map(|c| f(c)).sum::<u64>();
    let number = |c: &Value, member: &str| c.get(member).and_then(Value::as_u64).unwrap_or(0);
    let memory = sum(&|c| match number(c, "memoryReservation") {
        0 => number(c, "memory"),
        soft => soft,
    });
    if task_memory.is_some_and(|most| memory > u64::from(most)) {
        return Err(ApiError::client(
            "Invalid setting for task: the sum of container memory exceeds the task 'memory'.",
        ));
    }
    if task_cpu.is_some_and(|most| sum(&|c| number(c, "cpu")) > u64::from(most)) {
        return Err(ApiError::client("Invalid setting for task: the sum of container cpu exceeds the task 'cpu'."));
    }
    Ok(())
}

fn dependencies(containers: &[&Value]) -> ApiResult<()> {
    let refuse = |message: String| Err(ApiError::client(message));
    let by_name: BTreeMap<&str, &Value> = containers.iter().map(|c| (text(c, "name"), *c)).collect();
    for container in containers {
        let name = text(container, "name");
        for dependency in list(container.get("dependsOn")) {
            let (on, condition) = (text(dependency, "containerName"), text(dependency, "condition"));
            let Some(target) = by_name.get(on) else {
                return refuse(format!("Container '{name}' depends on unknown container '{on}'."));
            };
            if on == name {
                return refuse(format!("Container '{name}' cannot depend on itself."));
            }
            match condition {
                "START" => {}
                "HEALTHY" if target.get("healthCheck").is_some_and(|h| !is_empty(h)) => {}
                "HEALTHY" => {
                    return refuse(format!("Container '{on}' must have a health check for condition HEALTHY."));
                }
                "COMPLETE" | "SUCCESS" if target.get("essential") == Some(&Value::Bool(false)) => {}
                "COMPLETE" | "SUCCESS" => {
                    return refuse(format!("Container '{on}' is essential: condition {condition} is not allowed."));
                }
                other => return refuse(format!("Invalid dependency condition '{other}'.")),
            }
        }
    }
    // Every container must be reachable by removing those whose dependencies are all gone.
    let mut left: Vec<&Value> = containers.to_vec();
    loop {
        let names: Vec<&str> = left.iter().map(|c| text(c, "name")).collect();
        let before = left.len();
        left.retain(|c| list(c.get("dependsOn")).any(|d| names.contains(&text(d, "containerName"))));
        if left.is_empty() {
            return Ok(());
        }
        if left.len() == before {
            return refuse("Cyclic dependency between containers.".into());
        }
    }
}

fn fargate(body: &Map<String, Value>, containers: &[&Value]) -> ApiResult<()> {
    let refuse = |message: String| Err(ApiError::client(message));
    let mode = body.get("networkMode").and_then(Value::as_str).unwrap_or_default();
    let (Some(cpu), Some(memory)) = (size_of(body, "cpu")?, size_of(body, "memory")?) else {
        return refuse("Fargate requires task definition to have 'cpu' and 'memory' at the task level.".into());
    };
    if !fargate_pair(cpu, memory) {
        return refuse(format!(
            "No Fargate configuration exists for given values: {cpu} CPU, {memory} memory. See the Amazon ECS documentation for the valid values."
        ));
    }
    if mode != "awsvpc" {
        return refuse("Fargate only supports network mode 'awsvpc'.".into());
    }
    if body.get("pidMode").and_then(Value::as_str) == Some("host") {
        return refuse("Fargate only supports pid mode 'task'.".into());
    }
    for member in ["ipcMode", "placementConstraints", "inferenceAccelerators"] {
        if body.get(member).is_some_and(|v| !is_empty(v)) {
            return refuse(format!("Fargate does not support '{member}'."));
        }
    }
    let from_host = |v: &Value| v.get("host").and_then(|h| h.get("sourcePath")).is_some_and(|p| !is_empty(p));
    if list(body.get("volumes"))
        .any(|v| from_host(v) || v.get("dockerVolumeConfiguration").is_some_and(|d| !is_empty(d)))
    {
        return refuse("Fargate compatible task definitions do not support host or Docker volumes.".into());
    }
    for container in containers {
        let name = text(container, "name");
        if container.get("privileged") == Some(&Value::Bool(true)) {
            return refuse(format!("Fargate does not support privileged containers: '{name}'."));
        }
        for member in ["dockerSecurityOptions", "extraHosts", "links", "hostname", "dnsServers", "dnsSearchDomains"] {
            if container.get(member).is_some_and(|v| !is_empty(v)) {
                return refuse(format!("Fargate does not support '{member}': '{name}'."));
            }
        }
        let linux = container.get("linuxParameters");
        for member in ["devices", "sharedMemorySize", "tmpfs", "maxSwap", "swappiness"] {
            if linux.and_then(|l| l.get(member)).is_some_and(|v| !is_empty(v)) {
                return refuse(format!("Fargate does not support linuxParameters '{member}': '{name}'."));
            }
        }
        for capability in list(linux.and_then(|l| l.get("capabilities")).and_then(|c| c.get("add"))) {
            if capability.as_str() != Some("SYS_PTRACE") {
                let capability = capability.as_str().unwrap_or_default();
                return refuse(format!(
                    "Fargate only supports adding the SYS_PTRACE capability, not {capability}: '{name}'."
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn body(change: impl FnOnce(&mut Value)) -> Map<String, Value> {
        let mut value = json!({
            "family": "web", "networkMode": "awsvpc", "cpu": "256", "memory": "512", "requiresCompatibilities": ["FARGATE"],
            "containerDefinitions": [{"name": "app", "image": "app:1"}],
        });
        change(&mut value);
        value.as_object().unwrap().clone()
    }

    #[test]
    fn fargate_sizes_follow_the_table() {
        for (cpu, memory) in
            [(256, 512), (512, 4096), (1024, 8192), (4096, 30720), (8192, 20480), (16384, 122_880), (32768, 249_856)]
        {
            assert!(fargate_pair(cpu, memory), "{cpu}/{memory}");
        }
        for (cpu, memory) in [(256, 4096), (256, 999), (512, 512), (8192, 17408), (32768, 131_072), (300, 512)] {
            assert!(!fargate_pair(cpu, memory), "{cpu}/{memory}");
        }
        assert_eq!(
            (size("cpu", ".25 vCPU"), size("memory", "1GB"), size("memory", "x")),
            (Some(256), Some(1024), None)
        );
    }

    #[test]
    fn what_ecs_refuses_is_refused() {
        type Change = fn(&mut Value);
        let cases: [(&str, Change); 11] = [
            ("No Fargate configuration", |v| v["memory"] = "999".into()),
            ("network mode", |v| v["networkMode"] = "bridge".into()),
            ("pid mode", |v| v["pidMode"] = "host".into()),
            ("SYS_PTRACE", |v| {
                v["containerDefinitions"][0]["linuxParameters"] = json!({"capabilities": {"add": ["SYS_ADMIN"]}})
            }),
            ("privileged", |v| v["containerDefinitions"][0]["privileged"] = true.into()),
            ("Too many containers", |v| {
                v["containerDefinitions"] = (0..11).map(|n| json!({"name": format!("c{n}"), "image": "i"})).collect();
            }),
            ("65536", |v| v["containerDefinitions"][0]["command"] = json!(["x".repeat(70_000)])),
            ("must be essential", |v| v["containerDefinitions"][0]["essential"] = false.into()),
            ("unknown container", |v| {
                v["containerDefinitions"][0]["dependsOn"] = json!([{"containerName": "b", "condition": "START"}])
            }),
            ("Invalid capability", |v| {
                v["containerDefinitions"][0]["linuxParameters"] = json!({"capabilities": {"drop": ["BPF"]}})
            }),
            ("task 'memory'", |v| v["containerDefinitions"][0]["memory"] = 4096.into()),
        ];
        for (words, change) in cases {
            let error = definition(&body(change)).unwrap_err();
            assert!(error.message.contains(words), "{words}: {error}");
        }
        assert_eq!(definition(&body(|_| {})).unwrap(), ["EC2", "FARGATE", "MANAGED_INSTANCES"]);
    }
}
