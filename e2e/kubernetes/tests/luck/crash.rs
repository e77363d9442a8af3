//! A controller that is killed after each of its actions.

use crate::room::{LIMIT, Room, WAVES, monitor};
use std::collections::{BTreeMap, BTreeSet};
use tasuki_e2e::process::until;

/// What a rollout has done so far, as the cluster shows it: DaemonSets with role and whether they are promoted, and labels.
type State = (Vec<(String, String, bool)>, BTreeMap<String, String>);

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_each_action_of_a_rollout_it_converges_and_doubles_nothing() {
    let mut room = Room::start(2).await;
    room.release.apply(&monitor("prod", "0.1.1", WAVES)).await.unwrap();
    room.is_covered_by("0.1.1", 2).await;

    room.release.apply(&monitor("prod", "0.1.2", WAVES)).await.unwrap();
    let mut before = state(&room).await;
    let mut kills = Vec::new();
    let mut names = BTreeSet::new();
    loop {
        let after = until("the rollout goes on", LIMIT, || async {
            let after = state(&room).await;
            Ok((after != before).then_some(after))
        });
        let after = room.or_log(after.await).await;
        names.extend(after.0.iter().map(|(name, ..)| name.clone()));
        assert!(after.0.len() <= 2 && names.len() <= 2, "at most the old DaemonSet and the new one: {after:?}");
        let is_done = after.0.len() == 1 && !names.is_empty() && after.1.is_empty() && !after.0[0].2;
        room.release.kill_controller().unwrap();
        kills.push(after.clone());
        // It died, and its lease has run out.
        room.release.kubectl(&["delete", "lease", "tasuki", "--namespace=tasuki-system"]).await.unwrap();
        room.release.start_controller(&[]).await.unwrap();
        if is_done && names.len() == 2 {
            break;
        }
        before = after;
    }
    room.is_covered_by("0.1.2", 2).await;
    assert_eq!(room.agents.gaps(), [""; 0], "no node was without an agent");
    // Made, two labels on each of two nodes, promoted, labels gone, settled; some of them may fall together.
    assert!(kills.len() >= 6, "{kills:#?}");
    println!("killed {} times", kills.len());
}

async fn state(room: &Room) -> State {
    let sets = room.list("daemonsets", &["--namespace=tasuki-agents"]).await.unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let set = |set: &serde_json::Value| {
        let meta = &set["metadata"];
        let promoting = meta["annotations"]["tasuki.dev/promoting"].is_string();
        (text(&meta["name"]), text(&meta["labels"]["tasuki.dev/role"]), promoting)
    };
    (sets.iter().map(set).collect(), room.labels().await.unwrap())
}
