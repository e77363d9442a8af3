//! The life of documents as objects: start, changes, status.

use super::*;
use crate::desired::parse;
use crate::testing::ApiServer;
use tasuki_api::desired::{Document, Mode};

const ROOT: &str = "/apis/tasuki.dev/v1alpha1";

fn path(kind: &str, name: &str) -> String {
    format!("{ROOT}/{}/{name}", crate::crds::plural(kind).unwrap())
}

fn object(kind: &str, spec: Value) -> Value {
    json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": {}, "spec": spec })
}

fn monitor(spec: Value) -> Value {
    object("RuntimeMonitor", spec)
}

fn observing() -> Value {
    monitor(json!({ "targets": { "kubernetes": {} } }))
}

fn accepted(object: &Value) -> &Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|one| one["type"] == "Accepted")).unwrap_or(&Value::Null)
}

async fn until(receiver: &mut watch::Receiver<Arc<Loaded>>, good: impl Fn(&Loaded) -> bool) -> Arc<Loaded> {
    receiver.wait_for(|loaded| good(loaded)).await.unwrap().clone()
}

fn names(loaded: &Loaded) -> Vec<String> {
    loaded.documents.keys().map(|(kind, name)| format!("{kind}/{name}")).collect()
}

#[tokio::test(start_paused = true)]
async fn every_kind_is_in_force_at_start_and_a_bad_object_is_told_the_words_of_check() {
    let server = ApiServer::new();
    let bad = json!({ "mode": "Enforce", "rollout": { "waves": [{ "name": "a", "take": "50%" }] } });
    server.put(&path("RuntimeMonitor", "good"), observing());
    server.put(&path("RuntimeMonitor", "bad"), monitor(bad.clone()));
    server.put(&path("RuntimeMonitor", "worse"), json!({ "metadata": {}, "spec": "no mapping" }));
    server.put(&path("AwsScope", "prod"), object("AwsScope", json!({ "regions": ["eu-west-1"] })));
    let (receiver, _task) = follow(server.client(), Options::default()).await;
    let loaded = receiver.borrow().clone();
    assert_eq!(names(&loaded), ["AwsScope/prod", "RuntimeMonitor/good"]);
    assert_eq!(loaded.origins.len(), 4);
    assert!(
        loaded.problems.iter().all(|problem| problem.file == problem.subject.clone().unwrap() && problem.line == 0)
    );

    let said = server.until(&path("RuntimeMonitor", "bad"), |object| !accepted(object).is_null()).await;
    let said = accepted(&said);
    assert_eq!(
        (&said["status"], &said["reason"], &said["observedGeneration"]),
        (&"False".into(), &"Refused".into(), &1.into())
    );
    let text = format!("apiVersion: {API_VERSION}\nkind: RuntimeMonitor\nmetadata: {{ name: bad }}\nspec: {bad}\n");
    let (parsed, _) = parse("bad.yaml", &text);
    assert!(parsed[0].problems.len() > 2, "{:?}", parsed[0].problems);
    for problem in &parsed[0].problems {
        assert!(said["message"].as_str().unwrap().contains(&problem.message), "{} in {said}", problem.message);
    }
    let worse = server.until(&path("RuntimeMonitor", "worse"), |object| !accepted(object).is_null()).await;
    assert!(accepted(&worse)["message"].as_str().unwrap().contains("expected a mapping"), "{worse}");
    let good = server.until(&path("RuntimeMonitor", "good"), |object| !accepted(object).is_null()).await;
    assert_eq!((&accepted(&good)["status"], &good["status"]["observedGeneration"]), (&"True".into(), &1.into()));
}

