//! What the chart grants the controller, and what holds it to that: RBAC, a policy on nodes, Pod Security.
//!
//! The controller runs as its own ServiceAccount, and the API server writes down whatever that account asks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod admission;
#[path = "../audit/mod.rs"]
mod audit;
#[path = "../deployed/mod.rs"]
mod deployed;
mod grants;
#[path = "../objects/mod.rs"]
mod objects;

use admission::{as_controller, refused};
use audit::{Audit, Request, credential};
use grants::grants;
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tasuki_e2e::coverage::{rows, settled};
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::agents::Agents;
use tasuki_e2e_kubernetes::release::{DIGEST, Release, monitor};
use tasuki_e2e_kubernetes::world::NAMESPACE;
use tasuki_e2e_kubernetes::{Kwok, kubectl};

/// Long enough for a loaded machine.
const LONG: Duration = Duration::from_secs(90);
const WEB: &str = "Deployment/shop/web";

/// Pods come as a stream; they are listed where that cannot be, or not again (tests/watches.rs).
const LATER_LISTS: &str = "list core/pods";

/// One of each kind, for which nothing leaves the machine: the scope of AWS is refused.
const KINDS: &str = r#"
apiVersion: tasuki.dev/v1alpha1
kind: AwsScope
metadata: { name: refused }
spec: { regions: [eu-west-1], gateway: "https://gateway.example.test/path" }
---
apiVersion: tasuki.dev/v1alpha1
kind: KubernetesScope
metadata: { name: other }
spec: { kubeconfigSecretRef: other }
---
apiVersion: tasuki.dev/v1alpha1
kind: DetectionRule
metadata: { name: refused }
spec: { sigma: nothing, finding: { type: "Custom:Runtime/A" } }
---
apiVersion: tasuki.dev/v1alpha1
kind: ThreatList
metadata: { name: pools }
spec: { verdict: Threat, entity: Domain, category: CryptoCurrency, inline: [pool.example.test] }
---
apiVersion: tasuki.dev/v1alpha1
kind: Suppression
metadata: { name: scanner }
spec: { reason: ours, filter: { type: { equals: ["Custom:Runtime/A"] } } }
---
apiVersion: tasuki.dev/v1alpha1
kind: FindingSink
metadata: { name: log }
spec: { stdout: {} }
"#;

const ON_FARGATE: &str = "
apiVersion: v1
kind: Pod
metadata: { name: alone, namespace: shop }
spec:
  nodeSelector: { eks.amazonaws.com/compute-type: fargate }
  tolerations: [{ key: eks.amazonaws.com/compute-type, operator: Exists }]
  containers: [{ name: alone, image: alone }]
";

/// What the controller may write before anyone says `enforce`.
const OBSERVE_WRITES: [&str; 18] = [
    "create authentication.k8s.io/tokenreviews",
    "create coordination.k8s.io/leases in tasuki-system",
    "create core/configmaps in tasuki-system",
    "create core/secrets in tasuki-system",
    "create events.k8s.io/events in default",
    "create tasuki.dev/runtimemonitors",
    "patch core/configmaps in tasuki-system named tasuki-freeze",
    "patch core/configmaps in tasuki-system named tasuki-rollout",
    "patch events.k8s.io/events in default",
    "patch tasuki.dev/awsscopes/status",
    "patch tasuki.dev/detectionrules/status",
    "patch tasuki.dev/findingsinks/status",
    "patch tasuki.dev/kubernetesscopes/status",
    "patch tasuki.dev/runtimemonitors named default",
    "patch tasuki.dev/runtimemonitors/status",
    "patch tasuki.dev/suppressions/status",
    "patch tasuki.dev/threatlists/status",
    "update coordination.k8s.io/leases in tasuki-system named tasuki",
];

/// Starts a controller with what the chart would tell it; with the name of its token in the audit log.
async fn start(release: &mut Release) -> String {
    deployed::start(release).await;
    credential(&release.plane.directory().join("tasuki-system-tasuki.kubeconfig"))
}

/// Requests of these controllers.
fn of(audit: &Audit, controllers: &[String]) -> Vec<Request> {
    let mut requests = audit.requests();
    requests.retain(|request| controllers.contains(&request.credential));
    assert!(!requests.is_empty());
    let refused: Vec<&Request> = requests.iter().filter(|request| request.code == 403).collect();
    assert!(refused.is_empty(), "the controller asks for what it may not: {refused:#?}");
    requests
}

/// Waits until coverage says this of every pod of the application.
async fn covered(release: &Release, wanted: &[&str]) {
    let what = format!("the application is {}", wanted.join(" or "));
    let seen = until(&what, LONG, || async {
        let rows = rows(&release.json(&["coverage"])?);
        let web: Vec<_> = rows.iter().filter(|row| row.0 == WEB).map(|row| row.3.clone()).collect();
        Ok((web.len() == 2 && web.iter().all(|verdict| wanted.contains(&verdict.as_str()))).then_some(()))
    });
    if let Err(error) = seen.await {
        panic!("{error:#}: {:#}", release.json(&["coverage"]).unwrap());
    }
}

