//! The chart: what it renders is valid to this very API server, what it installs works, and what it leaves behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod deployed;
mod objects;

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tasuki_e2e::coverage::settled;
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::agents::Agents;
use tasuki_e2e_kubernetes::programs::program;
use tasuki_e2e_kubernetes::release::{DIGEST, Release, monitor};
use tasuki_e2e_kubernetes::world::chart;
use tasuki_e2e_kubernetes::{ControlPlane, Kwok, Options, helm, kubectl};

/// Long enough for a loaded machine.
const LONG: Duration = Duration::from_secs(120);
/// Kinds of Tasuki's own.
const DEFINITIONS: usize = 7;

/// Namespaces that the values files name, and kinds of others that they use.
fn surroundings() -> String {
    let restricted = "labels: { pod-security.kubernetes.io/enforce: restricted }";
    let namespaces = [("tasuki-system", restricted), ("tasuki-agents", ""), ("agents", ""), ("security-agents", "")];
    let namespaces = namespaces
        .map(|(name, more)| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {name}, {more} }}\n"));
    let kinds = [("ServiceMonitor", "servicemonitor"), ("PrometheusRule", "prometheusrule")].map(|(kind, name)| {
        format!(
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n\
             metadata: {{ name: {name}s.monitoring.coreos.com }}\nspec:\n  group: monitoring.coreos.com\n  scope: Namespaced\n  \
             names: {{ kind: {kind}, plural: {name}s, singular: {name} }}\n  versions:\n    - {{ name: v1, served: true, storage: true, \
             schema: {{ openAPIV3Schema: {{ type: object, x-kubernetes-preserve-unknown-fields: true }} }} }}\n"
        )
    });
    [&namespaces[..], &kinds].concat().join("---\n")
}

/// The chart's files of values for its checks.
fn values() -> Vec<PathBuf> {
    let files = chart().unwrap().join("ci").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    assert!(files.len() > 10, "{files:?}");
    files
}

/// The schemas of a server as kubeconform takes them: one file for each kind. An object that says more than its schema
/// knows is refused.
async fn schemas(plane: &ControlPlane, directory: &Path) -> String {
    let openapi = kubectl(plane, &["get", "--raw", "/openapi/v2"], "").await.unwrap();
    let openapi: Value = serde_json::from_str(&openapi).unwrap();
    let mut definitions = openapi["definitions"].clone();
    let mut kinds = BTreeSet::new();
    for (name, definition) in definitions.as_object_mut().unwrap() {
        for kind in definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
            let text = |field: &str| kind[field].as_str().unwrap().to_lowercase();
            let group = text("group").split('.').next().map(|word| format!("{word}-")).filter(|group| group != "-");
            let file = format!("{}-{}{}.json", text("kind"), group.unwrap_or_default(), text("version"));
            if kinds.insert(file.clone()) {
                let schema = json!({"$ref": format!("definitions.json#/definitions/{name}")});
                std::fs::write(directory.join(file), schema.to_string()).unwrap();
            }
        }
        tighten(definition);
        // What the second version of OpenAPI cannot say: a quantity may be written as a number.
        if name.ends_with(".resource.Quantity") {
            definition["type"] = json!(["string", "number"]);
        }
    }
    std::fs::write(directory.join("definitions.json"), json!({"definitions": definitions}).to_string()).unwrap();
    format!("{}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json", directory.display())
}

fn tighten(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("format").is_some_and(|format| format == "int-or-string") {
                fields.insert("type".to_owned(), json!(["string", "integer"]));
            }
            if fields.get("properties").is_some_and(Value::is_object) && !fields.contains_key("additionalProperties") {
                fields.insert("additionalProperties".to_owned(), json!(false));
            }
            fields.values_mut().for_each(tighten);
        }
        Value::Array(values) => values.iter_mut().for_each(tighten),
        _ => {}
    }
}

/// Runs the check that needs no cluster, with schemas of one; whether all is well, and what it said.
fn check(schemas: &str) -> (bool, String) {
    let root = chart().unwrap().ancestors().nth(2).unwrap().to_owned();
    let mut command = Command::new("bash");
    command.current_dir(&root).arg("tools/chart.sh").env("KUBECONFORM_SCHEMAS", schemas);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.success(), text)
}

