//! Our kinds on a real API server, which alone can say whether it takes the definitions, what its
//! CEL refuses, and what it prints.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tasuki::desired::kubernetes::{self, Options, freeze, resource};
use tasuki::engine::{MonitorView, View};
use tasuki::scope::kubernetes::Kubernetes;
use tasuki_api::coverage::Counts;
use tasuki_api::desired::Mode;
use tasuki_e2e_kubernetes::{ControlPlane, Options as Plane};
use tokio::sync::watch;

const LONG: Duration = Duration::from_secs(60);

fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &resource(kind))
}

async fn install(client: &Client) {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for (name, text) in tasuki::crds::files() {
        let crd: CustomResourceDefinition = serde_yaml::from_str(&text).unwrap();
        let params = PatchParams::apply("test").force().validation_strict();
        crds.patch(&crd.name_any(), &params, &Patch::Apply(&crd))
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let called = crd.name_any();
        let established = await_condition(crds.clone(), &called, conditions::is_crd_established());
        tokio::time::timeout(LONG, established).await.unwrap().unwrap();
    }
}

/// What the server says about creating this; nothing is kept.
async fn said(client: &Client, kind: &str, name: &str, spec: Value) -> String {
    let object = DynamicObject::new(name, &resource(kind)).data(json!({ "spec": spec }));
    let params = PostParams { dry_run: true, ..PostParams::default() };
    match api(client, kind).create(&params, &object).await {
        Ok(_) => String::new(),
        Err(kube::Error::Api(status)) => status.message.clone(),
        Err(error) => panic!("{error}"),
    }
}

fn agent(version: &str, repository: &str, digest: &str) -> Value {
    json!({ "agent": { "version": version, "image": { "repository": repository, "digest": digest } } })
}

fn waves(waves: Value) -> Value {
    json!({ "rollout": { "waves": waves } })
}

fn window(window: Value) -> Value {
    json!({ "rollout": { "windows": [window] } })
}

