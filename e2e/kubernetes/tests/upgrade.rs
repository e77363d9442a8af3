//! `helm upgrade` with changed definitions: what is stored stays, a controller beside newer definitions goes on, and one
//! beside older definitions enforces nothing and says what to do.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::release::DIGEST;
use tasuki_e2e_kubernetes::world::{NAMESPACE, chart};
use tasuki_e2e_kubernetes::{Kwok, Release, helm, kubectl};

const LIMIT: Duration = Duration::from_secs(60);
const VALUES: [&str; 2] = ["enforce=true", "defaultMonitor=false"];

fn monitor(version: &str, more: &str) -> String {
    format!(
        "apiVersion: tasuki.dev/v1alpha1\nkind: RuntimeMonitor\nmetadata: {{name: prod}}\nspec:\n  mode: Enforce\n  grace: 10s\n  \
         targets: {{kubernetes: {{namespaces: {{include: [shop]}}}}}}\n  exclusions: [{{matches: self/Job/shop/x, reason: \
         thrown away}}]\n  agent: {{version: {version}, image: {{repository: registry.example.test/tasuki-agent, digest: \
         \"{DIGEST}\"}}}}\n{more}"
    )
}

/// A copy of the chart in which the schema of RuntimeMonitor was changed.
async fn changed_chart(release: &Release, directory: &Path, change: impl FnOnce(&mut Value)) -> PathBuf {
    let copy = directory.join("tasuki");
    let status = std::process::Command::new("cp").arg("-r").arg(chart().unwrap()).arg(&copy).status().unwrap();
    assert!(status.success());
    let mut definition = definition(release).await.unwrap();
    let own = json!({ "name": definition["metadata"]["name"], "annotations": { "helm.sh/resource-policy": "keep" } });
    definition["metadata"] = own;
    definition.as_object_mut().unwrap().remove("status");
    change(&mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]);
    // JSON is YAML.
    std::fs::write(copy.join("files/crds/runtimemonitors.yaml"), definition.to_string()).unwrap();
    copy
}

async fn definition(release: &Release) -> Result<Value> {
    let text = release.kubectl(&["get", "crd", "runtimemonitors.tasuki.dev", "--output=json"]).await?;
    Ok(serde_json::from_str(&text)?)
}

/// `helm upgrade` to a chart that lies elsewhere.
async fn upgrade(release: &Release, chart: &Path) {
    let (chart, digest) = (chart.display().to_string(), format!("image.digest={DIGEST}"));
    let mut arguments = vec!["upgrade", "tasuki", &chart, "--namespace", NAMESPACE, "--set", &digest];
    arguments.extend(VALUES.iter().flat_map(|value| ["--set", value]));
    helm(&release.plane, &arguments).await.unwrap();
    let namespace = format!("--namespace={NAMESPACE}");
    release.kubectl(&["scale", "deployment/tasuki", "--replicas=0", &namespace]).await.unwrap();
}

async fn stored(release: &Release) -> Result<Value> {
    Ok(serde_json::from_str(&release.kubectl(&["get", "runtimemonitor", "prod", "--output=json"]).await?)?)
}

fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|one| one["type"] == kind)).cloned().unwrap_or_default()
}

/// Waits until a condition says this of the generation that is stored; returns its message.
async fn says(release: &Release, kind: &str, status: &str, reason: &str) -> String {
    let said = until("the condition is as it should be", LIMIT, || async {
        let object = stored(release).await?;
        let found = condition(&object, kind);
        let current = found["observedGeneration"] == object["metadata"]["generation"];
        if !current || found["status"] != status || found["reason"] != reason {
            bail!("{kind} should be {status}/{reason}: {}", object["status"]);
        }
        Ok(Some(found["message"].as_str().unwrap_or_default().to_owned()))
    });
    said.await.unwrap()
}

