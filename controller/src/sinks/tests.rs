//! Sinks against servers on loopback: a webhook that comes and goes, and a bus that takes a part.

use super::*;
use aws_credential_types::Credentials;
use axum::Router;
use axum::extract::State;
use axum::routing::post;
use futures_util::future::BoxFuture;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use tasuki_api::desired::{Metadata, Object};
use tasuki_api::finding::Finding;
use ulid::Ulid;

#[derive(Default)]
struct Server {
    down: AtomicBool,
    bodies: Mutex<Vec<Value>>,
}

async fn serve(server: Arc<Server>, bus: bool) -> String {
    let webhook = |State(server): State<Arc<Server>>, body: String| async move {
        if server.down.load(Ordering::SeqCst) {
            return (StatusCode::SERVICE_UNAVAILABLE, String::new());
        }
        let body: Value = serde_json::from_str(&body).unwrap();
        server.bodies.lock().unwrap().push(body.clone());
        let Some(entries) = body["Entries"].as_array() else { return (StatusCode::OK, String::new()) };
        // The first request is taken in part: only its even entries.
        let first = server.bodies.lock().unwrap().len() == 1;
        let answer = |(index, _): (usize, &Value)| match first && index % 2 == 1 {
            true => json!({"ErrorCode": "ThrottlingException", "ErrorMessage": "slow down"}),
            false => json!({"EventId": format!("e{index}")}),
        };
        let entries: Vec<_> = entries.iter().enumerate().map(answer).collect();
        (StatusCode::OK, json!({"FailedEntryCount": 0, "Entries": entries}).to_string())
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", post(webhook)).with_state(server);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}{}", if bus { "" } else { "/" })
}

struct LocalBus(String);

impl Buses for LocalBus {
    fn client<'a>(
        &'a self,
        region: Option<&'a str>,
    ) -> BoxFuture<'a, std::result::Result<aws_sdk_eventbridge::Client, Box<dyn std::error::Error + Send + Sync>>> {
        let config = aws_sdk_eventbridge::Config::builder()
            .behavior_version(aws_sdk_eventbridge::config::BehaviorVersion::latest())
            .region(aws_sdk_eventbridge::config::Region::new(region.unwrap_or("eu-west-1").to_owned()))
            .credentials_provider(Credentials::new("AKID", "secret", None, None, "test"))
            .endpoint_url(&self.0)
            .retry_config(aws_sdk_eventbridge::config::retry::RetryConfig::disabled())
            .build();
        Box::pin(async move { Ok(aws_sdk_eventbridge::Client::from_conf(config)) })
    }
}

fn finding(number: u128, severity: &str) -> (Finding, Option<String>) {
    let finding = serde_json::from_value(json!({
        "id": Ulid(number).to_string(), "type": "Impact:Runtime/X", "severity": severity, "title": "t",
        "firstSeen": "2026-01-01T00:00:00Z", "lastSeen": "2026-01-01T00:00:00Z", "count": 1, "rule": {},
        "resource": {"account": "111122223333", "region": "eu-west-1", "cluster": "arn:aws:ecs:eu-west-1:111122223333:cluster/c",
            "task": "arn:aws:ecs:eu-west-1:111122223333:task/c/1", "service": "web"},
        "dns": {"question": "pool.example", "questionType": "A"},
        "process": {"pid": 7, "name": "x", "executable": "/tmp/x", "arguments": ["x", "-y"], "lineage": [{"pid": 1, "executable": "/bin/sh"}]},
        "agent": {"version": "1", "depth": "Full", "sensor": "ebpf"}
    }));
    (finding.unwrap(), None)
}

fn sink(name: &str, spec: Value) -> Document {
    let metadata = Metadata { name: name.to_owned(), ..Default::default() };
    Document::FindingSink(Object { metadata, spec: serde_json::from_value(spec).unwrap() })
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("not within 30 s: {what}"));
}

#[tokio::test]
async fn each_sink_gets_everything_once_it_can_and_none_waits_for_another() {
    let store = Store::open("sqlite::memory:").await.unwrap();
    let (hook, bus) = (Arc::new(Server::default()), Arc::new(Server::default()));
    hook.down.store(true, Ordering::SeqCst);
    let (hook_url, bus_url) = (serve(hook.clone(), false).await, serve(bus.clone(), true).await);
    let stored = watch::Sender::new(0);
    let buses = Arc::new(LocalBus(bus_url));
    let mut sinks = Sinks::new(store.clone(), Http::new(None).unwrap(), buses, stored.subscribe());
    let documents = [
        sink("hook", json!({"webhook": {"url": hook_url}, "minimumSeverity": "High"})),
        sink("bus", json!({"eventBridge": {"format": "GuardDuty"}})),
        sink("bad", json!({"webhook": {"url": "http://hooks.example/"}})),
        sink("none", json!({})),
    ];
    let problems = sinks.update(&documents).await;
    assert_eq!(problems.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["bad", "none"]);

    let batch: Vec<_> = (1..=25).map(|n| finding(n, if n % 5 == 0 { "High" } else { "Low" })).collect();
    store.insert_findings("a", &batch, Timestamp::now()).await.unwrap();
    stored.send_modify(|count| *count += 1);
    until("the bus has all while the webhook is away", async || sinks.tally().get("SinkDelivered") == 25).await;
    let requests = bus.bodies.lock().unwrap().clone();
    assert!(requests.iter().all(|request| request["Entries"].as_array().unwrap().len() <= 10));
    let entry = &requests[0]["Entries"][0];
    assert_eq!((&entry["Source"], &entry["DetailType"]), (&json!("tasuki"), &json!("Tasuki Finding")));
    let detail: Value = serde_json::from_str(entry["Detail"].as_str().unwrap()).unwrap();
    assert_eq!(detail["resource"]["ecsClusterDetails"]["name"], "c");
    assert_eq!(detail["service"]["action"]["dnsRequestAction"]["domain"], "pool.example");
    assert_eq!(detail["service"]["runtimeDetails"]["process"]["lineage"][0]["executablePath"], "/bin/sh");
    assert_eq!((&detail["severity"], &detail["accountId"]), (&json!(2.0), &json!("111122223333")));
    assert!(!detail.to_string().contains("null"), "what is not known is absent");

    assert!(store.unsent_findings(99).await.unwrap().len() >= 5, "the webhook's are not done");
    hook.down.store(false, Ordering::SeqCst);
    until("the webhook has its share", async || store.unsent_findings(99).await.unwrap().is_empty()).await;
    let ids: Vec<_> = hook.bodies.lock().unwrap().iter().map(|body| body["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, [5u128, 10, 15, 20, 25].map(|n| Ulid(n).to_string()), "in order, the severe ones only");
    assert!(sinks.tally().get("SinkFailed") >= 2, "the part that was refused, and the time without a webhook");
    sinks.stop().await;
}
