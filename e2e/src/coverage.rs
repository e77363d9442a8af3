//! What `tasuki coverage -o json` says, as far as the demos look at it.

use serde_json::Value;

/// Workload, verdict, agent version, and verdict with reason, of every task.
pub fn rows(coverage: &Value) -> Vec<(String, String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let row = |task: &Value| {
        let (verdict, reason) = (text(&task["verdict"]), text(&task["reason"]));
        let both = if reason.is_empty() { verdict.clone() } else { format!("{verdict} {reason}") };
        (text(&task["workload"]), verdict, text(&task["agentVersion"]), both)
    };
    coverage["tasks"].as_array().into_iter().flatten().map(row).collect()
}

/// No rollout is under way in the cluster of this name.
pub fn settled(coverage: &Value, cluster: &str) -> bool {
    let clusters = coverage["clusters"].as_array().into_iter().flatten();
    clusters.filter(|c| c["name"] == cluster).all(|c| c["rollout"].is_null())
}