/// Names of the agent's DaemonSets.
async fn daemon_sets(release: &Release) -> Result<Vec<String>> {
    let path = "-o=jsonpath={.items[*].metadata.name}";
    let names = release.kubectl(&["get", "daemonsets", "--namespace=tasuki-agents", path]).await?;
    Ok(names.split_whitespace().map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_are_upgraded_under_stored_objects_and_an_older_one_stops_enforcing() {
    let mut release = Release::start(&VALUES).await.unwrap();
    let mut kwok = Kwok::start(&release.plane).await.unwrap();
    kwok.nodes("fake", 2, &BTreeMap::new()).await.unwrap();
    release.kubectl(&["create", "namespace", "shop"]).await.unwrap();
    release.kubectl(&["create", "deployment", "web", "--image=a:1", "--namespace=shop"]).await.unwrap();
    release.start_controller(&[]).await.unwrap();
    release.apply(&monitor("0.1.0", "")).await.unwrap();
    until("the agents are placed", LIMIT, || async { Ok((daemon_sets(&release).await?.len() == 1).then_some(())) })
        .await
        .unwrap();

    more_than_the_controller_knows(&mut release).await;
    less_than_the_controller_knows(&mut release).await;
}

async fn more_than_the_controller_knows(release: &mut Release) {
    let (before, sets) = (stored(release).await.unwrap(), daemon_sets(release).await.unwrap());
    let directory = tempfile::Builder::new().prefix("tasuki-").tempdir().unwrap();
    let newer = changed_chart(release, directory.path(), |properties| {
        properties["spec"]["properties"]["horizon"] = json!({ "type": "string", "maxLength": 20 });
        properties["spec"]["properties"]["mode"]["enum"].as_array_mut().unwrap().push("Later".into());
    });
    let newer = newer.await;
    upgrade(release, &newer).await;
    let after = stored(release).await.unwrap();
    assert_eq!(
        (&after["spec"], &after["metadata"]["generation"]),
        (&before["spec"], &before["metadata"]["generation"])
    );
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);

    // The controller does not know the field, says so and goes on with the rest.
    until("the API server takes the new field", LIMIT, || async {
        release.apply(&monitor("0.1.0", "  horizon: far\n")).await.map(Some)
    })
    .await
    .unwrap();
    let said = says(release, "Accepted", "True", "Warnings").await;
    assert!(said.contains("this version of Tasuki does not know spec.horizon, and goes on without"), "{said}");
    says(release, "Ready", "True", "InForce").await;
    // One that starts beside the newer definition is the same.
    release.kill_controller().unwrap();
    release.start_controller(&[]).await.unwrap();
    release.apply(&monitor("0.1.0", "  horizon: farther\n  priority: 3\n")).await.unwrap();
    says(release, "Ready", "True", "InForce").await;
    let object = stored(release).await.unwrap();
    assert_eq!((&object["status"]["phase"], &object["spec"]["horizon"]), (&"Settled".into(), &"farther".into()));
    assert_eq!(daemon_sets(release).await.unwrap(), sets);
}

async fn less_than_the_controller_knows(release: &mut Release) {
    let sets = daemon_sets(release).await.unwrap();
    release.kill_controller().unwrap();
    let directory = tempfile::Builder::new().prefix("tasuki-").tempdir().unwrap();
    let older = changed_chart(release, directory.path(), |properties| {
        let spec = properties["spec"]["properties"].as_object_mut().unwrap();
        spec.remove("exclusions");
        spec.remove("horizon");
    });
    let older = older.await;
    upgrade(release, &older).await;
    release.start_controller(&[]).await.unwrap();
    // What the definition lacks is dropped from what is applied: the reason for all this.
    let new = monitor("0.2.0", "");
    until("the API server drops what it does not know", LIMIT, || async {
        kubectl(&release.plane, &["apply", "--validate=false", "--filename=-"], &new).await?;
        Ok(stored(release).await?["spec"]["exclusions"].is_null().then_some(()))
    })
    .await
    .unwrap();
    let said = says(release, "Ready", "False", "DefinitionsTooOld").await;
    for part in ["runtimemonitors.tasuki.dev", "it lacks spec.exclusions", "helm upgrade", "crds.enabled=true"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(says(release, "Accepted", "True", "Warnings").await.contains("treated as Observe"));
    says(release, "Stalled", "True", "DefinitionsTooOld").await;
    assert_eq!(stored(release).await.unwrap()["status"]["phase"], "Observing");
    assert_eq!(daemon_sets(release).await.unwrap(), sets, "0.2.0 is not placed, 0.1.0 stays");

    // The definitions are upgraded: the same controller goes on.
    release.install(&VALUES).await.unwrap();
    until("the new version is placed", LIMIT, || async { Ok((daemon_sets(release).await?.len() == 2).then_some(())) })
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", release.controller().unwrap().log()));
    release.apply(&new).await.unwrap();
    says(release, "Ready", "True", "InForce").await;
    says(release, "Stalled", "False", "Going").await;
}
