//! The protocol in Kubernetes: a real relay in a "pod", a real gateway, and an API server of plain data
//! that says whose a token is.

use crate::hostile::Raw;
use crate::world::{World, arn, finding, known, until, with_task};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tasuki::gateway::evidence::Address;
use tasuki::gateway::{Known, ReviewError, Reviewed, TaskRole, TokenReviewer};
use tasuki_agent::deliver::{self, Origin};
use tasuki_api::agent::{AgentKind, Identity};
use tasuki_core::fleet::{LaunchType, TaskStatus};
use ulid::Ulid;

const OWN: &str = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
const WEB: &str = "e81d4fae-7dec-11d0-a765-00a0c91e6bf6";
const FAR: &str = "d81d4fae-7dec-11d0-a765-00a0c91e6bf6";
const MIRROR: &str = "c81d4fae-7dec-11d0-a765-00a0c91e6bf6";
const HASH: &str = "0123456789abcdef0123456789abcdef";

/// The API server's answers by token; what it does not know is forged.
#[derive(Default)]
struct Tokens {
    answers: Mutex<HashMap<String, Result<Reviewed, &'static str>>>,
    asked: Mutex<Vec<String>>,
}

impl TokenReviewer for Tokens {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Reviewed, ReviewError>> {
        self.asked.lock().unwrap().push(token.to_owned());
        let answer = self.answers.lock().unwrap().get(token).cloned();
        async move {
            match answer {
                Some(Ok(reviewed)) => Ok(reviewed),
                Some(Err("away")) => Err(ReviewError::Unreachable("connection refused".into())),
                Some(Err(why)) => Err(ReviewError::Refused(why.to_owned())),
                None => Err(ReviewError::Refused("invalid bearer token".to_owned())),
            }
        }
        .boxed()
    }
}

fn name(namespace: &str, uid: &str, name: &str) -> String {
    format!("k8s/self/pod/{namespace}/{uid}/{name}")
}

fn own() -> String {
    name("tasuki-agents", OWN, "tasuki-agent-x")
}

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// A pod as the fleet has it, with one container that `digit` is the id of.
fn pod(arn: &str, group: &str, node: &str, container: (&str, char)) -> Known {
    let mut known = with_task(known("x"), |task| {
        task.arn = arn.into();
        task.cluster = "k8s/self".into();
        task.group = group.into();
        task.definition = "k8s/self/daemonset/tasuki-agents/tasuki-agent-1a2b".into();
        task.launch = LaunchType::Kubernetes;
        task.node = Some(format!("k8s/self/node/{node}").into());
        task.containers.retain(|one| &*one.name == "tasuki-agent");
        let own = &mut task.containers[0];
        (own.name, own.arn) = (container.0.into(), format!("{arn}/{}", container.0).into());
        (own.image, own.runtime_id) = (format!("registry/{}:1", container.0).into(), Some(id(container.1).into()));
    });
    known.role = TaskRole::None;
    known.kind = AgentKind::Node;
    known
}

fn reviewed() -> Reviewed {
    Reviewed {
        namespace: "tasuki-agents".to_owned(),
        pod: "tasuki-agent-x".to_owned(),
        pod_uid: OWN.to_owned(),
        node: Some("node-a".to_owned()),
        node_uid: Some("n-1".to_owned()),
        service_account: "tasuki-agent".to_owned(),
    }
}

/// A cluster of two nodes, with an agent on the first.
async fn cluster() -> (World, Arc<Tokens>) {
    let mut world = World::with(|config| {
        (config.limits.requests_per_second, config.limits.burst) = (1e6, 1e6);
    })
    .await;
    let tokens = Arc::new(Tokens::default());
    world.down().await;
    world.reviewer = Some(tokens.clone());
    world.up().await;
    tokens.answers.lock().unwrap().insert("good.good.good".to_owned(), Ok(reviewed()));
    let pods = [
        pod(&own(), "service:tasuki", "node-a", ("tasuki-agent", '1')),
        pod(&name("shop", WEB, "web-5d-x"), "Deployment/shop/web", "node-a", ("app", '2')),
        pod(&name("shop", FAR, "web-5d-y"), "Deployment/shop/web", "node-b", ("app", '3')),
        pod(&name("kube-system", MIRROR, "etcd-a"), "Node/kube-system/node-a", "node-a", ("etcd", '4')),
    ];
    for known in pods {
        world.fleet.known.lock().unwrap().insert(known.task.arn.to_string(), known);
    }
    (world, tokens)
}

fn token_file(world: &World, text: &str) -> PathBuf {
    let path = world.dir.path().join("token");
    std::fs::write(&path, text).unwrap();
    path
}

