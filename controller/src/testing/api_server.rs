//! A small Kubernetes API server: objects by path, watches, resourceVersions that are compared.
//!
//! It keeps JSON as it comes and checks nothing: what a real server does with our definitions is
//! proved in e2e.

use crate::scope::kubernetes::Kubernetes;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::sync::broadcast;

/// The server; cheap to clone.
#[derive(Clone)]
pub struct ApiServer(Arc<Inner>);

struct Inner {
    state: Mutex<Kept>,
    changes: broadcast::Sender<(String, Value)>,
}

#[derive(Default)]
struct Kept {
    /// By path, such as `/apis/tasuki.dev/v1alpha1/runtimemonitors/prod`.
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Collections that are not there.
    absent: Vec<String>,
    /// Method and path of each request that changes something, with what it said.
    writes: Vec<(String, Value)>,
    /// Answers every write with this status.
    failing: Option<u16>,
}

/// A client that talks to these routes, in process.
pub fn client_of(routes: Router) -> kube::Client {
    kube::Client::new(routes, "default")
}

impl ApiServer {
    /// An empty server.
    pub fn new() -> Self {
        Self(Arc::new(Inner { state: Mutex::default(), changes: broadcast::channel(1024).0 }))
    }

    /// A client that talks to it, in process.
    pub fn client(&self) -> kube::Client {
        client_of(Router::new().fallback(answer).with_state(self.clone()))
    }

    /// The cluster that it serves.
    pub fn cluster(&self) -> Kubernetes {
        Kubernetes {
            client: self.client(),
            cluster: "self".into(),
            namespace: "tasuki-system".into(),
            agent_namespace: "tasuki-agents".into(),
            live_sidecars: false,
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.state.lock().unwrap()
    }

    /// Answers 404 for a collection, or no longer.
    pub fn set_absent(&self, collection: &str, absent: bool) {
        let mut kept = self.kept();
        kept.absent.retain(|known| known != collection);
        if absent {
            kept.absent.push(collection.to_owned());
        }
    }

    /// Answers every write with this status, or no longer.
    pub fn set_failing(&self, status: Option<u16>) {
        self.kept().failing = status;
    }

    /// What stands at a path.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.kept().objects.get(path).cloned()
    }

    /// Waits until what stands at a path is as it should be.
    pub async fn until(&self, path: &str, good: impl Fn(&Value) -> bool) -> Value {
        let mut changes = self.0.changes.subscribe();
        loop {
            match self.get(path) {
                Some(object) if good(&object) => return object,
                _ => drop(changes.recv().await.unwrap()),
            }
        }
    }

    /// `METHOD path` and body of every write that was asked for.
    pub fn writes(&self) -> Vec<(String, Value)> {
        self.kept().writes.clone()
    }

    /// Puts an object where it belongs, as if a user had applied it. A changed spec is a new generation.
    pub fn put(&self, path: &str, mut object: Value) {
        let mut kept = self.kept();
        let before = kept.objects.get(path).cloned().unwrap_or_default();
        object["metadata"]["name"] = path.rsplit('/').next().unwrap().into();
        let generation = before["metadata"]["generation"].as_i64().unwrap_or_default();
        let same = before["spec"] == object["spec"] && generation > 0;
        object["metadata"]["generation"] = (generation + i64::from(!same)).into();
        let uid = before["metadata"]["uid"].as_str().map_or_else(|| format!("uid-{}", kept.version), str::to_owned);
        object["metadata"]["uid"] = uid.into();
        if before["status"].is_object() && !object["status"].is_object() {
            object["status"] = before["status"].clone();
        }
        self.store(&mut kept, path, object);
    }

    /// Takes an object away.
    pub fn delete(&self, path: &str) {
        let gone = self.kept().objects.remove(path);
        if let Some(gone) = gone {
            let _ = self.0.changes.send((collection(path), json!({ "type": "DELETED", "object": gone })));
        }
    }

    fn store(&self, kept: &mut Kept, path: &str, mut object: Value) -> Value {
        kept.version += 1;
        object["metadata"]["resourceVersion"] = kept.version.to_string().into();
        let known = kept.objects.insert(path.to_owned(), object.clone()).is_some();
        let kind = if known { "MODIFIED" } else { "ADDED" };
        let _ = self.0.changes.send((collection(path), json!({ "type": kind, "object": object })));
        object
    }