/// Lint, refusals, every values file rendered twice and held against the schemas of this server, and then taken by the
/// server itself.
async fn every_values_file_is_valid(plane: &ControlPlane, schemas: &str) {
    kubectl(plane, &["create", "--filename=-"], &surroundings()).await.unwrap();
    let established = ["wait", "--for=condition=Established", "customresourcedefinitions", "--all", "--timeout=60s"];
    kubectl(plane, &established, "").await.unwrap();
    let (good, said) = check(schemas);
    assert!(good, "{said}");
    let judged = said.lines().filter(|line| line.contains("Invalid: 0, Errors: 0")).count();
    assert_eq!(judged, values().len(), "{said}");

    let chart = chart().unwrap().display().to_string();
    for file in values() {
        let named = file.display().to_string();
        let render = ["template", "tasuki", &chart, "--namespace=tasuki-system", "--values", &named];
        let rendered = helm(plane, &render).await.unwrap();
        let apply = ["apply", "--dry-run=server", "--validate=strict", "--filename=-"];
        let mut ways = vec![&["--server-side"][..]];
        // The other way of applying is asked about the file that has everything.
        if named.ends_with("/all-values.yaml") {
            ways.push(&[]);
        }
        for way in ways {
            let said = kubectl(plane, &[&apply[..], way].concat(), &rendered).await;
            said.unwrap_or_else(|error| panic!("{named}: {error:#}"));
        }
    }
}

/// What the schemas and the server refuse: else the check above would prove nothing.
async fn a_wrong_field_is_refused(plane: &ControlPlane, schemas: &str) {
    let wrong = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: default}, dta: {a: b}}";
    let apply = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename=-"];
    let said = format!("{:#}", kubectl(plane, &apply, wrong).await.unwrap_err());
    assert!(said.contains("dta"), "{said}");
    let directory = tempfile::Builder::new().prefix("tasuki-").tempdir().unwrap();
    let file = directory.path().join("wrong.yaml");
    std::fs::write(&file, wrong).unwrap();
    let output = Command::new(program("kubeconform").unwrap())
        .args(["-strict", "-schema-location", schemas])
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("dta"), "{said}");
}

/// Runs what the pod of `helm test` runs, against the controller on this machine.
async fn helm_test(release: &mut Release) -> (i32, String) {
    let hooks = helm(&release.plane, &["get", "hooks", "tasuki", "--namespace=tasuki-system"]).await.unwrap();
    let pod: Value = serde_yaml::from_str(&hooks).unwrap();
    assert_eq!(pod["metadata"]["annotations"]["helm.sh/hook"], "test", "{hooks}");
    let container = &pod["spec"]["containers"][0];
    let words = [&container["command"], &container["args"]].map(|words| words.as_array().unwrap().clone()).concat();
    let words: Vec<&str> = words.iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!((words[0], words[1]), ("tasuki", "wait"));
    let server = format!("--server={}", release.controller().unwrap().web);
    let (named, kept): (Vec<&str>, Vec<&str>) = words[1..].iter().partition(|word| word.starts_with("--server="));
    assert_eq!(named, ["--server=http://tasuki.tasuki-system.svc:8080"]);
    release.controller().unwrap().tasuki(&[&kept[..], &[&server]].concat()).unwrap()
}

/// Everything that a controller makes in its life: lease, keys, freeze, monitor, agents, what it remembers of a roll.
async fn live_through_a_roll(release: &mut Release) {
    deployed::start(release).await;
    let (code, said) = helm_test(release).await;
    assert_eq!((code, said.as_str()), (0, "the controller has judged what it watches\n"));
    let (code, said) = release.controller().unwrap().tasuki(&["freeze"]).unwrap();
    assert_eq!(code, 0, "{said}");
    let (code, said) = release.controller().unwrap().tasuki(&["freeze", "--off"]).unwrap();
    assert_eq!(code, 0, "{said}");

    release.kill_controller().unwrap();
    release.install(&["enforce=true", &format!("agent.image.digest={DIGEST}")]).await.unwrap();
    deployed::start(release).await;
    let agents = Agents::start(&release.plane, &release.gateway).await.unwrap();
    let (code, said) = helm_test(release).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with("1 agent report"), "{said}");
    for version in ["1.0.0", "1.0.1"] {
        release.apply(&monitor(version)).await.unwrap();
        let what = format!("{version} serves");
        let rolled = until(&what, LONG, || async {
            let sets = release.kubectl(&["get", "daemonsets", "--namespace=tasuki-agents", "--output=name"]).await?;
            let settled = settled(&release.json(&["coverage"])?, "self");
            Ok((agents.speaking(version) == 1 && sets.lines().count() == 1 && settled).then_some(()))
        });
        if let Err(error) = rolled.await {
            panic!("{error:#}: {:#}", release.json(&["coverage"]).unwrap());
        }
    }
    let made = ["lease/tasuki", "secret/tasuki-keys", "configmap/tasuki-freeze", "configmap/tasuki-rollout"];
    let get = [&["get", "--namespace=tasuki-system"], &made[..]].concat();
    release.kubectl(&get).await.unwrap();
    // It dies, and its lease with its name in it stays.
    release.kill_controller().unwrap();
}