fn config(world: &World, token: &Path, state: Option<PathBuf>) -> deliver::Config {
    deliver::Config {
        origin: Origin::Pod { name: own(), token: token.to_owned() },
        ..world.agent_config("x", AgentKind::Node, state)
    }
}

#[tokio::test]
async fn a_pods_agent_enrols_reports_and_its_findings_name_pod_workload_and_node() {
    let (mut world, tokens) = cluster().await;
    let token = token_file(&world, "good.good.good\n");
    let web = name("shop", WEB, "web-5d-x");
    let seen =
        [own(), web.clone(), name("kube-system", HASH, "etcd-a"), name("shop", FAR, "web-5d-y"), arn("elsewhere")];
    let agent = world.agent(config(&world, &token, None), &seen);
    let report = world.report(|_| true).await;
    assert_eq!(
        (&*report.task, report.kind, report.node.as_deref()),
        (&*own(), AgentKind::Node, Some("k8s/self/node/node-a"))
    );
    // The static pod is named as the API server names it; pods of another node and ECS's are dropped.
    assert_eq!(report.heartbeat.tasks, [own(), web.clone(), name("kube-system", MIRROR, "etcd-a")]);
    assert_eq!(world.gateway().tally().get("ForeignTask"), 2);
    assert_eq!((report.signed, world.gateway().identity(&own())), (true, Some((Address::Verified, true))));
    assert_eq!(*tokens.asked.lock().unwrap(), ["good.good.good"]);
    assert!(world.aws.asked.lock().unwrap().is_empty(), "a pod's name never goes to STS");

    let container = |digit: char, name: &str| json!({"id": id(digit), "name": name});
    let lie =
        json!({"task": web, "container": container('2', "lie"), "namespace": "lie", "pod": "lie", "account": "1"});
    let claims = [
        lie,
        // Kubernetes does not show this one yet: pod and name say which it is.
        json!({"task": web, "container": container('9', "app")}),
        json!({"task": name("kube-system", HASH, "etcd-a"), "container": container('4', "etcd")}),
        json!({"container": container('1', "tasuki-agent")}),
        // A container that no pod here has is the node's.
        json!({"container": container('8', "x")}),
        json!({"task": web, "container": container('4', "etcd")}),
        json!({}),
    ];
    for (number, claim) in (1..).zip(claims) {
        agent.findings.send(finding(number, claim)).await.unwrap();
    }
    until("all are settled", async || agent.handle.status().sent + agent.handle.status().refused == 7).await;
    let place = async |number: u128| {
        let stored = world.store.finding(Ulid(number)).await.unwrap();
        stored.map(|stored| serde_json::to_value(stored.finding.resource).unwrap())
    };
    let node = json!({"cluster": "k8s/self", "launchType": "KUBERNETES", "node": "k8s/self/node/node-a"});
    let with = |more: Value| {
        let mut whole = node.clone();
        whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Some(whole)
    };
    let image = |digit: char, name: &str| json!({"id": id(digit), "name": name, "image": format!("registry/{name}:1"), "imageDigest": "sha256:aaaa"});
    let shop = |container: Value| {
        with(
            json!({"task": web, "namespace": "shop", "pod": "web-5d-x", "workload": "Deployment/web", "container": container}),
        )
    };
    assert_eq!(place(1).await, shop(image('2', "app")));
    assert_eq!(place(2).await, shop(image('9', "app")));
    assert_eq!(
        place(3).await,
        with(json!({"task": name("kube-system", MIRROR, "etcd-a"), "namespace": "kube-system", "pod": "etcd-a",
            "workload": "Node/node-a", "container": image('4', "etcd")}))
    );
    assert_eq!(
        place(4).await,
        with(json!({"task": own(), "namespace": "tasuki-agents", "pod": "tasuki-agent-x",
            "workload": "DaemonSet/tasuki-agent-1a2b", "container": image('1', "tasuki-agent")}))
    );
    assert_eq!((place(5).await, place(6).await, place(7).await), (Some(node.clone()), None, Some(node)));
    agent.handle.stop().await;
}

#[tokio::test]
async fn a_finding_about_a_pod_that_comes_is_kept_until_the_pod_is_known() {
    let (mut world, _) = cluster().await;
    let token = token_file(&world, "good.good.good");
    let agent = world.agent(config(&world, &token, None), &[]);
    world.report(|_| true).await;
    let late = name("shop", "a81d4fae-7dec-11d0-a765-00a0c91e6bf6", "job-1");
    agent.findings.send(finding(1, json!({"task": late, "container": {"id": id('7'), "name": "app"}}))).await.unwrap();
    let mut old = finding(2, json!({"task": name("shop", FAR, "web-5d-y")}));
    (old.first_seen, old.last_seen) =
        (old.first_seen - jiff::SignedDuration::from_mins(2), old.last_seen - jiff::SignedDuration::from_mins(2));
    agent.findings.send(old).await.unwrap();
    until("what is another node's is refused", async || agent.handle.status().refused == 1).await;
    assert_eq!((agent.handle.status().waiting, agent.handle.status().sent), (1, 0));
    world.fleet.known.lock().unwrap().insert(late.clone(), pod(&late, "Job/shop/job", "node-a", ("app", '7')));
    until("it is stored", async || agent.handle.status().sent == 1).await;
    let resource = world.store.finding(Ulid(1)).await.unwrap().unwrap().finding.resource;
    assert_eq!((resource.task, resource.workload.as_deref()), (Some(late), Some("Job/job")));
    agent.handle.stop().await;
}

