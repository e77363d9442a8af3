//! Argo CD's and Flux's ways of applying, shown by kubectl making the same calls: nobody fights over a field, nothing
//! drifts once the controller is at work, and nothing that the controller made is pruned.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use anyhow::{Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;
use tasuki_e2e::controller::{Controller, free_port};
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::programs::program;
use tasuki_e2e_kubernetes::release::DIGEST;
use tasuki_e2e_kubernetes::world::{NAMESPACE, chart};
use tasuki_e2e_kubernetes::{ControlPlane, Kwok, Options, Release, helm, kubectl};
use tokio::io::AsyncWriteExt;

const LIMIT: Duration = Duration::from_secs(60);
/// Field manager of Flux.
const FLUX: [&str; 3] = ["--server-side", "--force-conflicts", "--field-manager=kustomize-controller"];
/// Field manager of Argo CD, with server-side apply.
const ARGO: [&str; 3] = ["--server-side", "--force-conflicts", "--field-manager=argocd-controller"];
/// Argo CD's way by default: client-side apply.
const ARGO_CLIENT: [&str; 1] = ["--field-manager=argocd-controller"];
/// The label by which Argo CD knows what is of an application.
const INSTANCE: &str = "app.kubernetes.io/instance=shop-app";
const KINDS: [&str; 5] = ["RuntimeMonitor", "DetectionRule", "ThreatList", "Suppression", "FindingSink"];

/// A customer's documents: all kinds that stand in a cluster, each with `labels`.
fn documents(name: &str, namespace: &str, labels: &str) -> BTreeMap<&'static str, String> {
    let specs = [
        format!(
            "{{mode: Enforce, priority: {}, grace: 10s, targets: {{kubernetes: {{namespaces: {{include: [{namespace}]}}}}}}, agent: \
             {{version: 0.1.0, image: {{repository: registry.example.test/tasuki-agent, digest: \"{DIGEST}\"}}}}}}",
            namespace.len()
        ),
        "{finding: {type: \"Custom:Runtime/DebuggerStarted\", severity: Low}, sigma: \"title: t\\nid: \
         6b1c1a0e-5a0c-4a6b-9a53-0d0c5e1f7d11\\nstatus: experimental\\nlogsource: {product: linux, category: process_creation}\\n\
         detection: {selection: {Image|endswith: /gdb}, condition: selection}\\nlevel: low\\n\"}"
            .to_owned(),
        format!("{{verdict: Threat, entity: Domain, inline: [{name}.example.com]}}"),
        format!("{{reason: a scanner of ours, filter: {{resource.service: {{equals: [{name}]}}}}}}"),
        "{stdout: {}}".to_owned(),
    ];
    let document = |(kind, spec): (&'static str, String)| {
        let text = format!(
            "---\napiVersion: tasuki.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, labels: {{{labels}}}}}\nspec: {spec}\n"
        );
        (kind, text)
    };
    KINDS.into_iter().zip(specs).map(document).collect()
}

fn text(documents: &BTreeMap<&str, String>) -> String {
    documents.values().map(String::as_str).collect()
}

/// `kubectl apply` in the way of `flags`.
async fn apply(plane: &ControlPlane, flags: &[&str], documents: &str) -> Result<String> {
    kubectl(plane, &[&["apply", "--filename=-"], flags].concat(), documents).await
}