#[tokio::test(start_paused = true)]
async fn the_last_good_version_stays_in_force_until_it_is_good_again_or_gone() {
    let server = ApiServer::new();
    let at = path("RuntimeMonitor", "prod");
    server.put(&at, observing());
    let (mut receiver, _task) = follow(server.client(), Options::default()).await;
    let first = server.until(&at, |object| accepted(object)["status"] == "True").await;
    let hash = receiver.borrow().hash.clone();

    server.put(&at, monitor(json!({ "mode": "Enforce" })));
    let loaded = until(&mut receiver, Loaded::has_errors).await;
    assert_eq!((names(&loaded), &loaded.hash), (vec!["RuntimeMonitor/prod".to_owned()], &hash));
    assert_eq!(loaded.origins.values().next().unwrap().generation, 2);
    let refused = server.until(&at, |object| accepted(object)["status"] == "False").await;
    assert_eq!(refused["status"]["observedGeneration"], 2);
    assert!(accepted(&refused)["message"].as_str().unwrap().ends_with("the last good version stays in force"));

    server.put(&at, monitor(json!({ "targets": { "kubernetes": {} }, "priority": 7 })));
    let loaded = until(&mut receiver, |loaded| !loaded.has_errors()).await;
    assert!(loaded.hash != hash && loaded.held.is_empty());
    let good = server.until(&at, |object| accepted(object)["status"] == "True").await;
    assert_eq!(good["status"]["observedGeneration"], 3);
    assert!(accepted(&first)["lastTransitionTime"].is_string());

    server.put(&at, monitor(json!({ "mode": "Enforce" })));
    until(&mut receiver, Loaded::has_errors).await;
    server.delete(&at);
    let loaded = until(&mut receiver, |loaded| loaded.documents.is_empty()).await;
    assert!(loaded.problems.is_empty() && loaded.origins.is_empty(), "{:?}", loaded.problems);
    // A new object of the same name has no good version before it.
    server.put(&at, monitor(json!({ "mode": "Enforce" })));
    let loaded = until(&mut receiver, Loaded::has_errors).await;
    assert!(loaded.documents.is_empty());
    let nothing = server.until(&at, |object| accepted(object)["status"] == "False").await;
    assert!(accepted(&nothing)["message"].as_str().unwrap().ends_with("nothing of it is in force"));
}

#[tokio::test(start_paused = true)]
async fn status_is_written_only_where_it_changed_and_again_where_it_failed() {
    let server = ApiServer::new();
    let at = path("ThreatList", "miners");
    let list =
        |entry: &str| object("ThreatList", json!({ "verdict": "Threat", "entity": "Domain", "inline": [entry] }));
    server.put(&at, list("a.example.test"));
    server.set_failing(Some(503));
    let (mut receiver, task) = follow(server.client(), Options::default()).await;
    while server.writes().is_empty() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    server.set_failing(None);
    let first = server.until(&at, |object| accepted(object)["status"] == "True").await;
    let written = server.writes().len();
    let hash = receiver.borrow().hash.clone();

    server.put(&at, list("b.example.test"));
    until(&mut receiver, |loaded| loaded.hash != hash).await;
    let second = server.until(&at, |object| object["status"]["observedGeneration"] == 2).await;
    assert_eq!(accepted(&first)["lastTransitionTime"], accepted(&second)["lastTransitionTime"]);
    assert_eq!(server.writes().len(), written + 1);
    assert!(server.writes().iter().all(|(what, _)| *what == format!("PATCH {at}/status")));

    // The next process finds everything said.
    task.abort();
    let (_receiver, _task) = follow(server.client(), Options::default()).await;
    server.put(&path("ThreatList", "other"), list("not a domain"));
    server.until(&path("ThreatList", "other"), |object| accepted(object)["status"] == "False").await;
    assert_eq!(server.writes().len(), written + 2);
}

