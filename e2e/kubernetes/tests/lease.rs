//! Two controllers of one cluster: one leads, the other waits, and what the first left half done is done once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod audit;

use audit::{Audit, Request, credential};
use std::collections::BTreeMap;
use std::time::Duration;
use tasuki_e2e::controller::Controller;
use tasuki_e2e::coverage::settled;
use tasuki_e2e::http;
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::Kwok;
use tasuki_e2e_kubernetes::agents::Agents;
use tasuki_e2e_kubernetes::release::{Release, monitor};

/// A lease runs out after 15 seconds; the rest is for a loaded machine.
const LONG: Duration = Duration::from_secs(120);
const NODES: usize = 3;

/// One controller of several.
struct Replica {
    controller: Controller,
    name: &'static str,
    /// Of its token, in the audit log.
    credential: String,
}

/// Starts one, without waiting for it. The one before it must be under way: both are told by one file who they are.
async fn start(release: &Release, name: &'static str) -> Replica {
    let (controller, _) = release.another(name, &[]).await.unwrap();
    let credential = credential(&release.plane.directory().join("tasuki-system-tasuki.kubeconfig"));
    Replica { controller, name, credential }
}

impl Replica {
    async fn leads(&mut self) {
        self.controller.process().says("leading", LONG).await.unwrap();
    }

    /// What its readiness probe is told; empty where it is ready.
    async fn unready(&self) -> String {
        let answer = http::send("GET", &format!("{}/readyz", self.controller.web), "").await;
        answer.err().map(|error| format!("{error:#}")).unwrap_or_default()
    }

    fn requests(&self, audit: &Audit) -> Vec<Request> {
        audit.requests().into_iter().filter(|request| request.credential == self.credential).collect()
    }
}

async fn lease(release: &Release, field: &str) -> String {
    let path = format!("--output=jsonpath={{.spec.{field}}}");
    release.kubectl(&["get", "lease", "tasuki", "--namespace=tasuki-system", &path]).await.unwrap()
}

async fn listed(release: &Release, what: &[&str]) -> anyhow::Result<usize> {
    Ok(release.kubectl(&[&["get", "--output=name"], what].concat()).await?.lines().count())
}

const SETS: [&str; 2] = ["daemonsets", "--namespace=tasuki-agents"];

#[tokio::test(flavor = "multi_thread")]
async fn of_two_controllers_one_acts_and_nothing_is_done_twice() {
    let audit = Audit::new();
    let values = ["enforce=true", "defaultMonitor=false"];
    let release = Box::pin(Release::with(audit.options(), &values)).await.unwrap();
    let mut kwok = Kwok::start(&release.plane).await.unwrap();
    kwok.nodes("node", NODES, &BTreeMap::new()).await.unwrap();
    release.apply(&monitor("1.0.0")).await.unwrap();
    let agents = Agents::start(&release.plane, &release.gateway).await.unwrap();

    let mut first = start(&release, "first").await;
    first.leads().await;
    let mut second = start(&release, "second").await;
    Box::pin(the_second_waits_and_does_nothing(&release, &mut second, &audit)).await;

    // The first one dies when it has placed the agent, or is about to: whichever it is, there is one DaemonSet.
    until("the agent is placed", LONG, || async { Ok((listed(&release, &SETS).await? == 1).then_some(())) })
        .await
        .unwrap();
    first.controller.kill().unwrap();
    second.leads().await;
    until("every agent speaks", LONG, || async { Ok((agents.speaking("1.0.0") == NODES).then_some(())) })
        .await
        .unwrap();
    second.controller.ready().await.unwrap();

    // The second one dies when it has begun to roll.
    let mut third = start(&release, "third").await;
    release.apply(&monitor("1.0.1")).await.unwrap();
    let labelled = ["nodes", "--selector=tasuki.dev/agent-next"];
    until("a node is handed over", LONG, || async { Ok((listed(&release, &labelled).await? > 0).then_some(())) })
        .await
        .unwrap();
    second.controller.kill().unwrap();
    third.leads().await;
    let rolled = until("1.0.1 serves", LONG, || async {
        let done = listed(&release, &SETS).await? == 1 && listed(&release, &labelled).await? == 0;
        let coverage = third.controller.json(&["coverage"])?;
        Ok((done && agents.speaking("1.0.1") == NODES && settled(&coverage, "self")).then_some(()))
    });
    if let Err(error) = rolled.await {
        panic!("{error:#}\n{}", third.controller.log());
    }
    assert_eq!(agents.gaps(), Vec::<String>::new(), "a node was without an agent");
    every_action_was_taken_once(&audit);

    Box::pin(whoever_loses_the_lease_stops(&release, third, &audit)).await;
}

