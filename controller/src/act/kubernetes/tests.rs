use super::daemon_set::{Home, Role, daemon_set, heeds, name, with_heed};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};
use tasuki_api::desired::{KubernetesSpec, Preempt};
use tasuki_core::action::{AgentSpec, GatewaySpec, PodsSpec};

fn agent(edit: impl FnOnce(&mut KubernetesSpec)) -> (AgentSpec, PodsSpec) {
    let mut spec = KubernetesSpec::default();
    edit(&mut spec);
    let pods = PodsSpec {
        nodes: spec.nodes,
        tolerations: spec.tolerations,
        cpu: spec.resources.cpu,
        preempt: spec.preempt,
        pull_secrets: spec.image_pull_secrets,
    };
    let agent = AgentSpec {
        version: "1.4.2".into(),
        image: format!("registry.example.test/tasuki-agent@sha256:{}", "a".repeat(64)).into(),
        sensor: "auto".into(),
        memory_mib: 256,
        cpu: "10%".into(),
        task_role: None,
        execution_role: None,
        gateway: GatewaySpec { url: "https://g:8443".into(), ca: "ca".into(), policy_key: "key".into() },
        pods: Some(pods.clone()),
    };
    (agent, pods)
}

fn built(role: Role, edit: impl FnOnce(&mut KubernetesSpec)) -> Value {
    let (agent, pods) = agent(edit);
    let anchor = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "ConfigMap".to_owned(),
        name: "tasuki-anchor".to_owned(),
        uid: "u-1".to_owned(),
        ..OwnerReference::default()
    };
    let home = Home { cluster: "self", namespace: "tasuki-agents", monitor: "prod", anchor: &anchor };
    daemon_set(&agent, &pods, role, &home)
}

#[test]
fn the_daemon_set_is_what_the_guide_says() {
    insta::assert_json_snapshot!(built(Role::Serving, |_| {}));
}

#[test]
fn every_field_is_one_that_kubernetes_has() {
    let set = built(Role::Next, |spec| {
        spec.preempt = Preempt::LowerPriority;
        spec.image_pull_secrets = vec!["registry".to_owned()];
    });
    let typed: DaemonSet = serde_json::from_value(set.clone()).unwrap();
    let back = serde_json::to_value(&typed).unwrap();
    assert_eq!(back["spec"]["template"], set["spec"]["template"], "a field that is not known would be lost");
    assert_eq!(back["spec"]["template"]["spec"]["priorityClassName"], "tasuki-agent-preempting");
}

#[test]
fn another_spec_is_another_daemon_set_and_what_is_no_matter_of_pods_is_not() {
    let named = |edit: fn(&mut KubernetesSpec)| name(&agent(edit).0);
    let plain = named(|_| {});
    assert_eq!(plain, named(|_| {}));
    assert_ne!(plain, named(|spec| spec.image_pull_secrets = vec!["x".to_owned()]));
    assert_eq!(plain, named(|spec| spec.handover = tasuki_api::desired::Handover::DeleteFirst));
}

#[test]
fn promoting_takes_the_condition_of_the_handover_out_and_settling_puts_the_other_in() {
    let set: DaemonSet = serde_json::from_value(built(Role::Next, |_| {})).unwrap();
    let affinity = set.spec.unwrap().template.spec.unwrap().affinity.unwrap().node_affinity.unwrap();
    let terms = affinity.required_during_scheduling_ignored_during_execution.unwrap().node_selector_terms;
    let keys = |terms: &Value| -> Vec<String> {
        let expressions = terms[0]["matchExpressions"].as_array().unwrap();
        expressions
            .iter()
            .map(|e| format!("{} {}", e["key"].as_str().unwrap(), e["operator"].as_str().unwrap()))
            .collect()
    };
    let promoting = with_heed(&terms, None).unwrap();
    assert!(keys(&promoting).iter().all(|key| !key.contains("agent-next")) && keys(&promoting).len() == 4);
    let settled =
        with_heed(&serde_json::from_value::<Vec<_>>(promoting).unwrap(), Some(&heeds(Role::Serving))).unwrap();
    assert_eq!(keys(&settled).last().unwrap(), "tasuki.dev/agent-next NotIn");
    assert_eq!(settled[0]["matchExpressions"][4]["values"], json!(["only"]));
}