    fn write(&self, method: &str, path: &str, body: Value) -> Response {
        let mut kept = self.kept();
        kept.writes.push((format!("{method} {path}"), body.clone()));
        if let Some(code) = kept.failing {
            return refused(code, "Failing");
        }
        let target = path.strip_suffix("/status").unwrap_or(path);
        match method {
            "POST" => {
                let path = format!("{target}/{}", body["metadata"]["name"].as_str().unwrap_or_default());
                if kept.objects.contains_key(&path) {
                    return refused(409, "AlreadyExists");
                }
                let mut object = body;
                object["metadata"]["generation"] = 1.into();
                object["metadata"]["uid"] = format!("uid-{}", kept.version).into();
                json_body(201, &self.store(&mut kept, &path, object))
            }
            "PUT" => {
                let Some(before) = kept.objects.get(target) else { return refused(404, "NotFound") };
                if before["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
                    return refused(409, "Conflict");
                }
                json_body(200, &self.store(&mut kept, target, body))
            }
            _ => {
                let before = kept.objects.get(target).cloned();
                if before.is_none() && path != target {
                    return refused(404, "NotFound");
                }
                let mut object = before.unwrap_or_else(|| json!({ "metadata": {} }));
                merge(&mut object, &body);
                json_body(200, &self.store(&mut kept, target, object))
            }
        }
    }
}

/// As server-side apply does: mappings are merged, lists with a `type` by it, all else is replaced.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(from)) if from.iter().all(|item| item["type"].is_string()) => {
            for item in from {
                into.retain(|known| known["type"] != item["type"]);
                into.push(item.clone());
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn collection(path: &str) -> String {
    path.rsplit_once('/').map(|(collection, _)| collection.to_owned()).unwrap_or_default()
}

fn json_body(code: u16, value: &Value) -> Response {
    Response::builder().status(code).body(Body::from(value.to_string())).unwrap()
}

fn refused(code: u16, reason: &str) -> Response {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason });
    json_body(code, &status)
}

async fn answer(State(server): State<ApiServer>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    {
        let kept = server.kept();
        if kept.absent.iter().any(|absent| path.starts_with(absent.as_str())) {
            return refused(404, "NotFound");
        }
    }
    if parts.method != "GET" {
        let bytes = axum::body::to_bytes(body, 4 << 20).await.unwrap();
        return server.write(parts.method.as_str(), &path, serde_json::from_slice(&bytes).unwrap());
    }
    if query.contains("watch=") {
        return watch(&server, &path, &query);
    }
    let kept = server.kept();
    if let Some(object) = kept.objects.get(&path) {
        return json_body(200, object);
    }
    // A collection ends in a plural word; an object that is not there has one part more.
    let parts = path.trim_matches('/').split('/').count();
    let namespaced = path.contains("/namespaces/");
    let groups = if path.starts_with("/api/") { 3 } else { 4 };
    if parts != groups + if namespaced { 2 } else { 0 } {
        return refused(404, "NotFound");
    }
    let items: Vec<&Value> =
        kept.objects.iter().filter(|(at, _)| collection(at) == path).map(|(_, object)| object).collect();
    json_body(
        200,
        &json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": kept.version.to_string() }, "items": items }),
    )
}

/// Everything that changed since the version that is asked for, then everything as it comes.
fn watch(server: &ApiServer, path: &str, query: &str) -> Response {
    let kept = server.kept();
    let changes = server.0.changes.subscribe();
    let since = query.split('&').find_map(|part| part.strip_prefix("resourceVersion=")).and_then(|v| v.parse().ok());
    let since: u64 = since.unwrap_or_default();
    let newer = |object: &Value| {
        object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok()).is_some_and(|v| v > since)
    };
    let missed: Vec<Value> = kept
        .objects
        .iter()
        .filter(|(at, object)| collection(at) == path && newer(object))
        .map(|(_, object)| json!({ "type": "MODIFIED", "object": object }))
        .collect();
    let path = path.to_owned();
    let live = futures_util::stream::unfold(changes, move |mut changes| {
        let path = path.clone();
        async move {
            loop {
                match changes.recv().await {
                    Ok((of, event)) if of == path => return Some((event, changes)),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        }
    });
    let lines = futures_util::stream::iter(missed).chain(live);
    let lines = lines.map(|event| Ok::<_, std::convert::Infallible>(Bytes::from(format!("{event}\n"))));
    Response::builder().body(Body::from_stream(lines)).unwrap()
}
