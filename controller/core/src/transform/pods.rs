//! The sidecar in a manifest of Kubernetes, for pods on nodes that carry no agent.
//!
//! It is a native sidecar (an init container that restarts always), so that Jobs finish: Kubernetes ends it when the
//! application has ended. It asks for no privilege that EKS Fargate refuses. Everything else of the manifest stays as
//! it is, and rendering what was rendered before replaces the sidecar.

use super::{DROPPED, Obstacle, environment};
use crate::action::{AgentSpec, SIDECAR};
use serde_json::{Map, Value, json};
use tasuki_api::coverage::Reason;
use tasuki_api::kubernetes::{TOKEN_AUDIENCE, TOKEN_PATH, env};

/// Seconds that a token lives; the kubelet renews it at four fifths.
const TOKEN_SECONDS: u32 = 3600;
/// Name of the sidecar's volume in the pod.
const TOKEN_VOLUME: &str = "tasuki-token";
/// Annotation of the pod: the agent's version.
const VERSION: &str = "tasuki.dev/version";

/// What a manifest became.
#[derive(Clone, Debug, PartialEq)]
pub enum Rendered {
    /// With the sidecar.
    Pods(Value),
    /// It makes no pods: as it was.
    Other(Value),
}

/// One object of Kubernetes with the sidecar in its pods: a Pod, whatever has a pod template, or a List of them.
///
/// # Errors
/// The [`Obstacle`] that keeps its pods from carrying it.
pub fn render_pods(manifest: &Value, agent: &AgentSpec, cluster: &str) -> Result<Rendered, Obstacle> {
    let mut manifest = manifest.clone();
    let kind = manifest.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    let place = match kind.as_str() {
        "Pod" => "",
        "CronJob" => "/spec/jobTemplate/spec/template",
        "List" => {
            let mut any = false;
            for item in manifest.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
                let rendered = render_pods(item, agent, cluster)?;
                any |= matches!(rendered, Rendered::Pods(_));
                *item = rendered.into_value();
            }
            return Ok(if any { Rendered::Pods(manifest) } else { Rendered::Other(manifest) });
        }
        _ => "/spec/template",
    };
    let name = manifest.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("without a name").to_owned();
    let Some(Value::Object(pod)) = manifest.pointer_mut(place) else { return Ok(Rendered::Other(manifest)) };
    // Kinds of others may have a template of something else.
    if !pod.get("spec").is_some_and(|spec| spec["containers"].is_array()) {
        return Ok(Rendered::Other(manifest));
    }
    into_pod(pod, agent, cluster)
        .map_err(|obstacle| Obstacle { detail: format!("{kind} {name}: {}", obstacle.detail), ..obstacle })?;
    Ok(Rendered::Pods(manifest))
}

impl Rendered {
    /// The manifest.
    pub fn into_value(self) -> Value {
        match self {
            Self::Pods(value) | Self::Other(value) => value,
        }
    }
}

fn into_pod(pod: &mut Map<String, Value>, agent: &AgentSpec, cluster: &str) -> Result<(), Obstacle> {
    let Some(Value::Object(spec)) = pod.get_mut("spec") else { return Ok(()) };
    if spec.get("os").is_some_and(|os| os["name"] == "windows") {
        return Err(Obstacle::new(Reason::UnsupportedPlatform, "its pods run Windows"));
    }
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        let detail = "its pods use the node's network, whose traffic is not theirs alone";
        return Err(Obstacle::new(Reason::UnsupportedNetworkMode, detail));
    }
    if spec.get("resources").is_some_and(|resources| !resources.is_null()) {
        let detail =
            "its pods bound their containers' resources together (spec.resources), and a sidecar counts in them";
        return Err(Obstacle::new(Reason::NoRoom, detail));
    }
    let named = |container: &Value| container["name"] == SIDECAR;
    if spec["containers"].as_array().is_some_and(|all| all.iter().any(named)) {
        let detail = format!("a container is called {SIDECAR}, which is the sidecar's name");
        return Err(Obstacle::new(Reason::UnsupportedPlatform, detail));
    }
    // First, so that it sees the other init containers.
    list(spec, "initContainers", named)?.insert(0, sidecar(agent, cluster));
    list(spec, "volumes", |volume| volume["name"] == TOKEN_VOLUME)?.push(token_volume(TOKEN_VOLUME));
    let metadata = pod.entry("metadata").or_insert_with(|| json!({}));
    if let Value::Object(metadata) = metadata {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if annotations.is_null() {
            *annotations = json!({});
        }
        if let Value::Object(annotations) = annotations {
            annotations.insert(VERSION.to_owned(), json!(agent.version));
        }
    }
    Ok(())
}

