//! What a person does to a rollout: pause it, freeze everything, try a failed version again.

use crate::room::{LIMIT, Room, WAVES, monitor};
use std::collections::BTreeMap;
use tasuki_e2e::process::until;

/// Waits until `kubectl get runtimemonitor` shows this phase.
async fn phase(room: &Room, wanted: &str) {
    let what = format!("the monitor is {wanted}");
    let seen = until(&what, LIMIT, || async {
        let object = room.monitor("prod").await?;
        Ok((object["status"]["phase"] == wanted).then_some(()))
    });
    room.or_log(seen.await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_waits_while_paused_or_frozen_and_a_failed_version_until_it_is_asked_for() {
    let mut room = Room::start(3).await;
    room.release.apply(&monitor("prod", "0.1.0", WAVES)).await.unwrap();
    room.is_covered_by("0.1.0", 3).await;

    // Paused: nothing is replaced, and a new node still gets its agent.
    let paused = format!("{WAVES}    paused: true\n");
    room.release.apply(&monitor("prod", "0.1.1", &paused)).await.unwrap();
    phase(&room, "Paused").await;
    room.kwok.nodes("late", 1, &BTreeMap::new()).await.unwrap();
    room.is_covered_by("0.1.0", 4).await;

    // Frozen: not even once the pause is over.
    assert_eq!(room.release.controller().unwrap().tasuki(&["freeze"]).unwrap().0, 0);
    room.release.apply(&monitor("prod", "0.1.1", WAVES)).await.unwrap();
    phase(&room, "Frozen").await;
    room.is_covered_by("0.1.0", 4).await;
    let frozen = room.list("configmaps", &["--namespace=tasuki-system"]).await.unwrap();
    let frozen = frozen.iter().find(|map| map["metadata"]["name"] == "tasuki-freeze").unwrap();
    assert_eq!(frozen["data"]["frozen"], "true");
    assert_eq!(frozen["metadata"]["ownerReferences"][0]["name"], "tasuki-anchor", "it goes with the release");
    assert_eq!(room.release.controller().unwrap().tasuki(&["freeze", "--off"]).unwrap().0, 0);
    room.is_covered_by("0.1.1", 4).await;

    // A version that failed is not tried again until somebody says so.
    room.agents.mute("0.1.2");
    let short = WAVES.replace("deadline: 60s", "deadline: 5s");
    room.release.apply(&monitor("prod", "0.1.2", &short)).await.unwrap();
    phase(&room, "RolledBack").await;
    let why = room.says("prod", "Stalled", "True", "RolledBack").await;
    assert!(why.starts_with("0.1.2 failed: ") && why.ends_with("`tasuki rollout retry self`"), "{why}");
    let table = room.release.controller().unwrap().tasuki(&["coverage"]).unwrap().1;
    assert!(table.contains("self: 0.1.2 failed"), "{table}");
    room.agents.unmute("0.1.2");
    room.is_covered_by("0.1.1", 4).await;
    let (code, said) = room.release.controller().unwrap().tasuki(&["rollout", "retry", "self"]).unwrap();
    assert_eq!(code, 0, "{said}");
    room.is_covered_by("0.1.2", 4).await;
    assert!(room.agents.gaps().is_empty(), "{:?}", room.agents.gaps());
}
