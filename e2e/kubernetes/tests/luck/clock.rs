//! A controller whose clock is ten minutes off. The API server, the agents and the other controller have the true time.
//! Over five minutes that is told of every pod; it still leads alone, places agents and rolls.

use crate::room::{LIMIT, Room, WAVES, monitor};
use anyhow::bail;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use tasuki_e2e::controller::Controller;
use tasuki_e2e::process::until;
use tasuki_e2e_kubernetes::Options;
use tasuki_e2e_kubernetes::release::Clock;

const OFF: i64 = 600;

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_ten_minutes_ahead_says_so_leads_alone_and_rolls() {
    Box::pin(off_by(OFF)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_ten_minutes_behind_says_so_leads_alone_and_rolls() {
    Box::pin(off_by(-OFF)).await;
}

async fn off_by(seconds: i64) {
    let mut room = Box::pin(Room::with(Options::default(), Clock::Off(seconds), 3)).await;
    let off = renewed(&room).await.duration_since(Timestamp::now());
    assert!((off - SignedDuration::from_secs(seconds)).abs() < SignedDuration::from_mins(2), "it is off by {off}");

    // Agents enrol, and a pod without one is told once it has had its time.
    room.kwok.nodes("tainted", 1, &BTreeMap::new()).await.unwrap();
    room.release.kubectl(&["taint", "node", "tainted-0", "gpu=yes:NoSchedule"]).await.unwrap();
    let choosy = |version: &str, more: &str| {
        let tolerant = "  kubernetes: {tolerations: [{key: other, operator: Exists}]}\n";
        monitor("prod", version, &format!("{tolerant}{more}"))
    };
    room.release.apply(&choosy("0.1.1", WAVES)).await.unwrap();
    watched(&room, "0.1.1", "Unhealthy ClockSkew").await;
    let bare = room.pod_on("tainted-0").await;
    room.explains(&bare, "\"reason\":\"NodeWithoutAgent\"").await;

    // One with the true time waits beside it.
    room.release.clock = Clock::True;
    let (mut other, _) = room.release.another("other", &[]).await.unwrap();
    only_one_leads(&room, &mut other).await;
    drop(other);
    room.release.apply(&choosy("0.1.2", WAVES)).await.unwrap();
    watched(&room, "0.1.2", "Unhealthy ClockSkew").await;

    // It dies as the first wave soaks: what it wrote down is read by another clock, and then all is well.
    let slow = WAVES.replace("canary, take: 1%, soak: 1s", "canary, take: 1%, soak: 20s");
    room.release.apply(&choosy("0.1.3", &slow)).await.unwrap();
    room.says("prod", "Reconciling", "True", "Soaking").await;
    let (mut next, _) = room.release.another("next", &[]).await.unwrap();
    next.process().says("waiting for the lease, which controller_", LIMIT).await.unwrap();
    room.release.kill_controller().unwrap();
    next.process().says("leading", LIMIT).await.unwrap();
    drop(next);
    let started = room.release.start_controller(&[]).await;
    room.or_log(started).await;
    watched(&room, "0.1.3", "Covered").await;
    assert_eq!(room.agents.gaps(), [""; 0], "no node was without an agent");
}

/// Waits until three nodes of four have this version alone, which the fourth does not let in, and are judged so.
async fn watched(room: &Room, version: &str, verdict: &str) {
    let what = format!("three nodes are watched by {version} and {verdict}");
    let watched = until(&what, LIMIT, || async {
        let shop = room.shop(&room.release.json(&["coverage"])?);
        let count = shop.iter().filter(|(by, what)| by == version && what == verdict).count();
        let (sets, labels) = (room.versions().await?, room.labels().await?);
        if count != 3 || sets != [version] || !labels.is_empty() {
            bail!("{shop:?}; DaemonSets {sets:?}; labels {labels:?}");
        }
        Ok(Some(()))
    });
    room.or_log(watched.await).await;
}

/// Over three renewals the lease does not change hands.
async fn only_one_leads(room: &Room, other: &mut Controller) {
    other.process().says("waiting for the lease, which controller_", LIMIT).await.unwrap();
    for _ in 0..3 {
        let before = renewed(room).await;
        let again =
            until("the lease is renewed", LIMIT, || async { Ok((renewed(room).await != before).then_some(())) });
        room.or_log(again.await).await;
    }
    let path = "-o=jsonpath={.spec.holderIdentity} {.spec.leaseTransitions}";
    let held = room.release.kubectl(&["get", "lease", "tasuki", "--namespace=tasuki-system", path]).await.unwrap();
    assert!(held.starts_with("controller_"), "{held}");
}

/// When the lease was renewed last, by its holder's clock.
async fn renewed(room: &Room) -> Timestamp {
    let path = "-o=jsonpath={.spec.renewTime}";
    let at = room.release.kubectl(&["get", "lease", "tasuki", "--namespace=tasuki-system", path]).await.unwrap();
    at.parse().unwrap()
}