/// A list of the pod's, made where there is none, without what we put there before.
fn list<'a>(
    spec: &'a mut Map<String, Value>,
    field: &str,
    ours: impl Fn(&Value) -> bool,
) -> Result<&'a mut Vec<Value>, Obstacle> {
    let list = spec.entry(field).or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    let Value::Array(list) = list else {
        return Err(Obstacle::new(Reason::UnsupportedPlatform, format!("spec.{field} is no list")));
    };
    list.retain(|item| !ours(item));
    Ok(list)
}

/// The sidecar, as an init container that restarts always.
pub fn sidecar(agent: &AgentSpec, cluster: &str) -> Value {
    json!({
        "name": SIDECAR,
        "image": agent.image,
        "restartPolicy": "Always",
        "env": pod_environment(agent, cluster),
        "resources": {
            "requests": {"cpu": agent.pod_cpu(), "memory": format!("{}Mi", agent.memory_mib)},
            "limits": {"memory": format!("{}Mi", agent.memory_mib)},
        },
        "securityContext": {
            // A packet socket wants NET_RAW, which is worth nothing to another user than root.
            "runAsUser": 0,
            "runAsNonRoot": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": DROPPED},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [token_mount(TOKEN_VOLUME)],
    })
}

/// The projected token with which an agent proves in which pod it is.
pub fn token_volume(name: &str) -> Value {
    let (_, file) = token_path();
    json!({"name": name, "projected": {"sources": [{"serviceAccountToken": {
        "audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": file,
    }}]}})
}

/// Where that volume is in the agent's container.
pub fn token_mount(name: &str) -> Value {
    let (directory, _) = token_path();
    json!({"name": name, "mountPath": directory, "readOnly": true})
}

fn token_path() -> (&'static str, &'static str) {
    TOKEN_PATH.rsplit_once('/').unwrap_or(("/", TOKEN_PATH))
}

/// Environment of an agent in a pod; the node's is added for one that watches the node.
pub fn pod_environment(agent: &AgentSpec, cluster: &str) -> Vec<Value> {
    let mut all = environment(agent);
    all.push(json!({"name": env::CLUSTER, "value": cluster}));
    all.extend([
        field(env::NAMESPACE, "metadata.namespace"),
        field(env::NAME, "metadata.name"),
        field(env::UID, "metadata.uid"),
    ]);
    all
}

/// A variable from the downward API.
pub fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::GatewaySpec;

    fn agent() -> AgentSpec {
        AgentSpec {
            version: "1.4.2".into(),
            image: "r/agent@sha256:abc".into(),
            sensor: "auto".into(),
            memory_mib: 128,
            cpu: "10%".into(),
            task_role: None,
            execution_role: None,
            gateway: GatewaySpec::default(),
            pods: None,
        }
    }

    fn deployment() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"replicas": 2, "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "web:1"}], "volumes": [{"name": "data", "emptyDir": {}}]},
            }},
        })
    }

    fn pods(manifest: &Value) -> Value {
        match render_pods(manifest, &agent(), "self").unwrap() {
            Rendered::Pods(value) => value,
            Rendered::Other(value) => panic!("no pods in {value}"),
        }
    }

    #[test]
    fn every_kind_with_pods_gets_the_sidecar_first_and_keeps_the_rest() {
        let template = deployment()["spec"]["template"].clone();
        let job = json!({"kind": "Job", "spec": {"template": template}});
        let cron = json!({"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": template}}}});
        let mut pod = template.clone();
        pod["kind"] = json!("Pod");
        for (manifest, place) in [
            (deployment(), "/spec/template"),
            (job, "/spec/template"),
            (cron, "/spec/jobTemplate/spec/template"),
            (pod, ""),
            (json!({"kind": "List", "items": [{"kind": "Service"}, deployment()]}), "/items/1/spec/template"),
        ] {
            let rendered = pods(&manifest);
            let spec = rendered.pointer(&format!("{place}/spec")).unwrap();
            let own = &spec["initContainers"][0];
            assert_eq!((own["name"].as_str(), own["restartPolicy"].as_str()), (Some(SIDECAR), Some("Always")));
            assert!(own["securityContext"]["capabilities"].get("add").is_none(), "EKS Fargate refuses any");
            assert_eq!(spec["volumes"][0]["name"], "data");
            assert_eq!(spec["volumes"][1]["name"], TOKEN_VOLUME);
            // Without what was added it is what it was.
            let mut back = rendered.clone();
            let at = back.pointer_mut(place).unwrap();
            at["spec"].as_object_mut().unwrap().remove("initContainers");
            at["spec"]["volumes"].as_array_mut().unwrap().pop();
            at["metadata"].as_object_mut().unwrap().remove("annotations");
            assert_eq!(back, manifest);
        }
    }

    #[test]
    fn rendering_twice_is_rendering_once_and_a_new_agent_replaces_the_old() {
        let once = pods(&deployment());
        assert_eq!(pods(&once), once);
        let newer = AgentSpec { version: "9.9.9".into(), image: "r/agent@sha256:new".into(), ..agent() };
        let again = render_pods(&once, &newer, "self").unwrap().into_value();
        let spec = &again["spec"]["template"]["spec"];
        assert_eq!(spec["initContainers"].as_array().unwrap().len(), 1);
        assert_eq!(spec["initContainers"][0]["image"], "r/agent@sha256:new");
        assert_eq!(again["spec"]["template"]["metadata"]["annotations"][VERSION], "9.9.9");
    }

    #[test]
    fn what_makes_no_pods_stays_as_it_is() {
        for manifest in [
            json!({"kind": "Service", "spec": {"ports": []}}),
            json!({"kind": "Kafka", "spec": {"template": {"spec": {"topic": 1}}}}),
            json!({"kind": "List", "items": [{"kind": "ConfigMap"}]}),
            json!({"kind": "Deployment"}),
            json!(null),
            json!([1]),
        ] {
            assert_eq!(render_pods(&manifest, &agent(), "self").unwrap(), Rendered::Other(manifest));
        }
    }

    #[test]
    fn what_cannot_carry_it_is_named_with_the_cause() {
        for (path, value, reason) in [
            ("os", json!({"name": "windows"}), Reason::UnsupportedPlatform),
            ("hostNetwork", json!(true), Reason::UnsupportedNetworkMode),
            ("containers", json!([{"name": SIDECAR}]), Reason::UnsupportedPlatform),
            ("initContainers", json!("none"), Reason::UnsupportedPlatform),
            ("volumes", json!({}), Reason::UnsupportedPlatform),
            ("resources", json!({"limits": {"memory": "1Gi"}}), Reason::NoRoom),
        ] {
            let mut manifest = deployment();
            manifest["spec"]["template"]["spec"][path] = value;
            let obstacle = render_pods(&manifest, &agent(), "self").unwrap_err();
            assert_eq!(obstacle.reason, reason);
            assert!(obstacle.detail.starts_with("Deployment web: "), "{obstacle}");
        }
    }
}