/// What `kubectl diff` shows in the way of `flags`; nothing where there is no drift.
async fn diff(plane: &ControlPlane, flags: &[&str], documents: &str) -> Result<String> {
    let mut command = tokio::process::Command::new(program("tasuki-kubernetes")?);
    command.arg("kubectl").arg("--kubeconfig").arg(plane.kubeconfig()).args(["diff", "--filename=-"]).args(flags);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut input = child.stdin.take().unwrap();
    input.write_all(documents.as_bytes()).await?;
    drop(input);
    let output = child.wait_with_output().await?;
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) if shown.is_empty() => Ok(shown),
        Some(1) if !shown.is_empty() => Ok(shown),
        code => bail!("kubectl diff ended with {code:?}: {shown}{}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Fails with what is shown where there is drift. A status that is written between the two reads of `kubectl diff` is none.
async fn no_drift(plane: &ControlPlane, flags: &[&str], documents: &str) {
    let same = until("kubectl diff shows nothing", Duration::from_secs(15), || async {
        match diff(plane, flags, documents).await?.as_str() {
            "" => Ok(Some(())),
            shown => bail!("{shown}"),
        }
    });
    same.await.unwrap();
}

async fn json(plane: &ControlPlane, arguments: &[&str]) -> Result<Value> {
    let all = [&["get", "--output=json", "--show-managed-fields"], arguments].concat();
    Ok(serde_json::from_str(&kubectl(plane, &all, "").await?)?)
}

async fn object(plane: &ControlPlane, kind: &str, name: &str) -> Result<Value> {
    json(plane, &[&kind.to_lowercase(), name]).await
}

/// Per field manager and subresource: whether it owns anything in `spec` or `status`.
fn owners(object: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let mut owners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in entries {
        let fields = entry["fieldsV1"].as_object().unwrap().keys().map(|field| field.replacen("f:", "", 1));
        owners.entry(entry["manager"].as_str().unwrap().to_owned()).or_default().extend(fields);
    }
    owners
}

/// Waits until the controller has said of every document that it is in force, and what it made stands.
async fn settled(plane: &ControlPlane, name: &str, nodes: usize) {
    for kind in KINDS {
        until("the document is accepted", LIMIT, || async {
            let object = object(plane, kind, name).await?;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let accepted = conditions.iter().find(|one| one["type"] == "Accepted").cloned().unwrap_or_default();
            if accepted["status"] != "True" {
                bail!("{kind}/{name}: {accepted}");
            }
            let counted = kind != "RuntimeMonitor" || object["status"]["coverage"]["total"].as_u64() > Some(0);
            Ok(counted.then_some(()))
        })
        .await
        .unwrap();
    }
    until("every node has its agent", LIMIT, || async {
        let sets = json(plane, &["daemonsets", "--namespace=tasuki-agents"]).await?;
        let ready = sets["items"].as_array().unwrap().iter().map(|set| set["status"]["numberReady"].as_u64());
        Ok((ready.collect::<Vec<_>>() == [Some(nodes as u64)]).then_some(()))
    })
    .await
    .unwrap();
}

/// Applying the same again moves neither generation nor resourceVersion.
async fn applying_again_changes_nothing(plane: &ControlPlane, flags: &[&str], name: &str, documents: &str) {
    let versions = |key: &'static str| async move {
        let mut versions = Vec::new();
        for kind in KINDS {
            versions.push(object(plane, kind, name).await?["metadata"][key].clone());
        }
        anyhow::Ok(versions)
    };
    let generations = versions("generation").await.unwrap();
    assert_eq!(generations, [1; 5]);
    for _ in 0..3 {
        // The controller may write a status in between, but not always.
        until("applying again leaves the resourceVersion alone", LIMIT, || async {
            let before = versions("resourceVersion").await?;
            apply(plane, flags, documents).await?;
            Ok((versions("resourceVersion").await? == before).then_some(()))
        })
        .await
        .unwrap();
    }
    assert_eq!(versions("generation").await.unwrap(), generations);
}

/// Every object with Argo's label, of every kind that can be deleted.
async fn of_the_application(plane: &ControlPlane, kinds: &str) -> BTreeSet<String> {
    let listed = kubectl(plane, &["get", kinds, "-A", "-l", INSTANCE, "--output=name"], "").await.unwrap();
    listed.lines().map(str::to_owned).collect()
}

