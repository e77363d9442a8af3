//! Nodes that cannot have an agent, nodes without room, and nodes that come and go in the middle of a wave.

use crate::room::{LIMIT, Room, WAVES, monitor, text};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use tasuki_e2e::process::until;

/// Room that a node of KWOK has.
async fn resize(room: &Room, node: &str, cpu: &str, memory: &str, pods: &str) {
    let size = json!({ "cpu": cpu, "memory": memory, "pods": pods });
    let patch = json!({ "status": { "allocatable": size, "capacity": size } }).to_string();
    let arguments = ["patch", "node", node, "--subresource=status", "--type=merge", "--patch", &patch];
    room.release.kubectl(&arguments).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_an_agent_are_told_and_hold_nothing_up() {
    let mut room = Room::start(2).await;
    let labels = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    room.kwok.nodes("windows", 1, &labels("kubernetes.io/os", "windows")).await.unwrap();
    room.kwok.nodes("virtual", 1, &labels("type", "virtual-kubelet")).await.unwrap();
    room.kwok.nodes("tainted", 1, &BTreeMap::new()).await.unwrap();
    room.release.kubectl(&["taint", "node", "tainted-0", "gpu=yes:NoSchedule"]).await.unwrap();
    room.kwok.nodes("full", 1, &BTreeMap::new()).await.unwrap();
    room.agents.age_kernel("aged-0");
    room.kwok.nodes("aged", 1, &BTreeMap::new()).await.unwrap();
    // The shop's pods stand already; nothing else fits.
    for node in ["windows-0", "virtual-0", "tainted-0", "full-0", "aged-0"] {
        room.pod_on(node).await;
    }
    resize(&room, "full-0", "32", "256Gi", "1").await;

    let tolerant = "  kubernetes: {tolerations: [{key: other, operator: Exists}]}\n";
    room.release.apply(&monitor("prod", "0.1.1", &format!("{tolerant}{WAVES}"))).await.unwrap();
    for node in ["node-0", "node-1"] {
        let pod = room.pod_on(node).await;
        room.explains(&pod, "\"verdict\":\"Covered\"").await;
    }
    let why = [
        ("windows-0", "UnsupportedPlatform", "windows"),
        ("virtual-0", "UnsupportedPlatform", "virtual-kubelet"),
        ("tainted-0", "NodeWithoutAgent", "taint"),
        ("full-0", "NodeWithoutAgent", "Too many pods"),
        ("aged-0", "KernelUnsupported", "sees Network on kernel 4.14.355-kwok"),
    ];
    for (node, reason, words) in why {
        let pod = room.pod_on(node).await;
        let said = room.explains(&pod, &format!("\"reason\":\"{reason}\"")).await;
        assert!(said.contains(words), "{node}: {words} in {said}");
    }
    let shop = room.list("pods", &["--namespace=shop"]).await.unwrap();
    let uids: Vec<_> = shop.iter().map(|pod| text(&pod["metadata"]["uid"])).collect();

    // A version is rolled past them.
    room.release.apply(&monitor("prod", "0.1.2", &format!("{tolerant}{WAVES}"))).await.unwrap();
    let rolled = until("the nodes that can have the new version have it", LIMIT, || async {
        let done = room.agents.speaking("0.1.2") == 3 && room.versions().await? == ["0.1.2"];
        Ok((done && room.labels().await?.is_empty()).then_some(()))
    });
    room.or_log(rolled.await).await;
    let shop = room.list("pods", &["--namespace=shop"]).await.unwrap();
    assert_eq!(shop.iter().map(|pod| text(&pod["metadata"]["uid"])).collect::<Vec<_>>(), uids, "none was evicted");
    assert_eq!(room.agents.gaps(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_only_one_agent_fits_the_old_one_goes_first_and_the_application_stays() {
    let room = Room::start(2).await;
    room.release.apply(&monitor("prod", "0.1.1", WAVES)).await.unwrap();
    room.is_covered_by("0.1.1", 2).await;
    let pod = text(&room.list("pods", &["--namespace=shop"]).await.unwrap()[0]["metadata"]["uid"]);
    // An agent and a pod of the shop's: there is no third place.
    resize(&room, "node-0", "32", "256Gi", "2").await;
    room.release.apply(&monitor("prod", "0.1.2", WAVES)).await.unwrap();
    room.event("PutAttribute", "the node has no room for two agents: the old one goes first").await;
    room.is_covered_by("0.1.2", 2).await;
    let pods = room.list("pods", &["--namespace=shop"]).await.unwrap();
    assert!(pods.iter().any(|one| text(&one["metadata"]["uid"]) == pod), "the application was not evicted");
    assert_eq!(room.agents.gaps(), ["node-0"], "the one gap, where there is no room for two");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_come_and_go_in_mid_wave_and_count_neither_as_moved_nor_as_failed() {
    let mut room = Room::start(5).await;
    let wide = WAVES.replace("maxUnavailable: 1%", "maxUnavailable: 40%");
    room.release.apply(&monitor("prod", "0.1.1", &wide)).await.unwrap();
    room.is_covered_by("0.1.1", 5).await;

    // The new agents say nothing yet, so that the hand-over stands still.
    room.agents.mute("0.1.2");
    room.release.apply(&monitor("prod", "0.1.2", &wide)).await.unwrap();
    let gone = until("a node is in hand-over", LIMIT, || async { Ok(room.labels().await?.into_keys().next()) });
    let gone = room.or_log(gone.await).await;
    room.release.kubectl(&["delete", "node", &gone]).await.unwrap();
    room.kwok.nodes("new", 2, &BTreeMap::new()).await.unwrap();
    // What comes meanwhile gets the proven version.
    for node in ["new-0", "new-1"] {
        let pod = room.pod_on(node).await;
        let said = room.explains(&pod, "\"verdict\":\"Covered\"").await;
        assert!(said.contains("\"agentVersion\":\"0.1.1\""), "{said}");
    }
    room.agents.unmute("0.1.2");
    room.is_covered_by("0.1.2", 6).await;
    let gaps: Vec<_> = room.agents.gaps().into_iter().filter(|node| *node != gone).collect();
    assert_eq!(gaps, [""; 0], "no node that stayed was without an agent");
    let memory = room.release.kubectl(&["get", "configmap", "tasuki-rollout", "-n=tasuki-system", "-o=yaml"]).await;
    assert!(!memory.unwrap().contains("did not report"), "no version is remembered as failed");

    // Once more, and the node goes where the old agent has gone.
    room.release.apply(&monitor("prod", "0.1.3", &wide)).await.unwrap();
    let moved = until("a node has the new agent alone", Duration::from_secs(60), || async {
        Ok(room.labels().await?.into_iter().find(|(_, value)| value == "only").map(|(node, _)| node))
    });
    let moved = room.or_log(moved.await).await;
    room.release.kubectl(&["delete", "node", &moved]).await.unwrap();
    room.is_covered_by("0.1.3", 5).await;
}
