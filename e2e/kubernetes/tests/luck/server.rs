//! An API server that goes away in the middle of a rollout, and one that has forgotten what happened.

use crate::room::{LIMIT, Room, WAVES, monitor};
use std::time::Duration;
use tasuki_e2e::controller::Controller;
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::world::NAMESPACE;

/// Four times as long as the lease holds.
const AWAY: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn rollouts_outlive_an_api_server_that_is_away_and_one_that_has_forgotten() {
    let mut room = Room::start(4).await;
    room.release.apply(&wanted("0.1.1")).await.unwrap();
    room.is_covered_by("0.1.1", 4).await;
    away_in_mid_rollout(&mut room).await;
    forgotten_in_mid_rollout(&mut room).await;
    assert_eq!(room.agents.gaps(), [""; 0], "no node was without an agent");
}

/// An agent that found no gateway tries again within a minute: the deadline is longer, as it is by default.
fn wanted(version: &str) -> String {
    monitor("prod", version, &WAVES.replace("deadline: 60s", "deadline: 5m"))
}

async fn away_in_mid_rollout(room: &mut Room) {
    let kubeconfig = room.release.service_account().await.unwrap();
    room.release.apply(&wanted("0.1.2")).await.unwrap();
    in_mid_rollout(room).await;
    room.release.plane.stop_apiserver();
    let back = tokio::time::Instant::now() + AWAY;

    // It ends before another one could take its lease: it can no longer know that it is the only one.
    let controller = room.release.controller().unwrap().process();
    controller.says("the lease was lost", AWAY).await.unwrap();
    controller.wait(Duration::from_secs(10)).unwrap();
    assert!(room.agents.speaking("0.1.1") + room.agents.speaking("0.1.2") >= 4, "agents need no API server");
    // The kubelet starts it again at once, and it waits.
    let gateway = room.release.gateway.clone();
    let directory = room.release.plane.directory().parent().unwrap();
    let mut again = Controller::waiting(directory, "again", |command| {
        command.env("KUBECONFIG", kubeconfig).args(["--kubernetes", "--namespace", NAMESPACE]);
        command.args(["--gateway-listen", &gateway, "--gateway-url", &format!("https://{gateway}")]);
    })
    .unwrap();
    again.process().says("the lease cannot be had, trying again", AWAY).await.unwrap();
    tokio::time::sleep_until(back).await;
    again.process().alive().unwrap();
    room.release.plane.start_apiserver().await.unwrap();
    let ready = again.ready().await;
    room.or_log(ready).await;
    again.kill().unwrap();
    room.release.start_controller(&[]).await.unwrap();
    room.is_covered_by("0.1.2", 4).await;
}

async fn forgotten_in_mid_rollout(room: &mut Room) {
    room.release.apply(&wanted("0.1.3")).await.unwrap();
    in_mid_rollout(room).await;
    room.release.plane.compact().await.unwrap();
    room.release.plane.restart_apiserver().await.unwrap();
    let before = renewed(room).await;
    // Where the restart took longer than the lease holds, the kubelet starts the controller again.
    while renewed(room).await == before {
        if room.release.controller().unwrap().process().alive().is_err() {
            room.release.start_controller(&[]).await.unwrap();
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    room.is_covered_by("0.1.3", 4).await;
}

/// When the lease was renewed last.
async fn renewed(room: &Room) -> String {
    let path = "-o=jsonpath={.spec.renewTime}";
    room.release.kubectl(&["get", "lease", "tasuki", "--namespace=tasuki-system", path]).await.unwrap()
}

async fn in_mid_rollout(room: &Room) {
    let began = until("a node is in hand-over, and others are not", LIMIT, || async {
        Ok((1..4).contains(&room.labels().await?.len()).then_some(()))
    });
    room.or_log(began.await).await;
}
