//! How a `RuntimeMonitor` places agents on nodes.

use super::super::yaml::at;
use super::Report;
use super::text::short;
use tasuki_api::desired::{KubernetesSpec, NodeOperator, Size, TolerationOperator};

/// Kernel buffers count against the pod's limit; with less the agent does not start.
const LEAST_MEMORY: Size = Size::from_mib(64);

pub fn pods(spec: &KubernetesSpec, report: &mut Report) {
    let root = at!["spec", "kubernetes"];
    for (i, expression) in spec.nodes.match_expressions.iter().enumerate() {
        let at = root.with("nodes").with("matchExpressions").with(i);
        report.not_blank(at.with("key"), &expression.key, "the key", "name a label of nodes");
        let values = &expression.values;
        let whole = |text: &String| text.parse::<i64>().is_ok();
        match expression.operator {
            NodeOperator::Exists | NodeOperator::DoesNotExist if values.is_empty() => {}
            NodeOperator::In | NodeOperator::NotIn if !values.is_empty() => {}
            NodeOperator::Gt | NodeOperator::Lt if values.len() == 1 && values.iter().all(whole) => {}
            NodeOperator::Gt | NodeOperator::Lt => {
                report.error(at.with("values"), "Gt and Lt compare with one whole number", "write values: [\"5\"]");
            }
            _ => report.error(
                at.with("operator"),
                "In, NotIn, Gt and Lt need values; Exists and DoesNotExist take none",
                "add `values`, or take them away",
            ),
        }
    }
    for (i, toleration) in spec.tolerations.iter().enumerate() {
        let at = root.with("tolerations").with(i);
        if toleration.operator == TolerationOperator::Equal && toleration.key.is_none() {
            report.error(at.with("operator"), "operator Equal needs a key", "add `key`, or write operator: Exists");
        }
        let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if let Some(effect) = toleration.effect.as_deref().filter(|effect| !known.contains(effect)) {
            let message = format!("`{}` is not an effect", short(effect));
            report.error(at.with("effect"), message, "write NoSchedule, PreferNoSchedule or NoExecute");
        }
    }
    if !is_cpu(&spec.resources.cpu) {
        let message = format!("`{}` is not an amount of CPU", short(&spec.resources.cpu));
        report.error(root.with("resources").with("cpu"), message, "write 50m, 1 or 0.5");
    }
    if spec.resources.memory < LEAST_MEMORY {
        let message = format!("{} is too little for an agent", spec.resources.memory);
        report.error(root.with("resources").with("memory"), message, "give it at least 64Mi; 256Mi is the default");
    }
}

/// Thousandths of a core (`50m`), or cores with at most three decimals.
fn is_cpu(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match (text.strip_suffix('m'), text.split_once('.')) {
        (Some(milli), _) => digits(milli),
        (None, Some((whole, part))) => digits(whole) && digits(part) && part.len() <= 3,
        (None, None) => digits(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn said(spec: Value) -> Vec<String> {
        let mut report = Report::default();
        pods(&serde_json::from_value(spec).unwrap(), &mut report);
        report.0.into_iter().map(|(_, fault)| format!("{}: {}", fault.path, fault.message)).collect()
    }

    #[test]
    fn what_kubernetes_would_refuse_later_is_refused_here() {
        assert_eq!(said(json!({})), Vec::<String>::new());
        let nodes = |one: Value| json!({ "nodes": { "matchExpressions": [one] } });
        for good in [
            json!({ "key": "a", "operator": "In", "values": ["x"] }),
            json!({ "key": "a", "operator": "Exists" }),
            json!({ "key": "a", "operator": "Gt", "values": ["5"] }),
        ] {
            assert_eq!(said(nodes(good)), Vec::<String>::new());
        }
        for bad in [
            json!({ "key": "a", "operator": "In" }),
            json!({ "key": "a", "operator": "Exists", "values": ["x"] }),
            json!({ "key": "a", "operator": "Gt", "values": ["x"] }),
            json!({ "key": " ", "operator": "Exists" }),
        ] {
            assert_eq!(said(nodes(bad)).len(), 1);
        }
        let found = said(json!({
            "tolerations": [{ "operator": "Equal" }, { "key": "a", "effect": "Never" }],
            "resources": { "cpu": "1.2345", "memory": "8Mi" },
        }));
        assert_eq!(
            found,
            [
                "spec.kubernetes.tolerations[0].operator: operator Equal needs a key",
                "spec.kubernetes.tolerations[1].effect: `Never` is not an effect",
                "spec.kubernetes.resources.cpu: `1.2345` is not an amount of CPU",
                "spec.kubernetes.resources.memory: 8Mi is too little for an agent",
            ]
        );
        assert!(["50m", "1", "0.5"].iter().all(|text| is_cpu(text)) && !is_cpu("") && !is_cpu(".5") && !is_cpu("m"));
    }
}