/// What the cluster holds, once nothing moves any more.
async fn quiet(release: &Release) -> BTreeMap<String, Value> {
    until("the cluster is at rest", LONG, || async {
        let first = objects::all(&release.plane).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok((first == objects::all(&release.plane).await).then_some(first))
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_needs_what_it_is_granted_and_is_held_to_it() {
    let audit = Audit::new();
    let mut release = Box::pin(Release::with(audit.options(), &[])).await.unwrap();
    let mut kwok = Kwok::start(&release.plane).await.unwrap();
    let nodes = kwok.nodes("node", 2, &BTreeMap::new()).await.unwrap();
    let fargate = BTreeMap::from([("eks.amazonaws.com/compute-type".to_owned(), "fargate".to_owned())]);
    kwok.nodes("fargate", 1, &fargate).await.unwrap();
    // Whatever comes to it says so, as pods of a Fargate profile do.
    release
        .kubectl(&["taint", "node", "fargate-0", "eks.amazonaws.com/compute-type=fargate:NoSchedule"])
        .await
        .unwrap();
    release.kubectl(&["create", "namespace", "shop"]).await.unwrap();
    release.kubectl(&["create", "deployment", "web", "--namespace=shop", "--image=web", "--replicas=2"]).await.unwrap();
    release.kubectl(&["rollout", "status", "deployment/web", "--namespace=shop", "--timeout=90s"]).await.unwrap();

    let mut controllers = vec![Box::pin(observe_changes_nothing(&mut release, &audit)).await];
    Box::pin(observe_may_not_change_anything(&release)).await;

    controllers.push(Box::pin(enforce_places_agents(&mut release, &nodes)).await);
    let agents = Agents::start(&release.plane, &release.gateway).await.unwrap();
    covered(&release, &["Covered"]).await;
    Box::pin(admission::pod_security_takes_the_pods_where_they_belong(&release)).await;
    Box::pin(admission::of_nodes_only_our_label_is_changed(&release, &nodes[0])).await;

    Box::pin(every_kind_gets_a_status(&release)).await;
    Box::pin(a_version_is_rolled(&release)).await;
    Box::pin(sidecars_are_offered(&release)).await;
    let (code, said) = release.controller().unwrap().tasuki(&["uninstall", "--yes"]).unwrap();
    assert_eq!(code, 0, "{said}");
    drop(agents);

    let requests = of(&audit, &controllers);
    let grants = grants(&release).await;
    let unneeded = grants.iter().filter(|grant| !requests.iter().any(|r| grant.serves(r))).map(ToString::to_string);
    let unneeded: Vec<String> = unneeded.filter(|grant| *grant != LATER_LISTS).collect();
    assert!(unneeded.is_empty(), "granted by charts/tasuki/templates/rbac, and never needed: {unneeded:#?}");
    let other: Vec<&Request> = requests.iter().filter(|r| !grants.iter().any(|grant| grant.serves(r))).collect();
    assert!(other.is_empty(), "the controller rests on rights that are not the chart's: {other:#?}");
}

/// With no values at all the controller sees every pod, and writes its own objects alone.
async fn observe_changes_nothing(release: &mut Release, audit: &Audit) -> String {
    let before = quiet(release).await;
    let controller = start(release).await;
    // For as long as a pod is new it counts as starting.
    covered(release, &["Starting", "Uncovered ObserveOnly"]).await;
    until("the monitor's status counts the pods", LONG, || async {
        let path = "--output=jsonpath={.status.coverage.total}";
        let total = release.kubectl(&["get", "runtimemonitor", "default", path]).await?;
        Ok((!total.is_empty()).then_some(()))
    })
    .await
    .unwrap();
    let after = quiet(release).await;
    let new: Vec<&String> = after.keys().filter(|key| !before.contains_key(*key)).collect();
    let own = [
        "Lease.coordination.k8s.io tasuki-system/tasuki",
        "RuntimeMonitor.tasuki.dev /default",
        "Secret tasuki-system/tasuki-keys",
    ];
    assert_eq!(new, own);
    for (key, object) in &before {
        assert_eq!(after.get(key), Some(object), "{key} was changed");
    }
    // No object is changed back either, and no event is written.
    let writes = of(audit, std::slice::from_ref(&controller)).into_iter().filter(Request::writes);
    let written: BTreeSet<_> = writes.map(|request| (request.resource, request.name)).collect();
    let own = [
        ("leases", "tasuki"),
        ("runtimemonitors", "default"),
        ("runtimemonitors/status", "default"),
        ("secrets", "tasuki-keys"),
    ];
    assert_eq!(written, own.map(|(resource, name)| (resource.to_owned(), name.to_owned())).into());

    // The owner's own order is the only other write.
    for (arguments, kept) in [(&["freeze"][..], "true"), (&["freeze", "--off"], "false")] {
        let (code, said) = release.controller().unwrap().tasuki(arguments).unwrap();
        assert_eq!(code, 0, "{said}");
        let path =
            ["get", "configmap", "tasuki-freeze", "--namespace=tasuki-system", "--output=jsonpath={.data.frozen}"];
        assert_eq!(release.kubectl(&path).await.unwrap(), kept);
    }
    of(audit, std::slice::from_ref(&controller));
    controller
}

async fn observe_may_not_change_anything(release: &Release) {
    let writes: BTreeSet<String> =
        grants(release).await.iter().filter(|grant| grant.writes()).map(ToString::to_string).collect();
    assert_eq!(writes, OBSERVE_WRITES.map(str::to_owned).into());

    // RBAC grants and never denies, so three tries stand for all.
    release.kubectl(&["create", "secret", "generic", "foreign", "--namespace=tasuki-system"]).await.unwrap();
    let client = as_controller(release).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    assert!(refused("another Secret", secrets.get("foreign").await).contains("cannot get"));
    assert!(refused("a list of Secrets", secrets.list(&ListParams::default()).await).contains("cannot list"));
    let label = Patch::Merge(json!({"metadata": {"labels": {"tasuki.dev/agent-next": "both"}}}));
    let said = Api::<Node>::all(client).patch("node-0", &PatchParams::default(), &label).await;
    assert!(refused("a label on a node", said).contains("cannot patch"));
}

/// One value more, and the agent is on every node.
async fn enforce_places_agents(release: &mut Release, nodes: &[String]) -> String {
    release.kill_controller().unwrap();
    let digest = format!("agent.image.digest={DIGEST}");
    let repository = "agent.image.repository=registry.example.test/agent";
    release.install(&["enforce=true", "sidecars.live=true", &digest, repository]).await.unwrap();
    let controller = start(release).await;
    until("an agent runs on every node", LONG, || async {
        let path = "--output=jsonpath={.items[*].status.numberReady}";
        let ready = release.kubectl(&["get", "daemonsets", "--namespace=tasuki-agents", path]).await?;
        Ok((ready == nodes.len().to_string()).then_some(()))
    })
    .await
    .unwrap();
    controller
}

async fn every_kind_gets_a_status(release: &Release) {
    release.apply(KINDS).await.unwrap();
    let kinds = "awsscopes,kubernetesscopes,detectionrules,threatlists,suppressions,findingsinks";
    until("every object is judged", LONG, || async {
        let path = "--output=jsonpath={.items[*].status.conditions[0].type}";
        let judged = release.kubectl(&["get", kinds, path]).await?;
        Ok((judged.split(' ').filter(|kind| *kind == "Accepted").count() == 6).then_some(()))
    })
    .await
    .unwrap();
    kubectl(&release.plane, &["delete", "--filename=-"], KINDS).await.unwrap();
}

/// A pod where no node agent can be has its namespace tried, and offered a sidecar.
async fn sidecars_are_offered(release: &Release) {
    release.apply(ON_FARGATE).await.unwrap();
    until("the namespace is offered a sidecar", LONG, || async {
        let path = "--output=jsonpath={.data.shop}";
        let get = ["get", "configmap", "tasuki-sidecar", "--namespace=tasuki-agents", "--ignore-not-found", path];
        Ok(release.kubectl(&get).await?.starts_with("1.0.1 ").then_some(()))
    })
    .await
    .unwrap();
}

/// A monitor of the owner's takes over from `default`, and its next version comes node by node.
async fn a_version_is_rolled(release: &Release) {
    for version in ["1.0.0", "1.0.1"] {
        let live = format!("{}  kubernetes: {{delivery: Live}}\n", monitor(version));
        release.apply(&live).await.unwrap();
        let what = format!("{version} serves");
        let rolled = until(&what, LONG, || async {
            let coverage = release.json(&["coverage"])?;
            let rows = rows(&coverage);
            let web: Vec<_> = rows.iter().filter(|row| row.0 == WEB).collect();
            let new = web.len() == 2 && web.iter().all(|row| row.1 == "Covered" && row.2 == version);
            let path = "--output=jsonpath={.items[*].status.numberReady}";
            let ready = release.kubectl(&["get", "daemonsets", "--namespace=tasuki-agents", path]).await?;
            let labelled =
                release.kubectl(&["get", "nodes", "--selector=tasuki.dev/agent-next", "--output=name"]).await?;
            Ok((new && ready == "2" && labelled.is_empty() && settled(&coverage, "self")).then_some(()))
        });
        if let Err(error) = rolled.await {
            panic!("{error:#}: {:#}", release.json(&["coverage"]).unwrap());
        }
    }
}
