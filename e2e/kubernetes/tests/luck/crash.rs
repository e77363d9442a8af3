//! A controller that is killed after each of its actions.

use crate::room::{LIMIT, Room, WAVES, monitor};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a rollout has done so far, as the cluster shows it.
#[derive(Debug, PartialEq)]
struct State {
    /// DaemonSets: name, role, and whether it is being promoted.
    sets: Vec<(String, String, bool)>,
    /// Nodes in hand-over.
    labels: BTreeMap<String, String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_each_action_of_a_rollout_it_converges_and_doubles_nothing() {
    let mut room = Room::start(2).await;
    room.release.apply(&monitor("prod", "0.1.1", WAVES)).await.unwrap();
    room.is_covered_by("0.1.1", 2).await;
    let client = room.release.plane.client().await.unwrap();
    let mut before = state(&client).await;
    let mut names: BTreeSet<_> = before.sets.iter().map(|(name, ..)| name.clone()).collect();

    room.release.apply(&monitor("prod", "0.1.2", WAVES)).await.unwrap();
    let mut kills = Vec::new();
    while !(names.len() == 2 && before.sets.len() == 1 && before.labels.is_empty() && !before.sets[0].2) {
        // The next action, as soon as it shows.
        let next = tokio::time::timeout(LIMIT, async {
            loop {
                room.release.keep_running().unwrap();
                let now = state(&client).await;
                if now != before {
                    return now;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let next = room.or_log(next.await.map_err(|_| anyhow::anyhow!("it stands still: {before:?}"))).await;
        room.release.kill_controller().unwrap();
        names.extend(next.sets.iter().map(|(name, ..)| name.clone()));
        assert!(next.sets.len() <= 2 && names.len() <= 2, "the old DaemonSet and one new one: {next:?}");
        kills.push(next);
        // It died, and so will its lease; what the one before it had sent off shows before this one has any.
        let lease = ["delete", "lease", "tasuki", "--namespace=tasuki-system", "--ignore-not-found"];
        room.release.kubectl(&lease).await.unwrap();
        // What it had sent off may still have arrived.
        before = state(&client).await;
        room.release.start_controller(&[]).await.unwrap();
    }
    room.is_covered_by("0.1.2", 2).await;
    assert_eq!(room.agents.gaps(), [""; 0], "no node was without an agent");
    // Made; `both` and `only` on each of two nodes; promoted; labels taken away; settled. Some may fall together, but
    // not those that wait for agents in between: begun, handed over, promoted, settled.
    assert!(kills.len() >= 4, "{kills:#?}");
    println!("killed {} times", kills.len());
}

async fn state(client: &Client) -> State {
    let sets = Api::<DaemonSet>::namespaced(client.clone(), "tasuki-agents");
    let label = "tasuki.dev/agent-next";
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default().labels(label)).await.unwrap();
    let set = |set: &DaemonSet| {
        let promoting = set.annotations().contains_key("tasuki.dev/promoting");
        (set.name_any(), set.labels()["tasuki.dev/role"].clone(), promoting)
    };
    let sets = sets.list(&ListParams::default()).await.unwrap();
    State {
        sets: sets.iter().map(set).collect(),
        labels: nodes.iter().map(|node| (node.name_any(), node.labels()[label].clone())).collect(),
    }
}
