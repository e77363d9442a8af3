//! Adding the sidecar.

use super::{Obstacle, containers, content_hash, preflight, sizes, strip, text, writable};
use crate::action::{AgentSpec, FAMILY_SUFFIX, SIDECAR, SidecarSpec, labels};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tasuki_api::agent::env;
use tasuki_api::coverage::Reason;

/// What was changed outside the added container, kept in the label [`labels::ADDED`] so that
/// [`strip`](super::strip) can undo exactly that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Added {
    /// `pidMode` was set.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pid_mode: bool,
    /// Task-level CPU and memory before the task grew, as they were written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<(Value, Value)>,
    /// Containers that got a dependsOn entry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    /// Those of them that had no `dependsOn` at all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub depends_on_new: Vec<String>,
}

impl Added {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Docker's default capabilities (moby, oci/caps/defaults.go) without NET_RAW, which the `network`
/// sensor needs. Fargate allows only SYS_PTRACE to be added, so dropping ALL and adding NET_RAW
/// again would be refused: the others are dropped by name.
pub const DROPPED: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Seconds between SIGTERM and SIGKILL: the supervisor needs 2 (docs/concepts/placement.md).
const STOP_TIMEOUT: u64 = 10;

/// The definition with the sidecar, to be registered as family `<family>-tasuki`. A definition that
/// already carries a sidecar of ours is stripped first, so that a new agent replaces the old one, and
/// keeps the source that it names; otherwise `source_arn` is the definition that it is made from.
///
/// # Errors
/// The [`Obstacle`] that keeps the definition from carrying it.
pub fn inject(definition: &Value, spec: &SidecarSpec, source_arn: &str) -> Result<Value, Obstacle> {
    let source = owners_form(definition)?;
    let hash = content_hash(&source);
    let source_arn = strip::find(definition).and_then(|c| strip::label(c, labels::SOURCE)).unwrap_or(source_arn);
    let marks = [(labels::SOURCE, source_arn.to_owned()), (labels::SOURCE_HASH, hash)];
    let mut injected = add(&source, spec, &marks)?;
    if let Some(Value::String(family)) = injected.get_mut("family") {
        family.push_str(FAMILY_SUFFIX);
    }
    preflight::check_size(&injected)?;
    Ok(Value::Object(injected))
}

/// The definition with the sidecar for the owner's own pipeline: the family stays as it is, and no
/// label names a source, so the controller takes it as the owner's and never changes it.
///
/// # Errors
/// The [`Obstacle`] that keeps the definition from carrying it.
pub fn render(definition: &Value, spec: &SidecarSpec) -> Result<Value, Obstacle> {
    let source = owners_form(definition)?;
    let rendered = add(&source, spec, &[])?;
    preflight::check_size(&rendered)?;
    Ok(Value::Object(rendered))
}

/// What an injected definition was made from: the hash of its source and the fingerprint of the
/// sidecar spec. Two that agree in both need not both be registered. ECS fills in defaults when it
/// registers, so the whole content of what was sent and what is described would not compare equal.
pub fn made_from(definition: &Value) -> Option<(&str, &str)> {
    let container = strip::find(definition)?;
    strip::label(container, labels::SOURCE_HASH).zip(strip::label(container, labels::SPEC))
}

fn owners_form(definition: &Value) -> Result<Value, Obstacle> {
    match strip::carries_sidecar(definition) {
        true => strip::strip(definition),
        false => writable(definition).map(Value::Object),
    }
}

fn add(source: &Value, spec: &SidecarSpec, marks: &[(&str, String)]) -> Result<Map<String, Value>, Obstacle> {
    let mut fields = writable(source)?;
    preflight::check(&fields, spec)?;
    let mut added = Added::default();
    if spec.share_processes && fields.get("pidMode").is_none_or(Value::is_null) {
        // A null would be no value on the wire; it is told apart so that the inverse is exact.
        if !fields.contains_key("pidMode") {
            added.pid_mode = true;
            fields.insert("pidMode".to_owned(), json!("task"));
        } else {
            return Err(Obstacle::new(Reason::UnsupportedPlatform, "pidMode is null; leave the field out"));
        }
    }
    let cpu = make_room(&mut fields, spec, &mut added)?;
    if spec.fail_closed {
        wait_for_agent(&mut fields, &mut added)?;
    }
    let mut docker_labels = Map::new();
    docker_labels.insert(labels::VERSION.to_owned(), json!(spec.agent.version));
    docker_labels.insert(labels::SPEC.to_owned(), json!(spec.fingerprint()));
    for (label, value) in marks {
        docker_labels.insert((*label).to_owned(), json!(value));
    }
    if !added.is_nothing() {
        // Plain data: serialising it cannot fail, and a null would only fail the inverse's test.
        let text = serde_json::to_string(&added).unwrap_or_default();
        docker_labels.insert(labels::ADDED.to_owned(), json!(text));
    }
    let container = sidecar(spec, cpu, docker_labels, log_configuration(containers(&fields)));
    if let Some(Value::Array(all)) = fields.get_mut("containerDefinitions") {
        all.push(container);
    }
    Ok(fields)
}

/// Finds memory and CPU for the agent inside the task's own, or lets the task grow; answers the
/// CPU units that the agent may reserve.
fn make_room(fields: &mut Map<String, Value>, spec: &SidecarSpec, added: &mut Added) -> Result<Option<u64>, Obstacle> {
    let (reserved_cpu, reserved_memory) = sizes::reserved(containers(fields));
    let wanted = u64::from(spec.agent.memory_mib);
    let (cpu, memory) = (sizes::task_cpu(fields), sizes::task_memory(fields));
    if let Some(memory) = memory
        && reserved_memory.saturating_add(wanted) > memory
    {
        let full = format!("its containers reserve {reserved_memory} of {memory} MiB, the agent needs {wanted}");
        if !spec.grow {
            return Err(Obstacle::new(Reason::NoRoom, full));
        }
        let Some((next_cpu, next_memory)) =
            sizes::next_size(cpu.unwrap_or(256), reserved_memory.saturating_add(wanted))
        else {
            return Err(Obstacle::new(Reason::NoRoom, format!("{full}, and no Fargate size is larger")));
        };
        let (old_cpu, old_memory) = (fields.get("cpu").cloned(), fields.get("memory").cloned());
        if let (Some(old_cpu), Some(old_memory)) = (old_cpu, old_memory) {
            added.size = Some((old_cpu, old_memory));
            fields.insert("cpu".to_owned(), json!(next_cpu.to_string()));
            fields.insert("memory".to_owned(), json!(next_memory.to_string()));
        } else {
            return Err(Obstacle::new(Reason::NoRoom, format!("{full}, and the task names no cpu to grow from")));
        }
    }
    // Without CPU room no `cpu` is set: the agent shares what is free.
    let share = sizes::task_cpu(fields).map(|cpu| agent_cpu(&spec.agent, cpu));
    Ok(share
        .zip(sizes::task_cpu(fields))
        .filter(|(share, cpu)| *share > 0 && reserved_cpu + share <= *cpu)
        .map(|(s, _)| s))
}

/// The agent's share of the task's CPU units.
fn agent_cpu(agent: &AgentSpec, task: u64) -> u64 {
    let share: tasuki_api::desired::Ratio = agent.cpu.parse().unwrap_or_default();
    (task as f64 * share.as_fraction()) as u64
}

/// FailClosed: every other container starts only when the agent is healthy.
fn wait_for_agent(fields: &mut Map<String, Value>, added: &mut Added) -> Result<(), Obstacle> {
    let Some(Value::Array(all)) = fields.get_mut("containerDefinitions") else { return Ok(()) };
    for container in all {
        let name = text(container, "name").unwrap_or_default().to_owned();
        let entry = json!({"containerName": SIDECAR, "condition": "HEALTHY"});
        let Value::Object(container) = container else { continue };
        match container.get_mut("dependsOn") {
            Some(Value::Array(waits)) => waits.push(entry),
            Some(_) => {
                let detail = format!("dependsOn of container {name} is not a list");
                return Err(Obstacle::new(Reason::UnsupportedPlatform, detail));
            }
            None => {
                container.insert("dependsOn".to_owned(), json!([entry]));
                added.depends_on_new.push(name.clone());
            }
        }
        added.depends_on.push(name);
    }
    Ok(())
}

/// Where the agent logs: where the first container that uses awslogs does, under a prefix of its
/// own. Nothing is created for it, and no secret is taken along.
fn log_configuration(containers: &[Value]) -> Option<Value> {
    let options = containers.iter().find_map(|c| {
        let log = c.get("logConfiguration")?;
        let options = log.get("options").filter(|_| text(log, "logDriver") == Some("awslogs"))?;
        text(options, "awslogs-group").zip(text(options, "awslogs-region"))
    });
    options.map(|(group, region)| {
        json!({"logDriver": "awslogs", "options": {
            "awslogs-group": group, "awslogs-region": region, "awslogs-stream-prefix": "tasuki",
        }})
    })
}

/// The environment that lets an agent find and trust its gateway, as a list of names and values: ECS and Kubernetes write it alike.
pub fn environment(agent: &AgentSpec) -> Vec<Value> {
    let pairs = [
        (env::GATEWAY, agent.gateway.url.to_string()),
        (env::GATEWAY_CA, agent.gateway.ca.to_string()),
        (env::POLICY_KEY, agent.gateway.policy_key.to_string()),
        (env::SENSOR, agent.sensor.to_string()),
        (env::MEMORY_MIB, agent.memory_mib.to_string()),
        (env::CPU, agent.cpu.to_string()),
    ];
    pairs.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

fn sidecar(spec: &SidecarSpec, cpu: Option<u64>, docker_labels: Map<String, Value>, log: Option<Value>) -> Value {
    let mut capabilities = json!({"drop": DROPPED});
    if spec.share_processes {
        capabilities["add"] = json!(["SYS_PTRACE"]);
    }
    let mut container = json!({
        "name": SIDECAR,
        "image": spec.agent.image,
        // A crash of the agent must never stop the application; the supervisor restarts it.
        "essential": false,
        // SYS_PTRACE is worth nothing to another user than root.
        "user": "0",
        "readonlyRootFilesystem": true,
        "memory": spec.agent.memory_mib,
        "memoryReservation": spec.agent.memory_mib,
        "stopTimeout": STOP_TIMEOUT,
        "environment": environment(&spec.agent),
        "linuxParameters": {"capabilities": capabilities},
        "dockerLabels": docker_labels,
    });
    if let Some(cpu) = cpu {
        container["cpu"] = json!(cpu);
    }
    if let Some(log) = log {
        container["logConfiguration"] = log;
    }
    if spec.fail_closed {
        container["healthCheck"] = json!({
            "command": ["CMD", "/tasuki-agent", "healthy"], "interval": 5, "timeout": 5, "retries": 3, "startPeriod": 10,
        });
    }
    container
}
