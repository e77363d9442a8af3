//! Two monitors for one node, and a monitor that goes in the middle of a rollout.

use crate::room::{LIMIT, Room, WAVES, monitor, text};
use tasuki_e2e::process::until;

#[tokio::test(flavor = "multi_thread")]
async fn two_monitors_on_a_node_and_one_that_goes_and_comes_in_mid_rollout() {
    let room = Room::start(3).await;
    equal_ones_are_told_on_both_and_the_higher_one_owns_the_node(&room).await;
    deleted_in_mid_rollout_it_goes_on_when_it_is_back(&room).await;
}

async fn equal_ones_are_told_on_both_and_the_higher_one_owns_the_node(room: &Room) {
    // At once, so that neither is the last good one.
    let both = format!("{}---\n{}", monitor("a", "0.1.1", WAVES), monitor("b", "0.1.2", WAVES));
    room.release.apply(&both).await.unwrap();
    let words = "monitors a and b select the same pods with the same priority";
    for name in ["a", "b"] {
        // The first one may have been alone for a moment.
        let said = room.says(name, "Accepted", "False", "Refused").await;
        assert!(said.contains(words), "{said}");
    }
    let placed = room.versions().await.unwrap();
    assert!(placed.len() <= 1, "at most what the first one wanted alone: {placed:?}");

    room.release.apply(&monitor("b", "0.1.2", &format!("  priority: 10\n{WAVES}"))).await.unwrap();
    for name in ["a", "b"] {
        room.says(name, "Ready", "True", "InForce").await;
    }
    room.is_covered_by("0.1.2", 3).await;
    let sets = room.list("daemonsets", &["--namespace=tasuki-agents"]).await.unwrap();
    assert_eq!(text(&sets[0]["metadata"]["annotations"]["tasuki.dev/monitor-owner"]), "b");
    assert_eq!(room.agents.gaps(), [""; 0]);

    // The other one is left alone in the end.
    room.release.kubectl(&["delete", "runtimemonitor", "b"]).await.unwrap();
    room.is_covered_by("0.1.1", 3).await;
    assert_eq!(room.agents.gaps(), [""; 0]);
}

async fn deleted_in_mid_rollout_it_goes_on_when_it_is_back(room: &Room) {
    // The canary soaks for so long that its end is not seen.
    let slow = WAVES.replace("canary, take: 1%, soak: 1s", "canary, take: 1%, soak: 1h");
    room.release.apply(&monitor("a", "0.1.3", &slow)).await.unwrap();
    let began = until("one node has the new agent alone", LIMIT, || async {
        let labels = room.labels().await?;
        Ok((labels.len() == 1 && labels.values().all(|value| value == "only")).then_some(labels))
    });
    let labels = room.or_log(began.await).await;
    room.says("a", "Reconciling", "True", "Soaking").await;

    room.release.kubectl(&["delete", "runtimemonitor", "a"]).await.unwrap();
    let forgotten = until("the pods are nobody's", LIMIT, || async {
        let coverage = room.release.json(&["coverage"])?;
        Ok(room.shop(&coverage).iter().all(|(_, verdict)| verdict == "Excluded").then_some(()))
    });
    room.or_log(forgotten.await).await;
    assert_eq!(room.versions().await.unwrap(), ["0.1.1", "0.1.3"], "both stay");
    assert_eq!(room.labels().await.unwrap(), labels, "no node is touched");

    // It comes back within ten minutes, and does not wait any more.
    room.release.apply(&monitor("a", "0.1.3", WAVES)).await.unwrap();
    room.is_covered_by("0.1.3", 3).await;
    assert_eq!(room.agents.gaps(), [""; 0], "no node was without an agent");
    let events = room.events().await.unwrap();
    let made = events.iter().filter(|(_, note)| note.ends_with("roll 0.1.1 to 0.1.3"));
    assert_eq!(made.count(), 1, "the rollout was begun once: {events:#?}");
}