async fn the_second_waits_and_does_nothing(release: &Release, second: &mut Replica, audit: &Audit) {
    let holder = lease(release, "holderIdentity").await;
    assert!(holder.starts_with("first_"), "{holder}");
    second.controller.process().says(&format!("waiting for the lease, which {holder} holds"), LONG).await.unwrap();
    // Over two renewals it has asked again.
    for _ in 0..2 {
        let renewed = lease(release, "renewTime").await;
        until("the lease is renewed", LONG, || async {
            Ok((lease(release, "renewTime").await != renewed).then_some(()))
        })
        .await
        .unwrap();
    }
    let said = second.unready().await;
    assert!(said.contains("503") && said.contains("another controller holds the lease"), "{said}");
    http::send("GET", &format!("{}/healthz", second.controller.web), "").await.expect("it is alive");
    assert_eq!(lease(release, "holderIdentity").await, holder);
    let requests = second.requests(audit);
    assert!(requests.len() > 1, "{requests:#?}");
    for request in requests {
        let asked = (request.verb.as_str(), request.resource.as_str(), request.name.as_str());
        assert!(matches!(asked, ("get", "leases", "tasuki") | ("get", "configmaps", "tasuki-anchor")), "{request:?}");
    }
}

/// From placing the first agent to the end of the roll, over three controllers of which two were killed.
fn every_action_was_taken_once(audit: &Audit) {
    let mut writes: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for request in audit.requests().into_iter().filter(Request::writes) {
        if matches!(request.resource.as_str(), "daemonsets" | "nodes") {
            let what = if request.creates() { "create".to_owned() } else { request.verb };
            writes.entry((request.resource, request.name)).or_default().push(what);
        }
    }
    let of = |resource: &str| -> Vec<String> {
        writes.iter().filter(|((of, _), _)| of == resource).map(|(_, done)| done.join(" ")).collect()
    };
    let mut sets = of("daemonsets");
    sets.sort();
    // The next one is promoted by three patches: to every node, its role, back to heeding the hand-over.
    assert_eq!(sets, ["create delete", "create patch patch patch"], "{writes:#?}");
    // Beside the old agent, alone, done.
    assert_eq!(of("nodes"), vec!["patch patch patch"; NODES], "{writes:#?}");
}

async fn whoever_loses_the_lease_stops(release: &Release, mut leader: Replica, audit: &Audit) {
    let mut next = start(release, "fourth").await;
    next.controller.process().says(&format!("waiting for the lease, which {}_", leader.name), LONG).await.unwrap();
    let taken = r#"{"spec":{"holderIdentity":"somebody-else"}}"#;
    let patch = ["patch", "lease", "tasuki", "--namespace=tasuki-system", "--type=merge", "--patch", taken];
    release.kubectl(&patch).await.unwrap();
    let status = leader.controller.process().wait(LONG).unwrap();
    assert_eq!(status.code(), Some(2), "{}", leader.controller.log());
    assert!(
        leader.controller.log().contains("the lease was lost: another controller may be at work"),
        "{}",
        leader.controller.log()
    );

    // The other one waits until that lease has run out, too, and gives its own back as it ends.
    next.controller.process().says("waiting for the lease, which somebody-else holds", LONG).await.unwrap();
    let before = leader.requests(audit).len();
    next.leads().await;
    next.controller.ready().await.unwrap();
    assert_eq!(leader.requests(audit).len(), before, "what lost the lease went on");
    let process = next.controller.process();
    process.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = process.wait(LONG).unwrap();
    assert!(status.success(), "{status}: {}", next.controller.log());
    assert_eq!(lease(release, "holderIdentity").await, "");
}