async fn refuses(client: &Client) {
    let digest = format!("sha256:{}", "a".repeat(64));
    let nodes = |one: Value| json!({ "kubernetes": { "nodes": { "matchExpressions": [one] } } });
    let monitors = [
        (json!({ "mode": "Enforce" }), "mode Enforce needs an agent to place"),
        (json!({ "mode": "Enforced" }), "Unsupported value"),
        (agent("1.4", "r.test/a", &digest), "not a version"),
        (agent("1.4.2", "r.test/a:latest", &digest), "carries a tag"),
        (agent("1.4.2", "r.test/a", "sha256:1"), "not a digest"),
        (waves(json!([])), "a rollout without waves changes nothing"),
        (waves(json!([{ "name": "a", "take": "50%" }])), "the last wave takes less than 100%"),
        (waves(json!([{ "name": "a", "take": "5%" }, { "name": "a", "take": "100%" }])), "two waves have one name"),
        (waves(json!([{ "name": "a", "take": "all" }])), "spec.rollout.waves[0].take"),
        (window(json!({ "days": [], "from": "09:00", "to": "10:00" })), "never opens"),
        (window(json!({ "days": ["Mon"], "from": "9:00", "to": "10:00" })), "not a time of day"),
        (window(json!({ "days": ["Mon"], "from": "09:00", "to": "09:00" })), "ends when it begins"),
        (json!({ "exclusions": [{ "matches": "a/b", "reason": " " }] }), "the reason is empty"),
        (json!({ "exclusions": [{ "matches": "a", "reason": "r" }] }), "matches nothing"),
        (json!({ "exclusions": [{ "matches": "a/b", "reason": "r", "until": "tomorrow" }] }), "date-time"),
        (nodes(json!({ "key": "a", "operator": "In" })), "need values"),
        (nodes(json!({ "key": "a", "operator": "Gt", "values": ["x"] })), "one whole number"),
        (json!({ "kubernetes": { "tolerations": [{ "operator": "Equal" }] } }), "operator Equal needs a key"),
        (json!({ "kubernetes": { "tolerations": [{ "effect": "Never" }] } }), "not an effect"),
        (json!({ "kubernetes": { "resources": { "cpu": "much" } } }), "not an amount of CPU"),
        (json!({ "priority": 3_000_000_000_u64 }), "spec.priority"),
        (json!({ "targets": { "ecs": { "scopes": vec!["a"; 257] } } }), "at most 256"),
        (json!({ "targets": { "ecs": { "scopes": ["a".repeat(2000)] } } }), "Too long"),
    ];
    for (spec, words) in monitors {
        let said = said(client, "RuntimeMonitor", "bad", spec.clone()).await;
        assert!(said.contains(words), "{spec}: {said}");
    }
    let filter = |condition: Value| json!({ "reason": "r", "filter": { "type": condition } });
    for (kind, name, spec, words) in [
        ("RuntimeMonitor", "Not.A.Name", json!({}), "lowercase RFC 1123"),
        ("RuntimeMonitor", "two.labels", json!({}), "metadata.name is not a name"),
        ("AwsScope", "a", json!({ "regions": [] }), "reaches nothing"),
        ("AwsScope", "a", json!({ "regions": ["Ireland"] }), "not a Region"),
        ("AwsScope", "a", json!({ "regions": ["eu-west-1"], "accounts": ["1"] }), "not an account id"),
        (
            "AwsScope",
            "a",
            json!({ "regions": ["eu-west-1"], "accounts": ["111122223333", "444455556666"] }),
            "need a role",
        ),
        ("AwsScope", "a", json!({ "regions": ["eu-west-1"], "gateway": "http://a" }), "write https://HOST:PORT"),
        ("KubernetesScope", "a", json!({}), "exactly one way"),
        ("KubernetesScope", "a", json!({ "eks": "a", "kubeconfigSecretRef": "b" }), "exactly one way"),
        ("DetectionRule", "a", json!({ "sigma": "", "finding": { "type": "Custom:Runtime/A" } }), "no Sigma rule"),
        ("DetectionRule", "a", json!({ "sigma": "x", "finding": { "type": "A" } }), "not a finding type"),
        ("ThreatList", "a", json!({ "verdict": "Threat", "entity": "Ip" }), "the list is empty"),
        ("Suppression", "a", json!({ "reason": "r", "filter": {} }), "would suppress every finding"),
        ("Suppression", "a", filter(json!({})), "exactly one list"),
        ("Suppression", "a", filter(json!({ "equals": ["a"], "cidr": ["::/0"] })), "exactly one list"),
        ("FindingSink", "a", json!({}), "exactly one target"),
        ("FindingSink", "a", json!({ "stdout": {}, "eventBridge": {} }), "exactly one target"),
        ("FindingSink", "a", json!({ "webhook": { "url": "http://example.com" } }), "not an https:// URL"),
        ("FindingSink", "a", json!({ "eventBridge": { "source": "aws.ecs" } }), "cannot be a source"),
    ] {
        let said = said(client, kind, name, spec.clone()).await;
        assert!(said.contains(words), "{kind} {spec}: {said}");
    }
    for (kind, spec) in [
        ("RuntimeMonitor", json!({})),
        ("FindingSink", json!({ "webhook": { "url": "http://127.0.0.1:80/x" } })),
        ("FindingSink", json!({ "webhook": { "url": "http://[::1]:80/x" } })),
        ("FindingSink", json!({ "webhook": { "url": "https://example.com" } })),
    ] {
        assert_eq!(said(client, kind, "good", spec).await, "");
    }
}

/// Applies every sample, with unknown fields refused.
async fn samples(client: &Client) -> usize {
    let mut count = 0;
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/samples");
    for entry in std::fs::read_dir(samples).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for document in text.split("\n---\n") {
            let object: Value = serde_yaml::from_str(document).unwrap();
            let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
            let params = PatchParams::apply("test").validation_strict();
            let applied = api(client, kind).patch(name, &params, &Patch::Apply(&object)).await;
            applied.unwrap_or_else(|error| panic!("{kind}/{name}: {error}"));
            count += 1;
        }
    }
    count
}

async fn until(api: &Api<DynamicObject>, name: &str, good: impl Fn(&Value) -> bool) -> Value {
    let wait = await_condition(api.clone(), name, |object: Option<&DynamicObject>| {
        object.is_some_and(|object| good(&object.data["status"]))
    });
    let found = tokio::time::timeout(LONG, wait).await;
    match found {
        Ok(object) => object.unwrap().unwrap().data["status"].clone(),
        Err(_) => panic!("{name}: {:#?}", api.get(name).await.unwrap().data),
    }
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    status["conditions"].as_array().and_then(|all| all.iter().find(|one| one["type"] == kind)).unwrap_or(&Value::Null)
}

