//! Static checks: what keeps a definition from carrying the sidecar, found before anything is sent.

use super::{Obstacle, containers, text};
use crate::action::{FAMILY_SUFFIX, SIDECAR, SidecarSpec, labels};
use serde_json::{Map, Value};
use tasuki_api::coverage::Reason;

/// Containers per task definition (ECS service quotas).
const CONTAINERS: usize = 10;
/// Bytes of a task definition (ECS service quotas).
const BYTES: usize = 64 * 1024;
/// Characters of a family (RegisterTaskDefinition).
const FAMILY: usize = 255;
/// Entry points that are known to insist on being PID 1: s6-overlay's, and systemd's.
const MUST_BE_PID_ONE: [&str; 4] = ["/init", "/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd"];

/// What in the definition itself speaks against the sidecar.
pub(super) fn check(fields: &Map<String, Value>, spec: &SidecarSpec) -> Result<(), Obstacle> {
    let refuse = |reason, detail: String| Err(Obstacle::new(reason, detail));
    let platform = fields.get("runtimePlatform").unwrap_or(&Value::Null);
    if let Some(family) = text(platform, "operatingSystemFamily")
        && family.to_ascii_uppercase().starts_with("WINDOWS")
    {
        return refuse(Reason::UnsupportedPlatform, format!("operatingSystemFamily is {family}"));
    }
    if let Some(architecture) = text(platform, "cpuArchitecture")
        && !["X86_64", "ARM64"].contains(&architecture.to_ascii_uppercase().as_str())
    {
        return refuse(Reason::UnsupportedArchitecture, format!("cpuArchitecture is {architecture}"));
    }
    if fields.get("networkMode").and_then(Value::as_str) == Some("none") {
        return refuse(Reason::UnsupportedNetworkMode, "networkMode is none".to_owned());
    }
    let family = fields.get("family").and_then(Value::as_str).unwrap_or_default();
    if family.is_empty() || family.len() + FAMILY_SUFFIX.len() > FAMILY {
        let detail = format!("family `{family}` leaves no room for the suffix {FAMILY_SUFFIX} (255 characters)");
        return refuse(Reason::NoRoom, detail);
    }
    let containers = containers(fields);
    if containers.is_empty() {
        return refuse(Reason::UnsupportedPlatform, "the definition has no containers".to_owned());
    }
    if let Some(taken) = containers.iter().find(|c| text(c, "name") == Some(SIDECAR)) {
        let image = text(taken, "image").unwrap_or("?");
        return refuse(Reason::NoRoom, format!("a container is already named {SIDECAR} (image {image})"));
    }
    if containers.len() >= CONTAINERS {
        return refuse(Reason::NoRoom, format!("it has {} containers; ECS allows {CONTAINERS}", containers.len()));
    }
    let has_role = fields.get("executionRoleArn").and_then(Value::as_str).is_some_and(|role| !role.is_empty());
    if !has_role && spec.agent.image.contains(".dkr.ecr.") {
        let detail = "no executionRoleArn, and the agent's image is in a private ECR repository".to_owned();
        return refuse(Reason::MissingExecutionRole, detail);
    }
    if spec.share_processes {
        if let Some(mode) = fields.get("pidMode").and_then(Value::as_str)
            && mode == "host"
        {
            return refuse(Reason::PidNamespaceConflict, "pidMode is host".to_owned());
        }
        if let Some((container, hint)) = containers.iter().find_map(|c| must_be_pid_one(c).map(|hint| (c, hint))) {
            let name = text(container, "name").unwrap_or("?");
            return refuse(Reason::PidNamespaceConflict, format!("container {name} must be PID 1 ({hint})"));
        }
    }
    Ok(())
}

/// Whether the finished definition fits.
pub(super) fn check_size(fields: &Map<String, Value>) -> Result<(), Obstacle> {
    let bytes = serde_json::to_vec(fields).map_or(usize::MAX, |text| text.len());
    if bytes >= BYTES {
        return Err(Obstacle::new(Reason::NoRoom, format!("with the agent it has {bytes} bytes; ECS allows {BYTES}")));
    }
    Ok(())
}

/// Only explicit hints count: what an image holds cannot be known from here.
fn must_be_pid_one(container: &Value) -> Option<String> {
    if container.get("dockerLabels").and_then(|l| text(l, labels::PID_ONE)) == Some("required") {
        return Some(format!("label {}=required", labels::PID_ONE));
    }
    let first =
        |key: &str| container.get(key).and_then(Value::as_array).and_then(|a| a.first()).and_then(Value::as_str);
    let program = first("entryPoint").or_else(|| first("command"))?;
    MUST_BE_PID_ONE.contains(&program).then(|| format!("it starts {program}"))
}

/// What the owner should know although it is no obstacle; one line each.
pub fn notes(definition: &Value, spec: &SidecarSpec) -> Vec<String> {
    let mut notes = Vec::new();
    let Value::Object(fields) = definition else { return notes };
    if let Some(proxy) = fields.get("proxyConfiguration").filter(|p| p.is_object()) {
        let kind = text(proxy, "type").unwrap_or("a proxy");
        notes.push(format!(
            "proxyConfiguration ({kind}) captures what the agent sends too; the agent runs as uid 0, so add 0 to IgnoredUID or open the gateway's address"
        ));
    }
    if spec.share_processes {
        notes.push(
            "pidMode task: containers of the task see each other's processes, and ECS Exec may land in any of them"
                .to_owned(),
        );
        let inits = containers(fields).iter().filter(|c| {
            c.get("linuxParameters").and_then(|l| l.get("initProcessEnabled")).and_then(Value::as_bool) == Some(true)
        });
        for container in inits {
            let name = text(container, "name").unwrap_or("?");
            notes.push(format!(
                "container {name}: its init (initProcessEnabled) is no longer PID 1 and reaps only its own children"
            ));
        }
    }
    notes
}
