//! Conditions on a node's labels and tolerations of its taints, with the meaning that they have in a pod.

use crate::fleet::Taint;
use std::collections::BTreeMap;
use tasuki_api::desired::{NodeExpression, NodeOperator, Toleration, TolerationOperator};

/// Taints that the pods of every DaemonSet tolerate
/// (kubernetes.io/docs/concepts/workloads/controllers/daemonset, "Taints and tolerations").
const OF_DAEMON_SETS: [&str; 6] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/unschedulable",
];

/// Whether a DaemonSet's pods with these tolerations may stand beside a taint.
pub(super) fn tolerate(tolerations: &[Toleration], taint: &Taint) -> bool {
    let one = |toleration: &Toleration| {
        let value = match toleration.operator {
            TolerationOperator::Exists => true,
            TolerationOperator::Equal => *taint.value == *toleration.value.as_deref().unwrap_or_default(),
        };
        toleration.key.as_deref().is_none_or(|key| *taint.key == *key)
            && toleration.effect.as_deref().is_none_or(|effect| *taint.effect == *effect)
            && value
    };
    OF_DAEMON_SETS.contains(&&*taint.key) || tolerations.iter().any(one)
}

/// Whether labels meet a condition.
pub(super) fn matches(expression: &NodeExpression, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&expression.key);
    let listed = || value.is_some_and(|value| expression.values.contains(value));
    let compare = |than: fn(i64, i64) -> bool| {
        let bound = expression.values.first().and_then(|bound| bound.parse().ok());
        value.and_then(|value| value.parse().ok()).zip(bound).is_some_and(|(value, bound)| than(value, bound))
    };
    match expression.operator {
        NodeOperator::In => listed(),
        NodeOperator::NotIn => !listed(),
        NodeOperator::Exists => value.is_some(),
        NodeOperator::DoesNotExist => value.is_none(),
        NodeOperator::Gt => compare(|value, bound| value > bound),
        NodeOperator::Lt => compare(|value, bound| value < bound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operator_means_what_it_means_in_an_affinity() {
        let labels = BTreeMap::from([("pool".to_owned(), "gpu".to_owned()), ("size".to_owned(), "8".to_owned())]);
        let is = |key: &str, operator, values: &[&str]| {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            matches(&NodeExpression { key: key.to_owned(), operator, values }, &labels)
        };
        assert!(is("pool", NodeOperator::In, &["cpu", "gpu"]) && !is("pool", NodeOperator::In, &["cpu"]));
        assert!(!is("none", NodeOperator::In, &["gpu"]) && is("none", NodeOperator::NotIn, &["gpu"]));
        assert!(!is("pool", NodeOperator::NotIn, &["gpu"]));
        assert!(is("pool", NodeOperator::Exists, &[]) && is("none", NodeOperator::DoesNotExist, &[]));
        assert!(is("size", NodeOperator::Gt, &["7"]) && !is("size", NodeOperator::Gt, &["8"]));
        assert!(is("size", NodeOperator::Lt, &["9"]) && !is("pool", NodeOperator::Lt, &["9"]));
    }

    #[test]
    fn a_taint_is_tolerated_by_key_value_and_effect() {
        let taint = |key: &str, value: &str, effect: &str| Taint {
            key: key.into(),
            value: value.into(),
            effect: effect.into(),
        };
        let (gpu, cordoned) =
            (taint("gpu", "yes", "NoSchedule"), taint("node.kubernetes.io/unschedulable", "", "NoSchedule"));
        let of = |text: serde_json::Value| serde_json::from_value::<Vec<Toleration>>(text).unwrap();
        for (tolerations, tolerated) in [
            (serde_json::json!([]), false),
            (serde_json::json!([{"operator": "Exists"}]), true),
            (serde_json::json!([{"key": "gpu", "operator": "Exists"}]), true),
            (serde_json::json!([{"key": "gpu", "operator": "Equal", "value": "no"}]), false),
            (serde_json::json!([{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}]), true),
            (serde_json::json!([{"key": "gpu", "operator": "Exists", "effect": "NoExecute"}]), false),
            (serde_json::json!([{"key": "other", "operator": "Exists"}]), false),
        ] {
            assert_eq!(tolerate(&of(tolerations.clone()), &gpu), tolerated, "{tolerations}");
        }
        assert!(tolerate(&[], &cordoned), "a cordon keeps no DaemonSet away");
    }
}
