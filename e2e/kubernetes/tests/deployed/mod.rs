//! The controller as the chart's Deployment would run it.

use serde_json::Value;
use tasuki_e2e_kubernetes::release::Release;

/// Starts it with what the Deployment tells it about the monitor `default` and sidecars.
pub async fn start(release: &mut Release) {
    let path = "--output=jsonpath={.spec.template.spec.containers[0].env}";
    let get = ["get", "deployment", "tasuki", "--namespace=tasuki-system", path];
    let variables: Value = serde_json::from_str(&release.kubectl(&get).await.unwrap()).unwrap();
    let flags = variables.as_array().unwrap().iter().filter_map(|variable| {
        let name = variable["name"].as_str().unwrap().strip_prefix("TASUKI_")?;
        let told = name.starts_with("DEFAULT_") || name == "LIVE_SIDECARS";
        let flag = Some(name.to_lowercase().replace('_', "-")).filter(|_| told)?;
        Some(format!("--{flag}={}", variable["value"].as_str().unwrap()))
    });
    let flags: Vec<String> = flags.collect();
    assert!(flags.iter().any(|flag| flag == "--default-monitor=true"), "{flags:?}");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    release.start_controller(&flags).await.unwrap();
}
