//! Conditions on a node's labels, with the meaning that they have in a pod's node affinity.

use std::collections::BTreeMap;
use tasuki_api::desired::{NodeExpression, NodeOperator};

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
}