/// By kind, namespace and name.
async fn names(plane: &ControlPlane) -> BTreeSet<String> {
    let all = objects::all(plane).await.into_keys();
    // The API server's own, which has a name of its machine's.
    all.filter(|key| !key.starts_with("Lease.coordination.k8s.io kube-system/apiserver-")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chart_is_valid_works_and_leaves_nothing_but_definitions_and_resources() {
    let directory = tempfile::Builder::new().prefix("tasuki-").tempdir().unwrap();
    let plane = ControlPlane::start(directory.path(), "plane", Options::default()).await.unwrap();
    // What a namespace is given comes a moment after it.
    until("namespaces have what each is given", LONG, || async {
        kubectl(&plane, &["get", "serviceaccount/default", "configmap/kube-root-ca.crt"], "").await.map(Some)
    })
    .await
    .unwrap();
    let empty = names(&plane).await;
    let schemas = schemas(&plane, directory.path()).await;
    Box::pin(every_values_file_is_valid(&plane, &schemas)).await;
    Box::pin(a_wrong_field_is_refused(&plane, &schemas)).await;
    drop(plane);

    let mut release = Box::pin(Release::start(&[])).await.unwrap();
    let mut kwok = Kwok::start(&release.plane).await.unwrap();
    let node = kwok.nodes("node", 1, &BTreeMap::new()).await.unwrap().remove(0);
    release.kubectl(&["create", "namespace", "shop"]).await.unwrap();
    release.kubectl(&["create", "deployment", "web", "--namespace=shop", "--image=web"]).await.unwrap();
    release.kubectl(&["rollout", "status", "deployment/web", "--namespace=shop", "--timeout=90s"]).await.unwrap();
    Box::pin(live_through_a_roll(&mut release)).await;

    helm(&release.plane, &["uninstall", "tasuki", "--namespace=tasuki-system", "--wait", "--timeout=2m"])
        .await
        .unwrap();
    let customers = |key: &String| {
        let (kind, name) = key.split_once(' ').unwrap();
        name.starts_with("shop/")
            || name.ends_with(&format!("/{node}"))
            || (kind == "Namespace" && name == "/shop")
            // Helm's --create-namespace made it, with what every namespace has; Helm leaves it.
            || ["Namespace /tasuki-system", "ServiceAccount tasuki-system/default", "ConfigMap tasuki-system/kube-root-ca.crt"]
                .contains(&key.as_str())
    };
    let mut expected: BTreeSet<String> =
        BTreeSet::from(["prod", "default"].map(|name| format!("RuntimeMonitor.tasuki.dev /{name}")));
    let definitions = tasuki::crds::files().into_iter().map(|(_, text)| {
        let definition: Value = serde_yaml::from_str(&text).unwrap();
        format!("CustomResourceDefinition.apiextensions.k8s.io /{}", definition["metadata"]["name"].as_str().unwrap())
    });
    expected.extend(definitions);
    // The API server's own entry for a group that has definitions.
    expected.insert("APIService.apiregistration.k8s.io /v1alpha1.tasuki.dev".to_owned());
    assert_eq!(expected.len(), 2 + DEFINITIONS + 1);
    // The garbage collector takes its time for what was owned.
    let left = until("only definitions and resources are left", LONG, || async {
        let left: BTreeSet<String> =
            names(&release.plane).await.difference(&empty).filter(|key| !customers(key)).cloned().collect();
        anyhow::ensure!(left == expected, "{left:#?} are left, and not {expected:#?}");
        Ok(Some(()))
    });
    left.await.unwrap();
    let missing: Vec<_> = empty.difference(&names(&release.plane).await).cloned().collect();
    assert!(missing.is_empty(), "the cluster's own: {missing:?}");
    let labelled = release.kubectl(&["get", "nodes", "--show-labels"]).await.unwrap();
    assert!(!labelled.contains("tasuki.dev"), "{labelled}");
    Box::pin(the_next_release_begins_where_the_last_one_ended(&mut release, &node)).await;
}

/// Installed again over what was kept: its monitors are in force, and a label is taken away that a release which went in
/// the middle of a roll has left, for with it no agent would come to that node.
async fn the_next_release_begins_where_the_last_one_ended(release: &mut Release, node: &str) {
    release.kubectl(&["label", "node", node, "tasuki.dev/agent-next=only"]).await.unwrap();
    release.install(&["enforce=true", &format!("agent.image.digest={DIGEST}")]).await.unwrap();
    deployed::start(release).await;
    let _agents = Agents::start(&release.plane, &release.gateway).await.unwrap();
    let placed = until("the agent of the kept monitor runs", LONG, || async {
        let sets =
            "--output=jsonpath={.items[*].metadata.annotations.tasuki\\.dev/version} {.items[*].status.numberReady}";
        let sets = release.kubectl(&["get", "daemonsets", "--namespace=tasuki-agents", sets]).await?;
        let labelled = release.kubectl(&["get", "nodes", "--selector=tasuki.dev/agent-next", "--output=name"]).await?;
        anyhow::ensure!(sets == "1.0.1 1" && labelled.is_empty(), "DaemonSets: {sets}; in hand-over: {labelled}");
        Ok(Some(()))
    });
    if let Err(error) = placed.await {
        panic!("{error:#}: {:#}", release.json(&["coverage"]).unwrap());
    }
}
