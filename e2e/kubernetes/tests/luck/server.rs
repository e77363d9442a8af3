//! An API server that goes away in the middle of a rollout, and one that has forgotten what happened.

use crate::audit::{Audit, Request};
use crate::room::{LIMIT, Room, WAVES, monitor, text};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::time::Duration;
use tasuki_e2e::http;
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::release::Clock;

/// Far longer than a lease holds, and as long as agents try to go on with their sessions.
const AWAY: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn rollouts_outlive_an_api_server_that_is_away_and_one_that_has_forgotten() {
    let audit = Audit::new();
    let mut room = Box::pin(Room::with(audit.options(), Clock::True, 4)).await;
    room.release.apply(&wanted("0.1.1")).await.unwrap();
    room.is_covered_by("0.1.1", 4).await;
    Box::pin(away_in_mid_rollout(&mut room, &audit)).await;
    Box::pin(forgotten_in_mid_rollout(&mut room)).await;
    assert_eq!(room.agents.gaps(), [""; 0], "no node was without an agent");
}

/// An agent that found no gateway tries again within a minute: the deadline is longer, as it is by default.
fn wanted(version: &str) -> String {
    monitor("prod", version, &WAVES.replace("deadline: 60s", "deadline: 5m"))
}

async fn away_in_mid_rollout(room: &mut Room, audit: &Audit) {
    let (shop, earlier) = (room.pods("shop").await, audit.requests().len());
    room.release.apply(&wanted("0.1.2")).await.unwrap();
    in_mid_rollout(room).await;
    room.release.plane.stop_apiserver();
    let (gone, back) = (Timestamp::now(), tokio::time::Instant::now() + AWAY);

    // What is known stays known, with its age.
    let coverage = room.release.json(&["coverage"]).unwrap();
    assert_eq!(room.shop(&coverage).len(), 4, "{coverage:#}");
    let heard: Timestamp = text(&coverage["scopes"][0]["eventAt"]).parse().unwrap();
    assert!(heard <= gone, "nothing was heard after {gone}: {heard}");

    // It ends before another one could take its lease: it can no longer know that it is the only one.
    let controller = room.release.controller().unwrap().process();
    controller.says("the lease was lost", AWAY).await.unwrap();
    controller.wait(Duration::from_secs(10)).unwrap();
    assert!(room.agents.speaking("0.1.1") + room.agents.speaking("0.1.2") >= 4, "agents need no API server");
    // The kubelet starts it again, and it waits.
    let before = room.release.restarts();
    let again = until("it is started again", LIMIT, || async {
        room.release.keep_running()?;
        Ok((room.release.restarts() > before).then_some(()))
    });
    again.await.unwrap();
    let controller = room.release.controller().unwrap().process();
    controller.says("the lease cannot be had, trying again", AWAY).await.unwrap();
    let ready = format!("{}/readyz", room.release.controller().unwrap().web);
    let said = http::send("GET", &ready, "").await.unwrap_err();
    let said = format!("{said:#}");
    assert!(said.contains("503") && said.contains("the API server does not give the lease"), "{said}");
    room.rest(back).await;
    room.release.controller().unwrap().process().alive().unwrap();
    room.release.plane.start_apiserver().await.unwrap();
    room.is_covered_by("0.1.2", 4).await;
    assert_eq!(room.pods("shop").await, shop, "no pod of the customer's was touched");
    assert_eq!(room.agents.gaps(), [""; 0], "no node was without an agent");
    every_action_was_taken_once(&audit.requests()[earlier..]);
    let events = room.events().await.unwrap();
    let begun = events.iter().filter(|(_, note)| note.ends_with("roll 0.1.1 to 0.1.2"));
    assert_eq!(begun.count(), 1, "the rollout was begun once: {events:#?}");
}

/// What was asked for in one rollout, over two controllers.
fn every_action_was_taken_once(requests: &[Request]) {
    let mut done: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for request in requests.iter().filter(|request| request.writes()) {
        if matches!(&*request.resource, "daemonsets" | "nodes") {
            let verb = if request.creates() { "create" } else { &request.verb };
            done.entry((&request.resource, &request.name)).or_default().push(verb);
        }
    }
    let of = |wanted: &str| {
        let mut of: Vec<_> =
            done.iter().filter(|((of, _), _)| *of == wanted).map(|(_, verbs)| verbs.join(" ")).collect();
        of.sort();
        of
    };
    // The next one is promoted by three patches: to every node, its role, back to heeding the hand-over.
    assert_eq!(of("daemonsets"), ["create patch patch patch", "delete"], "{done:#?}");
    // Beside the old agent, alone, done.
    assert_eq!(of("nodes"), ["patch patch patch"; 4], "{done:#?}");
}

/// The controller stands still while the cluster changes, as on a machine that is suspended; when it goes on, the API
/// server no longer knows what happened since.
async fn forgotten_in_mid_rollout(room: &mut Room) {
    room.release.apply(&wanted("0.1.3")).await.unwrap();
    in_mid_rollout(room).await;
    room.release.controller().unwrap().process().signal(Signal::SIGSTOP).unwrap();
    let gone = room.pod_on("node-3").await;
    room.release.kubectl(&["delete", "pod", &gone, "--namespace=shop", "--wait"]).await.unwrap();
    room.kwok.nodes("late", 1, &BTreeMap::new()).await.unwrap();
    let (new, late) = (room.pod_on("node-3").await, room.pod_on("late-0").await);
    room.release.plane.compact().await.unwrap();
    room.release.plane.restart_apiserver().await.unwrap();
    room.release.controller().unwrap().process().signal(Signal::SIGCONT).unwrap();

    for pod in [&new, &late] {
        room.explains(pod, "\"verdict\":\"Covered\"").await;
    }
    room.is_covered_by("0.1.3", 5).await;
    let coverage = room.release.json(&["coverage"]).unwrap().to_string();
    assert!(!coverage.contains(&gone), "what went meanwhile is known to be gone: {coverage}");
}

async fn in_mid_rollout(room: &Room) {
    let began = until("a node is in hand-over, and others are not", LIMIT, || async {
        Ok((1..4).contains(&room.labels().await?.len()).then_some(()))
    });
    room.or_log(began.await).await;
}
