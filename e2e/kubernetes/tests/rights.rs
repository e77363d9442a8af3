//! What the chart grants the controller, and what holds it to that: RBAC, a policy on nodes, Pod Security.
//!
//! The controller runs as its own ServiceAccount, and the API server writes down whatever that account asks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod audit;
mod objects;

use audit::{Audit, Request, credential};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tasuki_e2e::coverage::{rows, settled};
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::agents::Agents;
use tasuki_e2e_kubernetes::release::{DIGEST, Release};
use tasuki_e2e_kubernetes::{Kwok, kubectl, plane};

/// Long enough for a loaded machine.
const LONG: Duration = Duration::from_secs(90);
const WEB: &str = "Deployment/shop/web";
const SYSTEM: &str = "tasuki-system";
const AGENTS: &str = "tasuki-agents";

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

/// One verb on one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Grant {
    verb: String,
    group: String,
    resource: String,
    /// Empty: everywhere.
    namespace: String,
    /// Empty: any.
    name: String,
}

impl std::fmt::Display for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let group = if self.group.is_empty() { "core" } else { &self.group };
        write!(f, "{} {group}/{}", self.verb, self.resource)?;
        for (word, value) in [("in", &self.namespace), ("named", &self.name)] {
            if !value.is_empty() {
                write!(f, " {word} {value}")?;
            }
        }
        Ok(())
    }
}

impl Grant {
    /// The request needed this.
    fn serves(&self, request: &Request) -> bool {
        (self.verb == request.verb || (self.verb == "create" && request.creates()))
            && self.group == request.group
            && self.resource == request.resource
            && (self.namespace.is_empty() || self.namespace == request.namespace)
            && (self.name.is_empty() || self.name == request.name)
    }

