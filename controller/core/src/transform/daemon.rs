//! The definition of the agent that runs once on every node.

use super::inject::environment;
use crate::action::{AgentSpec, DAEMON_SERVICE, SIDECAR, labels};
use serde_json::{Value, json};

/// Where findings that could not be sent yet survive a restart of the agent.
const SPOOL: &str = "/var/lib/tasuki";
/// Seconds between SIGTERM and SIGKILL: the supervisor needs 2.
const STOP_TIMEOUT: u64 = 10;

/// The node agent's definition, as RegisterTaskDefinition takes it (family `tasuki`). It shares the
/// host's processes and network; `privileged` because ECS does not know CAP_BPF and CAP_PERFMON
/// (ECS API, KernelCapabilities). It starts no container and needs no socket of one.
///
/// Mounts: `/sys/kernel` for the kernel's BTF, tracefs and debugfs; `/sys/fs/cgroup` because a
/// container sees only its own cgroup; the spool. `/proc` is the host's own through `pidMode: host`.
pub fn daemon_definition(agent: &AgentSpec) -> Value {
    let volume = |name: &str, path: &str| json!({"name": name, "host": {"sourcePath": path}});
    let mount = |name: &str, path: &str, read_only: bool| json!({"sourceVolume": name, "containerPath": path, "readOnly": read_only});
    let mut definition = json!({
        "family": DAEMON_SERVICE,
        "networkMode": "host",
        "pidMode": "host",
        "requiresCompatibilities": ["EC2", "EXTERNAL"],
        "containerDefinitions": [{
            "name": SIDECAR,
            "image": agent.image,
            "essential": true,
            "privileged": true,
            "user": "0",
            "readonlyRootFilesystem": true,
            "memory": agent.memory_mib,
            "memoryReservation": agent.memory_mib,
            "stopTimeout": STOP_TIMEOUT,
            "environment": environment(agent),
            "mountPoints": [
                mount("kernel", "/sys/kernel", false),
                mount("cgroup", "/sys/fs/cgroup", false),
                mount("spool", SPOOL, false),
            ],
            "dockerLabels": {
                (labels::VERSION): agent.version,
                (labels::SPEC): agent.fingerprint(),
            },
        }],
        "volumes": [volume("kernel", "/sys/kernel"), volume("cgroup", "/sys/fs/cgroup"), volume("spool", SPOOL)],
    });
    if let Some(role) = &agent.task_role {
        definition["taskRoleArn"] = json!(role);
    }
    if let Some(role) = &agent.execution_role {
        definition["executionRoleArn"] = json!(role);
    }
    definition
}