/// The cells that `kubectl get` prints, by column.
async fn printed(client: &Client, name: &str) -> Vec<(String, Value)> {
    let request = http::Request::get(format!("/apis/tasuki.dev/v1alpha1/runtimemonitors/{name}"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new())
        .unwrap();
    let table: Value = client.request(request).await.unwrap();
    let names =
        table["columnDefinitions"].as_array().unwrap().iter().map(|column| column["name"].as_str().unwrap().to_owned());
    names.zip(table["rows"][0]["cells"].as_array().unwrap().clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_server_takes_refuses_and_prints_our_kinds() {
    let directory = tempfile::Builder::new().prefix("tasuki-").tempdir().unwrap();
    let plane = ControlPlane::start(directory.path(), "plane", Plane::default()).await.unwrap();
    let client = plane.client().await.unwrap();
    install(&client).await;
    refuses(&client).await;

    // What only `tasuki check` can say appears in the status of the object.
    let monitors = api(&client, "RuntimeMonitor");
    let default_monitor = Some(kubernetes::DefaultMonitor { mode: Mode::Observe, agent: None });
    let options = Options { default_monitor, cluster: "self".to_owned() };
    let started = kubernetes::follow(client.clone(), options);
    let (mut desired, _task) = tokio::time::timeout(LONG, started).await.unwrap();
    let first = until(&monitors, "default", |status| condition(status, "Accepted")["status"] == "True").await;
    assert_eq!(first["observedGeneration"], 1);
    let count = samples(&client).await;
    let all = desired.wait_for(|loaded| loaded.origins.len() == count + 1);
    tokio::time::timeout(LONG, all).await.unwrap().unwrap();
    assert!(count > 8);
    let wrong = json!({ "rollout": { "windows": [{ "days": ["Mon"], "from": "09:00", "to": "10:00", "timezone": "Mars/Olympus" }] } });
    let object = DynamicObject::new("wrong", &resource("RuntimeMonitor")).data(json!({ "spec": wrong }));
    monitors.create(&PostParams::default(), &object).await.unwrap();
    let status = until(&monitors, "wrong", |status| condition(status, "Accepted")["status"] == "False").await;
    let message = condition(&status, "Accepted")["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("unknown timezone `Mars/Olympus` (write an IANA name, such as Asia/Tokyo or UTC)"),
        "{message}"
    );
    assert!(message.ends_with("nothing of it is in force"), "{message}");

    // Status and columns.
    let counts = Counts { total: 412, covered: 409, starting: 1, unhealthy: 1, uncovered: 1, ..Counts::default() };
    let names: Vec<String> =
        monitors.list(&ListParams::default()).await.unwrap().iter().map(ResourceExt::name_any).collect();
    let monitor = |name: &String| MonitorView { name: name.clone(), counts, ..MonitorView::default() };
    let view =
        View { at: Some(jiff::Timestamp::now()), monitors: names.iter().map(monitor).collect(), ..View::default() };
    let (sender, receiver) = watch::channel(Arc::new(view));
    let _writer = tasuki::status::write(client.clone(), receiver, desired.clone());
    let status = until(&monitors, "default", |status| condition(status, "Covered")["status"] == "False").await;
    assert_eq!((&status["observedGeneration"], &condition(&status, "Accepted")["status"]), (&1.into(), &"True".into()));
    assert_eq!(condition(&status, "Ready")["status"], "True");
    let printed = printed(&client, "default").await;
    let shown: Vec<String> = printed.iter().map(|(name, cell)| format!("{name}={cell}")).collect();
    assert_eq!(
        shown[..7],
        [
            "Name=\"default\"",
            "Mode=\"Observe\"",
            "Version=null",
            "Phase=\"Observing\"",
            "Covered=409",
            "Total=412",
            "Ratio=\"99.5%\""
        ]
    );
    assert_eq!(printed.last().unwrap().0, "Age");

    // A quiet cluster is not written: a view that says the same changes no object, even after the pause between writes.
    let version = || async { monitors.get("default").await.unwrap().resource_version() };
    let before = version().await;
    sender.send_modify(|view| *view = Arc::new(View { at: Some(jiff::Timestamp::now()), ..(**view).clone() }));
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(version().await, before);

    // The freeze and events.
    let namespace = "default";
    let (mut frozen, _task) = freeze::follow(client.clone(), namespace).await;
    assert!(!*frozen.borrow());
    let cluster = Kubernetes {
        client: client.clone(),
        cluster: "self".into(),
        namespace: namespace.into(),
        agent_namespace: "tasuki-agents".into(),
        live_sidecars: false,
    };
    freeze::set(&cluster, true).await.unwrap();
    tokio::time::timeout(LONG, frozen.wait_for(|frozen| *frozen)).await.unwrap().unwrap();
    let events = tasuki::events::Events::new(client.clone(), "tasuki-0");
    let uid = monitors.get("default").await.unwrap().uid().unwrap();
    for _ in 0..2 {
        events.action(tasuki::events::about("RuntimeMonitor", "default", &uid), "RolloutStarted", "1.4.2 comes");
    }
    let recorded: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
    let seen = async {
        loop {
            let found = recorded.list(&params).await.unwrap();
            if found.items.first().and_then(|event| event.series.as_ref()).and_then(|series| series.count) == Some(2) {
                return found.items.len();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert_eq!(tokio::time::timeout(LONG, seen).await.unwrap(), 1);
}