#[tokio::test]
async fn whoever_is_not_the_pods_agent_does_not_enrol() {
    let (world, tokens) = cluster().await;
    let raw = Raw::new(&world);
    let gone = name("tasuki-agents", FAR, "gone");
    let stopped = pod(&gone, "service:tasuki", "node-a", ("tasuki-agent", '5'));
    let stopped = with_task(stopped, |task| task.status = TaskStatus::Stopped);
    let unplaced = name("tasuki-agents", MIRROR, "unplaced");
    let pending = with_task(pod(&unplaced, "service:tasuki", "node-a", ("tasuki-agent", '6')), |task| task.node = None);
    let starting = name("tasuki-agents", WEB, "starting");
    let young = pod(&starting, "service:tasuki", "node-a", ("tasuki-agent", '6'));
    let young = with_task(young, |task| task.containers[0].runtime_id = None);
    let mut unapproved = pod(&name("tasuki-agents", HASH, "old"), "service:tasuki", "node-a", ("tasuki-agent", '7'));
    unapproved.approved_digests = ["sha256:other".into()].into();
    for known in [stopped, pending, young, unapproved] {
        world.fleet.known.lock().unwrap().insert(known.task.arn.to_string(), known);
    }
    {
        let mut answers = tokens.answers.lock().unwrap();
        let mut put = |token: &str, change: fn(&mut Reviewed)| {
            let mut reviewed = reviewed();
            change(&mut reviewed);
            answers.insert(token.to_owned(), Ok(reviewed));
        };
        put("other.pods.token", |r| (r.pod, r.pod_uid) = ("web-5d-x".to_owned(), WEB.to_owned()));
        put("same.name.again", |r| r.pod_uid = WEB.to_owned());
        put("other.name.space", |r| r.namespace = "shop".to_owned());
        put("moved.to.b", |r| r.node = Some("node-b".to_owned()));
        put("no.node.said", |r| r.node = None);
        put("wrong.service.account", |r| r.service_account = "default".to_owned());
        put("un.placed.pod", |r| (r.pod, r.pod_uid) = ("unplaced".to_owned(), MIRROR.to_owned()));
        answers.insert("is.expired.now".to_owned(), Err("service account token has expired"));
        answers.insert("foreign.audience.x".to_owned(), Err("it was not made for this gateway's audience"));
        answers.insert("server.is.away".to_owned(), Err("away"));
    }
    type Change = fn(&mut Identity);
    let pod_of = |token: Option<&'static str>| move |i: &mut Identity| i.token = token.map(str::to_owned);
    let same: Change = |_| {};
    let cases: [(&str, Option<&'static str>, Change); 21] = [
        ("TokenMissing", None, same),
        ("TokenMissing", Some(""), same),
        ("TokenRefused", Some("no token at all"), same),
        ("TokenRefused", Some("forged.by.me"), same),
        ("TokenRefused", Some("is.expired.now"), same),
        ("TokenRefused", Some("foreign.audience.x"), same),
        ("TokenOfAnother", Some("other.pods.token"), same),
        ("TokenOfAnother", Some("same.name.again"), same),
        ("TokenOfAnother", Some("other.name.space"), same),
        ("TokenOfAnotherNode", Some("moved.to.b"), same),
        ("TokenOfAnotherNode", Some("no.node.said"), same),
        ("ServiceAccountNotAgent", Some("wrong.service.account"), same),
        ("Busy", Some("server.is.away"), same),
        ("TokenNotAcceptable", Some("good.good.good"), |i| i.task = arn("one")),
        ("TaskUnknown", Some("good.good.good"), |i| i.task = name("tasuki-agents", WEB, "nowhere")),
        ("TaskStopped", Some("good.good.good"), |i| i.task = name("tasuki-agents", FAR, "gone")),
        ("EvidencePending", Some("un.placed.pod"), |i| i.task = name("tasuki-agents", MIRROR, "unplaced")),
        ("EvidencePending", Some("good.good.good"), |i| i.task = name("tasuki-agents", WEB, "starting")),
        ("ImageNotApproved", Some("good.good.good"), |i| i.task = name("tasuki-agents", HASH, "old")),
        ("KindNotAllowed", Some("good.good.good"), |i| i.kind = AgentKind::Sidecar),
        ("Malformed", Some("good.good.good"), |i| i.task = "k8s/self/node/node-a".to_owned()),
    ];
    for (code, token, change) in cases {
        let mut identity = raw.pod(&own()).await;
        pod_of(token)(&mut identity);
        change(&mut identity);
        let before = world.gateway().tally().get(code);
        let (status, refusal) = raw.enroll(&identity, None).await;
        assert!(status >= 400 && refusal["code"] == code, "wanted {code} for {token:?}, got {status} {refusal}");
        assert_eq!(world.gateway().tally().get(code), before + 1, "{code} is counted");
        let message = refusal["message"].as_str().unwrap();
        assert!(token.is_none_or(|token| token.is_empty() || !message.contains(token)), "{message}");
    }
    let mut identity = raw.pod(&own()).await;
    identity.token = Some("good.good.good".to_owned());
    let (_, refusal) = raw.enroll(&identity, Some(("one", &identity.nonce))).await;
    assert_eq!(refusal["code"], "SignatureNotAcceptable", "a pod's name never goes to STS");
    assert!(world.aws.asked.lock().unwrap().is_empty());
    assert!(tokens.asked.lock().unwrap().iter().all(|token| token != "no token at all"), "not worth a question");
    assert_eq!(world.gateway().sessions(), 0);
    let mut identity = raw.pod(&own()).await;
    identity.token = Some("good.good.good".to_owned());
    assert_eq!(raw.enroll(&identity, None).await.0, 200);
}

#[tokio::test]
async fn where_there_is_no_kubernetes_pods_are_refused() {
    let world = World::new().await;
    let raw = Raw::new(&world);
    let mut identity = raw.pod(&own()).await;
    identity.token = Some("good.good.good".to_owned());
    let (status, refusal) = raw.enroll(&identity, None).await;
    assert_eq!((status, refusal["code"].as_str()), (403, Some("PodsNotAccepted")));
    assert_eq!(*world.fleet.refreshes.lock().unwrap(), 0, "ECS is not asked about a pod");
}

#[tokio::test]
async fn an_agent_waits_for_the_api_server_and_takes_its_renewed_token() {
    let (mut world, tokens) = cluster().await;
    tokens.answers.lock().unwrap().insert("good.good.good".to_owned(), Err("away"));
    let token = token_file(&world, "good.good.good");
    let agent = world.agent(config(&world, &token, None), &[]);
    until("it was refused", async || world.gateway().tally().get("Busy") >= 2).await;
    assert!(!agent.handle.status().enrolled);
    // Meanwhile the old token expires, and the kubelet renews it.
    let mut answers = HashMap::from([("good.good.good".to_owned(), Err("service account token has expired"))]);
    answers.insert("renewed.by.kubelet".to_owned(), Ok(reviewed()));
    *tokens.answers.lock().unwrap() = answers;
    until("it is refused", async || world.gateway().tally().get("TokenRefused") >= 1).await;
    token_file(&world, "renewed.by.kubelet");
    world.report(|_| true).await;
    assert!(agent.handle.status().enrolled);
    agent.handle.stop().await;
}

#[tokio::test]
async fn what_a_gone_agent_left_on_the_node_is_sent_by_the_next() {
    let (mut world, _) = cluster().await;
    let token = token_file(&world, "forged.by.me");
    let (base, logs) = (world.dir.path().join("state"), world.dir.path().join("pods"));
    std::fs::create_dir_all(logs.join(format!("tasuki-agents_tasuki-agent-x_{OWN}"))).unwrap();
    // The gateway never took the first one.
    let first = deliver::of_pod(&base, WEB).unwrap();
    let agent = world.agent(config(&world, &token, Some(first.clone())), &[]);
    agent.findings.send(finding(1, json!({"container": {"id": id('2'), "name": "app"}}))).await.unwrap();
    until("it waits", async || agent.handle.status().waiting == 1).await;
    agent.handle.stop().await;
    token_file(&world, "good.good.good");
    let next = deliver::of_pod(&base, OWN).unwrap();
    let config = deliver::Config { pods: Some(logs), ..config(&world, &token, Some(next)) };
    let agent = world.agent(config, &[]);
    world.report(|_| true).await;
    until("it is sent", async || agent.handle.status().sent == 1).await;
    let resource = world.store.finding(Ulid(1)).await.unwrap().unwrap().finding.resource;
    assert_eq!(resource.pod.as_deref(), Some("web-5d-x"));
    assert!(!first.exists());
    agent.handle.stop().await;
}
