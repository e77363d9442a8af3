//! How the controller's watches begin on a real API server, and begin again on one that has forgotten.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;
use tasuki::events::Events;
use tasuki::observe::kubernetes;
use tasuki::scope::kubernetes::Kubernetes;
use tasuki_core::fleet::{Change, Str};
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::{ControlPlane, Options};
use tokio::sync::{mpsc, watch};

const LONG: Duration = Duration::from_secs(60);
/// Whose requests the API server writes down: those of the watches.
const WATCHER: &str = "watcher";
const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
  - { level: Metadata, users: [watcher], verbs: [list], resources: [{ group: \"\", resources: [pods] }] }
  - { level: None }
";
/// More than a page.
const MANY: usize = 700;

/// A cluster, and what the controller's watches tell of it.
struct Room {
    plane: ControlPlane,
    client: Client,
    changes: mpsc::Receiver<Change>,
    directory: tempfile::TempDir,
}

impl Room {
    /// A cluster with `pods` of them, and the watches.
    async fn new(apiserver: &[&str], pods: usize) -> Self {
        let directory = tempfile::Builder::new().prefix("tasuki-").tempdir().unwrap();
        let at = directory.path().display();
        std::fs::write(directory.path().join("policy.yaml"), POLICY).unwrap();
        let audited = [format!("--audit-policy-file={at}/policy.yaml"), format!("--audit-log-path={at}/log")];
        let apiserver = apiserver.iter().map(|argument| (*argument).to_owned()).chain(audited).collect();
        let options = Options { apiserver, ..Options::default() };
        let plane = ControlPlane::start(directory.path(), "plane", options).await.unwrap();
        let client = plane.client().await.unwrap();
        stream::iter(0..pods).for_each_concurrent(16, |number| make(&client, number)).await;
        let watcher = plane.client_certificate(WATCHER, &["system:masters"]).unwrap();
        let scope = Kubernetes {
            client: tasuki_e2e_kubernetes::plane::client(&watcher).await.unwrap(),
            cluster: "self".into(),
            namespace: "tasuki-system".into(),
            agent_namespace: "tasuki-agents".into(),
            live_sidecars: false,
        };
        // One change at a time: whoever takes none has the watches stand still.
        let (sender, changes) = mpsc::channel(1);
        let events = Events::new(client.clone(), "test");
        tokio::spawn(kubernetes::watch(scope, sender, watch::Sender::default(), events));
        Self { plane, client, changes, directory }
    }

    /// Takes changes until a sweep says that exactly these pods of the customer's are there; answers those that were told.
    async fn swept(&mut self, wanted: &BTreeSet<String>) -> Vec<String> {
        let mut told = Vec::new();
        let found = async {
            loop {
                match self.changes.recv().await.expect("the watches go on") {
                    Change::TaskRead { task, .. } | Change::Task(task) => told.extend(customer(&task.arn)),
                    Change::Swept { tasks, .. }
                        if tasks.iter().filter_map(customer).collect::<BTreeSet<_>>() == *wanted =>
                    {
                        return;
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(LONG, found).await.unwrap_or_else(|_| panic!("no sweep of {} pods", wanted.len()));
        told
    }

    /// How often the watches asked for pods by a list.
    fn lists(&self) -> usize {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        log.lines().filter(|line| line.contains("\"verb\":\"list\"")).count()
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// What the API server answers first to a watch of pods.
    async fn answer(&self, params: WatchParams, version: &str) -> Result<WatchEvent<Pod>, kube::Error> {
        let mut events = self.pods().watch(&params, version).await?.boxed();
        tokio::time::timeout(LONG, events.next()).await.unwrap().unwrap()
    }
}

async fn make(client: &Client, number: usize) {
    let pod = json!({
        "metadata": { "name": format!("web-{number}") },
        "spec": { "containers": [{ "name": "web", "image": "registry.test/web:1" }] },
    });
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let pod: Pod = serde_json::from_value(pod).unwrap();
    // A namespace takes pods once it has its ServiceAccount.
    let made = until("the pod is taken", LONG, || async { Ok(Some(pods.create(&PostParams::default(), &pod).await?)) });
    made.await.unwrap();
}

/// The name of a pod of the customer's.
fn customer(arn: &Str) -> Option<String> {
    let name = arn.rsplit('/').next()?;
    name.starts_with("web-").then(|| name.to_owned())
}

fn names(numbers: impl IntoIterator<Item = usize>) -> BTreeSet<String> {
    numbers.into_iter().map(|number| format!("web-{number}")).collect()
}

fn streaming() -> WatchParams {
    WatchParams::default().initial_events()
}

async fn every_pod_is_told_once(room: &mut Room) {
    let told = room.swept(&names(0..MANY)).await;
    let once: HashSet<_> = told.iter().collect();
    assert_eq!((told.len(), once.len()), (MANY, MANY));
    // And what happens next.
    make(&room.client, MANY).await;
    let next = async {
        loop {
            if let Change::TaskRead { task, .. } = room.changes.recv().await.unwrap()
                && customer(&task.arn).as_deref() == Some(&format!("web-{MANY}"))
            {
                return;
            }
        }
    };
    tokio::time::timeout(LONG, next).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_come_as_a_stream() {
    let mut room = Room::new(&[], MANY).await;
    let first = room.answer(streaming(), "0").await.unwrap();
    assert!(matches!(&first, WatchEvent::Added(_)), "{first:?}");
    every_pod_is_told_once(&mut room).await;
    assert_eq!(room.lists(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_streams_no_lists_is_asked_for_pages() {
    let mut room = Room::new(&["--feature-gates=WatchList=false"], MANY).await;
    let refused = room.answer(streaming(), "0").await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 422), "{refused}");
    every_pod_is_told_once(&mut room).await;
    assert_eq!(room.lists(), 2, "two pages");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_whose_past_is_forgotten_begins_anew() {
    let mut room = Room::new(&[], 3).await;
    let told = room.swept(&names(0..3)).await;
    assert_eq!(told.len(), 3);
    // From here on nobody takes changes, so the watches stand where they are.
    let seen = room.pods().get("web-0").await.unwrap().resource_version().unwrap();
    room.pods().delete("web-0", &DeleteParams::default().grace_period(0)).await.unwrap();
    for number in 3..6 {
        make(&room.client, number).await;
    }
    // What is in the connection already is read yet; something later has to be forgotten.
    let maps: Api<ConfigMap> = Api::namespaced(room.client.clone(), "default");
    let later = serde_json::from_value(json!({ "metadata": { "name": "later" } })).unwrap();
    maps.create(&PostParams::default(), &later).await.unwrap();
    room.plane.compact().await.unwrap();
    room.plane.restart_apiserver().await.unwrap();
    let answer = room.answer(WatchParams::default(), &seen).await.unwrap();
    assert!(matches!(&answer, WatchEvent::Error(status) if status.code == 410), "{answer:?}");

    let told = room.swept(&names(1..6)).await;
    for number in 3..6 {
        assert!(told.contains(&format!("web-{number}")), "{told:?}");
    }
    // The watch of pods was told the same: nothing else has it list them.
    let listed = async {
        while room.lists() == 0 {
            room.changes.recv().await.expect("the watches go on");
        }
    };
    tokio::time::timeout(LONG, listed).await.expect("pods were listed");
}