/// What the controller made, by kind, name and uid.
async fn made(plane: &ControlPlane) -> BTreeSet<String> {
    let mut made = BTreeSet::new();
    for (namespace, kinds) in [("tasuki-agents", "daemonsets,pods"), (NAMESPACE, "leases,secrets,configmaps")] {
        let listed = json(plane, &[kinds, "--namespace", namespace]).await.unwrap();
        for object in listed["items"].as_array().unwrap() {
            let meta = &object["metadata"];
            made.insert(format!("{}/{} {}", object["kind"], meta["name"], meta["uid"]));
        }
    }
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_applied_as_flux_and_argo_do_neither_fight_nor_drift() {
    let mut release = Release::start(&["enforce=true", "defaultMonitor=false"]).await.unwrap();
    let mut kwok = Kwok::start(&release.plane).await.unwrap();
    let nodes = kwok.nodes("fake", 2, &BTreeMap::new()).await.unwrap().len();
    for namespace in ["shop", "warehouse"] {
        release.kubectl(&["create", "namespace", namespace]).await.unwrap();
        release.kubectl(&["create", "deployment", "web", "--image=a:1", "--namespace", namespace]).await.unwrap();
    }
    release.start_controller(&[]).await.unwrap();
    let plane = &release.plane;

    // Flux: server-side apply, again at every interval, and a dry run of it to see drift.
    let labels = "kustomize.toolkit.fluxcd.io/name: apps, kustomize.toolkit.fluxcd.io/namespace: flux-system";
    let flux = text(&documents("by-flux", "warehouse", labels));
    apply(plane, &FLUX, &flux).await.unwrap();
    settled(plane, "by-flux", nodes).await;
    no_drift(plane, &FLUX, &flux).await;
    applying_again_changes_nothing(plane, &FLUX, "by-flux", &flux).await;
    for kind in KINDS {
        let object = object(plane, kind, "by-flux").await.unwrap();
        let mut expected = vec![("kustomize-controller", vec!["metadata", "spec"]), ("tasuki-status", vec!["status"])];
        if kind == "RuntimeMonitor" {
            expected.push(("tasuki-coverage", vec!["status"]));
        }
        let expected: BTreeMap<_, _> = expected
            .into_iter()
            .map(|(manager, fields)| (manager.to_owned(), fields.into_iter().map(str::to_owned).collect()))
            .collect();
        assert_eq!(owners(&object), expected, "{kind}: one manager of each field");
    }

    // Argo CD: client-side apply with its label, then server-side.
    let argo = documents("by-argo", "shop", &INSTANCE.replace('=', ": "));
    apply(plane, &ARGO_CLIENT, &text(&argo)).await.unwrap();
    settled(plane, "by-argo", nodes).await;
    no_drift(plane, &ARGO_CLIENT, &text(&argo)).await;
    let monitor = object(plane, "RuntimeMonitor", "by-argo").await.unwrap();
    let last = &monitor["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    assert!(last.is_string() && monitor["status"]["phase"] == "Settled", "{monitor}");
    applying_again_changes_nothing(plane, &ARGO_CLIENT, "by-argo", &text(&argo)).await;
    apply(plane, &ARGO, &text(&argo)).await.unwrap();
    no_drift(plane, &ARGO, &text(&argo)).await;
    applying_again_changes_nothing(plane, &ARGO, "by-argo", &text(&argo)).await;
    let owners = owners(&object(plane, "RuntimeMonitor", "by-argo").await.unwrap());
    let holders = |field: &str| -> Vec<&str> {
        owners.iter().filter(|(_, fields)| fields.contains(field)).map(|(name, _)| name.as_str()).collect()
    };
    assert_eq!(holders("spec"), ["argocd-controller"]);
    assert_eq!(holders("status"), ["tasuki-coverage", "tasuki-status"]);

    pruning_by_label_takes_documents_only(plane, &argo).await;
    let log = release.controller().unwrap().log();
    assert!(!log.contains("conflict"), "{log}");
}

async fn pruning_by_label_takes_documents_only(plane: &ControlPlane, argo: &BTreeMap<&str, String>) {
    let kinds = kubectl(plane, &["api-resources", "--verbs=list,delete", "--output=name"], "").await.unwrap();
    let kinds = kinds.lines().collect::<Vec<_>>().join(",");
    let ours: BTreeSet<String> = KINDS.map(|kind| format!("{}.tasuki.dev/by-argo", kind.to_lowercase())).into();
    assert_eq!(of_the_application(plane, &kinds).await, ours, "the label is on what Argo CD applied and nothing else");
    let before = made(plane).await;
    assert!(before.iter().any(|one| one.contains("DaemonSet")) && before.iter().any(|one| one.contains("Lease")));

    // Out of git, out of the cluster; every kind that the controller makes is open to the prune, which looks at what was
    // applied by the client.
    apply(plane, &ARGO_CLIENT, &text(argo)).await.unwrap();
    let mut fewer = argo.clone();
    fewer.remove("Suppression");
    let mut prune = vec!["apply", "--filename=-", "--prune", "-l", INSTANCE, "--field-manager=argocd-controller"];
    let allowed: Vec<String> = KINDS
        .map(|kind| format!("tasuki.dev/v1alpha1/{kind}"))
        .into_iter()
        .chain(["apps/v1/DaemonSet", "core/v1/Pod", "core/v1/ConfigMap", "core/v1/Secret"].map(str::to_owned))
        .chain(["coordination.k8s.io/v1/Lease", "core/v1/Namespace"].map(str::to_owned))
        .map(|kind| format!("--prune-allowlist={kind}"))
        .collect();
    prune.extend(allowed.iter().map(String::as_str));
    let said = kubectl(plane, &prune, &text(&fewer)).await.unwrap();
    let pruned: Vec<_> = said.lines().filter(|line| line.ends_with("pruned")).collect();
    assert_eq!(pruned, ["suppression.tasuki.dev/by-argo pruned"], "{said}");
    assert_eq!(made(plane).await, before);

    // The application itself goes.
    kubectl(plane, &["delete", &kinds, "-A", "-l", INSTANCE], "").await.unwrap();
    assert!(of_the_application(plane, &kinds).await.is_empty());
    assert_eq!(
        made(plane).await,
        before,
        "agents outlive their monitor for ten minutes, and here another one wants them"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_charts_objects_do_not_drift_while_the_controller_is_at_work() {
    let directory = tempfile::Builder::new().prefix("tasuki-").tempdir().unwrap();
    let plane = ControlPlane::start(directory.path(), "plane", Options::default()).await.unwrap();
    let mut kwok = Kwok::start(&plane).await.unwrap();
    kwok.nodes("fake", 2, &BTreeMap::new()).await.unwrap();
    kubectl(&plane, &["create", "namespace", NAMESPACE], "").await.unwrap();
    let chart = chart().unwrap().display().to_string();
    let digests = [format!("image.digest={DIGEST}"), format!("agent.image.digest={DIGEST}")];
    let mut template = vec!["template", "tasuki", &chart, "--namespace", NAMESPACE, "--skip-tests"];
    template.extend(["--set", &digests[0], "--set", &digests[1], "--set", "enforce=true"]);
    let rendered = helm(&plane, &template).await.unwrap();
    assert_eq!(helm(&plane, &template).await.unwrap(), rendered, "rendered twice");

    apply(&plane, &ARGO, &rendered).await.unwrap();
    let kubeconfig = plane.token_kubeconfig(NAMESPACE, "tasuki").await.unwrap();
    let gateway = format!("127.0.0.1:{}", free_port().unwrap());
    let mut controller = Controller::waiting(directory.path(), "controller", |command| {
        command.env("KUBECONFIG", kubeconfig).args(["--kubernetes", "--namespace", NAMESPACE, "--default-monitor"]);
        command.args(["--gateway-listen", &gateway, "--gateway-url", &format!("https://{gateway}")]);
        command.args(["--default-monitor-mode", "Enforce", "--default-agent-version", "0.1.0"]);
        command.args(["--default-agent-image", &format!("registry.example.test/tasuki-agent@{DIGEST}")]);
    })
    .unwrap();
    controller.ready().await.unwrap();
    until("the controller has placed its agents", LIMIT, || async {
        let sets = json(&plane, &["daemonsets", "--namespace=tasuki-agents"]).await?;
        Ok((sets["items"][0]["status"]["numberReady"] == 2).then_some(()))
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{}", controller.log()));
    no_drift(&plane, &ARGO, &rendered).await;

    // A field that somebody changes is drift: the check can fail.
    let other = rendered.replace("type: ClusterIP", "type: NodePort");
    assert!(other != rendered && diff(&plane, &ARGO, &other).await.unwrap().contains("NodePort"));
}