#[tokio::test(start_paused = true)]
async fn fields_of_a_newer_version_are_left_out_and_named() {
    let server = ApiServer::new();
    let at = path("RuntimeMonitor", "new");
    server.put(
        &at,
        monitor(json!({ "targets": { "kubernetes": {}, "nomad": {} }, "rollout": { "waves": [{ "name": "all", "take": "100%", "pace": 3 }] } })),
    );
    let (receiver, _task) = follow(server.client(), Options::default()).await;
    let loaded = receiver.borrow().clone();
    let Some(Document::RuntimeMonitor(document)) = loaded.documents.values().next().map(|d| &**d) else { panic!() };
    assert_eq!(document.spec.rollout.waves.len(), 1);
    let said = server.until(&at, |object| !accepted(object).is_null()).await;
    assert_eq!((&accepted(&said)["status"], &accepted(&said)["reason"]), (&"True".into(), &"Warnings".into()));
    let message = accepted(&said)["message"].as_str().unwrap();
    assert!(message.contains("spec.targets.nomad, spec.rollout.waves[0].pace"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn missing_definitions_are_waited_for() {
    let server = ApiServer::new();
    server.put(&path("RuntimeMonitor", "prod"), observing());
    server.set_absent(&format!("{ROOT}/suppressions"), true);
    let started = tokio::spawn(follow(server.client(), Options::default()));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(!started.is_finished());
    server.set_absent(&format!("{ROOT}/suppressions"), false);
    let (receiver, _task) = started.await.unwrap();
    assert_eq!(names(&receiver.borrow()), ["RuntimeMonitor/prod"]);
}

#[tokio::test(start_paused = true)]
async fn a_first_monitor_is_made_where_there_is_none_and_only_then() {
    let server = ApiServer::new();
    let wanted = |mode, agent| {
        let default_monitor = Some(DefaultMonitor { mode, agent });
        Options { default_monitor, cluster: "self".to_owned() }
    };
    let options = wanted(Mode::Observe, None);
    let (receiver, task) = follow(server.client(), options.clone()).await;
    assert_eq!(names(&receiver.borrow()), ["RuntimeMonitor/default"]);
    let made = server.get(&path("RuntimeMonitor", "default")).unwrap();
    assert_eq!(made["spec"]["mode"], "Observe");
    // A monitor of one's own has priority 0, and comes before it.
    assert!(made["spec"]["priority"].as_i64().unwrap() < 0);
    assert!(receiver.borrow().problems.is_empty(), "{:?}", receiver.borrow().problems);
    task.abort();

    // As long as nobody else changed it, it follows what the installation says.
    let agent = ("1.4.2".to_owned(), "r.example.test/agent".to_owned(), format!("sha256:{}", "a".repeat(64)));
    let (_receiver, task) = follow(server.client(), wanted(Mode::Enforce, Some(agent))).await;
    let made = server.get(&path("RuntimeMonitor", "default")).unwrap();
    assert_eq!((&made["spec"]["mode"], &made["spec"]["agent"]["version"]), (&json!("Enforce"), &json!("1.4.2")));
    task.abort();
    let mut taken = observing();
    taken["metadata"] = json!({});
    server.put(&path("RuntimeMonitor", "default"), taken);
    let (_receiver, task) = follow(server.client(), wanted(Mode::Enforce, None)).await;
    let held = server.get(&path("RuntimeMonitor", "default")).unwrap();
    assert!(held["spec"].get("mode").is_none(), "it is its owner's now: {held}");
    task.abort();

    server.delete(&path("RuntimeMonitor", "default"));
    server.put(&path("RuntimeMonitor", "mine"), observing());
    let (receiver, _task) = follow(server.client(), options).await;
    assert_eq!(names(&receiver.borrow()), ["RuntimeMonitor/mine"]);
}

#[tokio::test(start_paused = true)]
async fn a_freeze_is_known_at_start_and_followed() {
    let server = ApiServer::new();
    let (client, cluster) = (server.client(), server.cluster());
    let anchor = "/api/v1/namespaces/tasuki-system/configmaps/tasuki-anchor";
    server.put(anchor, json!({ "metadata": {} }));
    freeze::set(&cluster, true).await.unwrap();
    let held = server.get("/api/v1/namespaces/tasuki-system/configmaps/tasuki-freeze").unwrap();
    let anchor = server.get(anchor).unwrap();
    assert_eq!(held["metadata"]["ownerReferences"][0]["uid"], anchor["metadata"]["uid"], "it goes with the release");
    let (mut frozen, _task) = freeze::follow(client.clone(), "tasuki-system").await;
    assert!(*frozen.borrow());
    freeze::set(&cluster, false).await.unwrap();
    frozen.wait_for(|frozen| !frozen).await.unwrap();
    server.put(
        "/api/v1/namespaces/tasuki-system/configmaps/tasuki-freeze",
        json!({ "metadata": {}, "data": { "frozen": "True" } }),
    );
    frozen.wait_for(|frozen| *frozen).await.unwrap();
    server.delete("/api/v1/namespaces/tasuki-system/configmaps/tasuki-freeze");
    frozen.wait_for(|frozen| !frozen).await.unwrap();
    let (frozen, _task) = freeze::follow(client, "tasuki-system").await;
    assert!(!*frozen.borrow());
}

#[tokio::test(start_paused = true)]
async fn two_monitors_of_one_priority_for_the_same_pods_are_told_on_both() {
    let server = ApiServer::new();
    server.put(&path("RuntimeMonitor", "a"), observing());
    server.put(&path("RuntimeMonitor", "b"), observing());
    let shop = json!({ "targets": { "kubernetes": { "namespaces": { "include": ["shop"] } } } });
    server.put(&path("RuntimeMonitor", "c"), monitor(shop));
    let (receiver, _task) = follow(server.client(), Options::default()).await;
    assert_eq!(names(&receiver.borrow()), ["RuntimeMonitor/c"]);
    for name in ["a", "b"] {
        let said = server.until(&path("RuntimeMonitor", name), |object| !accepted(object).is_null()).await;
        let message = accepted(&said)["message"].as_str().unwrap();
        assert!(message.contains("monitors a and b select the same pods with the same priority"), "{message}");
    }
}

fn enforcing() -> Value {
    let image = json!({ "repository": "registry.test/agent", "digest": format!("sha256:{}", "a".repeat(64)) });
    let agent = json!({ "version": "1.4.2", "image": image });
    monitor(json!({ "mode": "Enforce", "targets": { "kubernetes": {} }, "agent": agent }))
}

fn mode(loaded: &Loaded, name: &str) -> Mode {
    match &*loaded.documents[&("RuntimeMonitor".to_owned(), name.to_owned())] {
        Document::RuntimeMonitor(monitor) => monitor.spec.mode,
        other => panic!("{}", other.kind()),
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_enforced_beside_an_older_definition_until_it_is_upgraded() {
    let server = ApiServer::new();
    let of = |kind: &str| format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind}.tasuki.dev");
    let whole = crate::crds::definition("RuntimeMonitor").unwrap();
    let mut old = whole.clone();
    let schema = &mut old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    schema.as_object_mut().unwrap().remove("exclusions");
    server.put(&of("runtimemonitors"), old.clone());
    server.put(&path("RuntimeMonitor", "prod"), enforcing());
    let looking = json!({ "targets": { "kubernetes": {} }, "priority": 7 });
    server.put(&path("RuntimeMonitor", "looking"), monitor(looking));
    let (mut receiver, _task) = follow(server.client(), Options::default()).await;
    let loaded = receiver.borrow().clone();
    assert_eq!((mode(&loaded, "prod"), loaded.has_errors()), (Mode::Observe, false));
    let hash = loaded.hash.clone();
    let held: Vec<_> = loaded.held_back.keys().map(|(_, name)| name.as_str()).collect();
    assert_eq!(held, ["prod"], "one that only observes is as it was");
    let said = server.until(&path("RuntimeMonitor", "prod"), |object| !accepted(object).is_null()).await;
    let message = accepted(&said)["message"].as_str().unwrap();
    for part in ["treated as Observe", "runtimemonitors.tasuki.dev", "it lacks spec.exclusions", "helm upgrade"] {
        assert!(message.contains(part), "{part} in {message}");
    }

    server.put(&of("runtimemonitors"), whole);
    let loaded = until(&mut receiver, |loaded| loaded.held_back.is_empty()).await;
    assert_eq!((mode(&loaded, "prod"), loaded.problems.len()), (Mode::Enforce, 0));
    assert!(loaded.hash != hash, "what is in force has changed");
    // An older one under a running controller.
    server.put(&of("runtimemonitors"), old);
    until(&mut receiver, |loaded| mode(loaded, "prod") == Mode::Observe).await;
}

#[test]
fn a_definition_that_may_not_be_read_is_told_and_stops_nothing() {
    let mut objects = Objects::default();
    let mut object = enforcing();
    object["metadata"]["name"] = "prod".into();
    objects.take(Change::One("RuntimeMonitor", Box::new(serde_json::from_value(object).unwrap())));
    let unreadable = || Change::Definition("RuntimeMonitor", definitions::Fit::Unreadable("no right".to_owned()));
    assert!(objects.take(unreadable()) && !objects.take(unreadable()));
    let loaded = objects.load();
    assert_eq!((loaded.problems[0].message.as_str(), loaded.held_back.len()), ("no right", 0));
    assert!(objects.take(Change::Definition("RuntimeMonitor", definitions::Fit::Whole)));
    assert!(objects.load().problems.is_empty());
}

#[test]
fn a_kind_that_cannot_be_listed_is_a_warning_until_it_can() {
    let mut objects = Objects::default();
    let trouble = || Change::Trouble("ThreatList", "threatlists cannot be watched".to_owned());
    assert!(objects.take(trouble()) && !objects.take(trouble()));
    let loaded = objects.load();
    assert_eq!(loaded.problems[0].message, "threatlists cannot be watched");
    assert!(!loaded.has_errors());
    assert!(objects.take(Change::All("ThreatList", Vec::new())));
    assert!(objects.load().problems.is_empty());
}