    fn writes(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

/// What the bindings of the cluster give the controller's ServiceAccount, whoever made them.
async fn grants(release: &Release) -> BTreeSet<Grant> {
    let kinds = "clusterroles,roles,clusterrolebindings,rolebindings";
    let text = release.kubectl(&["get", kinds, "--all-namespaces", "--output=json"]).await.unwrap();
    let listed: Value = serde_json::from_str(&text).unwrap();
    let listed = listed["items"].as_array().unwrap();
    let mut grants = BTreeSet::new();
    for binding in listed {
        let is_ours = |subject: &Value| {
            subject["kind"] == "ServiceAccount" && subject["name"] == "tasuki" && subject["namespace"] == SYSTEM
        };
        if !binding["subjects"].as_array().is_some_and(|subjects| subjects.iter().any(is_ours)) {
            continue;
        }
        let namespace = binding["metadata"]["namespace"].as_str().unwrap_or_default();
        let reference = &binding["roleRef"];
        let role = listed.iter().find(|role| {
            role["kind"] == reference["kind"]
                && role["metadata"]["name"] == reference["name"]
                && (reference["kind"] == "ClusterRole" || role["metadata"]["namespace"] == namespace)
        });
        for rule in role.unwrap()["rules"].as_array().unwrap() {
            let list = |field: &str| -> Vec<String> {
                let values = rule[field].as_array().into_iter().flatten();
                values.map(|value| value.as_str().unwrap().to_owned()).collect()
            };
            assert!(list("nonResourceURLs").is_empty(), "{rule}");
            let mut names = list("resourceNames");
            if names.is_empty() {
                names.push(String::new());
            }
            for (verb, group) in
                list("verbs").iter().flat_map(|verb| list("apiGroups").into_iter().map(move |g| (verb, g)))
            {
                for (resource, name) in list("resources").iter().flat_map(|r| names.iter().map(move |name| (r, name))) {
                    assert!(![verb, &group, resource, name].iter().any(|word| word.contains('*')), "{rule}");
                    let (resource, name) = (resource.clone(), name.clone());
                    let (verb, group, namespace) = (verb.clone(), group.clone(), namespace.to_owned());
                    grants.insert(Grant { verb, group, resource, namespace, name });
                }
            }
        }
    }
    grants
}

/// The arguments that say what the variables of the chart's Deployment say about the monitor `default`.
async fn default_monitor(release: &Release) -> Vec<String> {
    let path = "--output=jsonpath={.spec.template.spec.containers[0].env}";
    let namespace = format!("--namespace={SYSTEM}");
    let text = release.kubectl(&["get", "deployment", "tasuki", &namespace, path]).await.unwrap();
    let variables: Value = serde_json::from_str(&text).unwrap();
    let flags = variables.as_array().unwrap().iter().filter_map(|variable| {
        let name = variable["name"].as_str().unwrap().strip_prefix("TASUKI_DEFAULT_")?;
        let flag = name.to_lowercase().replace('_', "-");
        Some(format!("--default-{flag}={}", variable["value"].as_str().unwrap()))
    });
    let flags: Vec<String> = flags.collect();
    assert!(flags.iter().any(|flag| flag == "--default-monitor=true"), "{flags:?}");
    flags
}

/// Starts a controller with what the chart would tell it; with the name of its token in the audit log.
async fn start(release: &mut Release) -> String {
    let arguments = default_monitor(release).await;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    release.start_controller(&arguments).await.unwrap();
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
async fn covered(release: &Release, wanted: &str) {
    let seen = until(&format!("the application is {wanted}"), LONG, || async {
        let rows = rows(&release.json(&["coverage"])?);
        let web: Vec<_> = rows.iter().filter(|row| row.0 == WEB).map(|row| row.3.clone()).collect();
        Ok((web.len() == 2 && web.iter().all(|verdict| verdict == wanted)).then_some(()))
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

fn monitor(version: &str, digest: &str) -> String {
    format!(
        "apiVersion: tasuki.dev/v1alpha1\nkind: RuntimeMonitor\nmetadata: {{name: prod}}\nspec:\n  mode: Enforce\n  \
         targets: {{kubernetes: {{}}}}\n  agent:\n    version: {version}\n    image: {{repository: registry.example.test/agent, \
         digest: \"{digest}\"}}\n  grace: 20s\n  rollout:\n    deadline: 60s\n    waves: [{{name: all, take: 100%, soak: 1s, \
         maxUnavailable: 100%}}]\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_needs_what_it_is_granted_and_is_held_to_it() {
    let audit = Audit::new();
    let mut release = Box::pin(Release::with(audit.options(), &[])).await.unwrap();
    let mut kwok = Kwok::start(&release.plane).await.unwrap();
    let nodes = kwok.nodes("node", 2, &BTreeMap::new()).await.unwrap();
    release.kubectl(&["create", "namespace", "shop"]).await.unwrap();
    release.kubectl(&["create", "deployment", "web", "--namespace=shop", "--image=web", "--replicas=2"]).await.unwrap();
    release.kubectl(&["rollout", "status", "deployment/web", "--namespace=shop", "--timeout=90s"]).await.unwrap();

    let mut controllers = vec![Box::pin(observe_changes_nothing(&mut release, &audit)).await];
    Box::pin(observe_may_not_change_anything(&release)).await;

    controllers.push(Box::pin(enforce_places_agents(&mut release, &nodes)).await);
    let agents = Agents::start(&release.plane, &release.gateway).await.unwrap();
    covered(&release, "Covered").await;
    Box::pin(pod_security_takes_the_pods_where_they_belong(&release)).await;
    Box::pin(of_nodes_only_our_label_is_changed(&release, &nodes[0])).await;

    Box::pin(every_kind_gets_a_status(&release)).await;
    Box::pin(a_version_is_rolled(&release)).await;
    let (code, said) = release.controller().unwrap().tasuki(&["uninstall", "--yes"]).unwrap();
    assert_eq!(code, 0, "{said}");
    drop(agents);

    let requests = of(&audit, &controllers);
    let grants = grants(&release).await;
    let unneeded: Vec<String> =
        grants.iter().filter(|grant| !requests.iter().any(|r| grant.serves(r))).map(ToString::to_string).collect();
    assert!(unneeded.is_empty(), "granted by charts/tasuki/templates/rbac, and never needed: {unneeded:#?}");
    let other: Vec<&Request> = requests.iter().filter(|r| !grants.iter().any(|grant| grant.serves(r))).collect();
    assert!(other.is_empty(), "the controller rests on rights that are not the chart's: {other:#?}");
}

/// With no values at all the controller sees every pod, and writes its own objects alone.
async fn observe_changes_nothing(release: &mut Release, audit: &Audit) -> String {
    let before = quiet(release).await;
    let controller = start(release).await;
    covered(release, "Uncovered ObserveOnly").await;
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
    let writes = of(audit, &[controller.clone()]).into_iter().filter(Request::writes);
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
    of(audit, &[controller.clone()]);
    controller
}

/// A client with a token of the controller's ServiceAccount.
async fn as_controller(release: &Release) -> Client {
    plane::client(&release.service_account().await.unwrap()).await.unwrap()
}

/// The words with which the API server refuses.
fn refused<T: std::fmt::Debug>(what: &str, answer: kube::Result<T>) -> String {
    match answer {
        Err(kube::Error::Api(status)) => status.message.clone(),
        other => panic!("{what} is not refused: {other:?}"),
    }
}

async fn observe_may_not_change_anything(release: &Release) {
    let writes: BTreeSet<String> =
        grants(release).await.iter().filter(|grant| grant.writes()).map(ToString::to_string).collect();
    assert_eq!(writes, OBSERVE_WRITES.map(str::to_owned).into());

    // RBAC grants and never denies, so three tries stand for all.
    release.kubectl(&["create", "secret", "generic", "foreign", "--namespace=tasuki-system"]).await.unwrap();
    let client = as_controller(release).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM);
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
    release.install(&["enforce=true", &digest, "agent.image.repository=registry.example.test/agent"]).await.unwrap();
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

/// Both namespaces are as the chart and its notes have them; nothing is made.
async fn pod_security_takes_the_pods_where_they_belong(release: &Release) {
    let enforced = |namespace: &'static str| async move {
        let path = r"--output=jsonpath={.metadata.labels.pod-security\.kubernetes\.io/enforce}";
        release.kubectl(&["get", "namespace", namespace, path]).await.unwrap()
    };
    assert_eq!(enforced(AGENTS).await, "privileged");
    for namespace in [SYSTEM, "default"] {
        let label = "pod-security.kubernetes.io/enforce=restricted";
        release.kubectl(&["label", "namespace", namespace, label]).await.unwrap();
    }
    let template = |kind: &'static str, namespace: &'static str| async move {
        let of = format!("--namespace={namespace}");
        let path = "--output=jsonpath={.items[0].spec.template}";
        let text = release.kubectl(&["get", kind, &of, path]).await.unwrap();
        let mut template: Value = serde_json::from_str(&text).unwrap();
        template["metadata"]["generateName"] = json!("tried-");
        template
    };
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let client = release.plane.client().await.unwrap();
    let try_in = |namespace: &'static str, pod: &Value| {
        let (pods, mut pod, dry) = (Api::<Pod>::namespaced(client.clone(), namespace), pod.clone(), dry.clone());
        // The accounts of a pod must exist; which they are is nothing to Pod Security.
        if namespace == "default" {
            pod["spec"]["serviceAccountName"] = json!("default");
        }
        async move { pods.create(&dry, &serde_json::from_value(pod).unwrap()).await }
    };
    let controller = template("deployments", SYSTEM).await;
    let agent = template("daemonsets", AGENTS).await;
    try_in(SYSTEM, &controller).await.expect("`restricted` takes the controller's pod");
    try_in(AGENTS, &agent).await.expect("`privileged` takes the agent's pod");
    let said = refused("the agent's pod in a restricted namespace", try_in("default", &agent).await);
    for words in ["violates PodSecurity \"restricted:latest\"", "hostPID=true", "hostPath", "SYS_ADMIN"] {
        assert!(said.contains(words), "{said}");
    }
    // The pod of `helm test` is one of the release's own namespace too.
    let hooks =
        tasuki_e2e_kubernetes::helm(&release.plane, &["get", "hooks", "tasuki", "--namespace", SYSTEM]).await.unwrap();
    kubectl(&release.plane, &["create", "--dry-run=server", "--filename=-"], &hooks).await.unwrap();
    release.kubectl(&["label", "namespace", "default", "pod-security.kubernetes.io/enforce-"]).await.unwrap();

    // RBAC keeps the agent where it belongs before Pod Security is asked.
    let elsewhere = Api::<DaemonSet>::namespaced(as_controller(release).await, "shop");
    let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "a"}, "spec":
        {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": agent["spec"]}}});
    let made = elsewhere.create(&dry, &serde_json::from_value(set).unwrap()).await;
    assert!(refused("a DaemonSet elsewhere", made).contains("cannot create"));
}

/// With the right to patch nodes, which RBAC cannot narrow, the controller changes one label on them.
async fn of_nodes_only_our_label_is_changed(release: &Release, node: &str) {
    // Something to take away.
    release.kubectl(&["label", "node", node, "team=shop"]).await.unwrap();
    release.kubectl(&["annotate", "node", node, "why=test"]).await.unwrap();
    release.kubectl(&["taint", "node", node, "gpu=true:PreferNoSchedule"]).await.unwrap();
    let client = as_controller(release).await;
    let nodes: Api<Node> = Api::all(client);
    // Nothing is kept: the hand-over of this node is not ours to begin.
    let dry = PatchParams { dry_run: true, ..PatchParams::default() };
    let merge = |change: Value| {
        let (nodes, dry) = (nodes.clone(), dry.clone());
        async move { nodes.patch(node, &dry, &Patch::Merge(change)).await }
    };
    let label = |value: Value| json!({"metadata": {"labels": {"tasuki.dev/agent-next": value}}});
    // A policy is watched by the API server, not read: it holds a moment after it was made.
    until("the policy holds", LONG, || async {
        Ok(merge(json!({"metadata": {"labels": {"probe": "x"}}})).await.is_err().then_some(()))
    })
    .await
    .unwrap();
    for value in [json!("both"), json!("only"), Value::Null] {
        merge(label(value.clone())).await.unwrap_or_else(|error| panic!("our label as {value}: {error}"));
    }
    let apply = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": {"tasuki.dev/agent-next": "both"}}});
    let params = PatchParams { dry_run: true, ..PatchParams::apply("tasuki").force() };
    nodes.patch(node, &params, &Patch::Apply(apply)).await.expect("our label by server-side apply");

    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "x", "uid": "x"});
    for (what, change) in [
        ("another value of our label", label(json!("x"))),
        ("another label", json!({"metadata": {"labels": {"role": "x"}}})),
        ("a change of another label", json!({"metadata": {"labels": {"team": "x"}}})),
        ("another label's removal", json!({"metadata": {"labels": {"team": null}}})),
        ("ours beside another one", json!({"metadata": {"labels": {"tasuki.dev/agent-next": "only", "role": "x"}}})),
        ("an annotation", json!({"metadata": {"annotations": {"x": "y"}}})),
        ("an annotation's removal", json!({"metadata": {"annotations": {"why": null}}})),
        ("a finalizer", json!({"metadata": {"finalizers": ["example.com/x"]}})),
        ("an owner", json!({"metadata": {"ownerReferences": [owner]}})),
        ("a cordon", json!({"spec": {"unschedulable": true}})),
        ("a taint", json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}})),
        ("a taint's removal", json!({"spec": {"taints": null}})),
        ("a provider", json!({"spec": {"providerID": "x://y"}})),
    ] {
        let said = refused(what, merge(change).await);
        assert!(
            said.contains("ValidatingAdmissionPolicy 'tasuki-node-label'") && said.contains("denied request"),
            "{said}"
        );
    }

    // Even where somebody grants more than the chart does.
    let account = "--serviceaccount=tasuki-system:tasuki";
    let more = ["clusterrolebinding", "more", "--clusterrole=cluster-admin", account];
    release.kubectl(&[&["create"], &more[..]].concat()).await.unwrap();
    let condition = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let said = until("the new right is known", LONG, || async {
        let answer = nodes.patch_status(node, &dry, &Patch::Merge(condition.clone())).await;
        let said = refused("the status of a node", answer);
        Ok((!said.contains("cannot patch")).then_some(said))
    })
    .await
    .unwrap();
    assert!(said.contains("tasuki-node-label"), "{said}");
    release.kubectl(&["delete", "clusterrolebinding", "more"]).await.unwrap();
    // Nobody else is held.
    release.kubectl(&["label", "node", node, "team-"]).await.unwrap();
    release.kubectl(&["taint", "node", node, "gpu-"]).await.unwrap();
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

/// A monitor of the owner's takes over from `default`, and its next version comes node by node.
async fn a_version_is_rolled(release: &Release) {
    let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
    for (version, letter) in [("1.0.0", "a"), ("1.0.1", "b")] {
        release.apply(&monitor(version, &digest(letter))).await.unwrap();
        let rolled = until(&format!("{version} serves"), LONG, || async {
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
