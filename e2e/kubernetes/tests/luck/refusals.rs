//! What the cluster refuses, what somebody else changes, and what is taken away.

use crate::room::{LIMIT, Room, WAVES, monitor, text};
use std::collections::BTreeMap;
use tasuki_e2e::process::until;

const NAMESPACE: &str = "--namespace=tasuki-agents";

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_quoted_and_are_no_more_once_they_are_lifted() {
    let mut room = Room::start(2).await;
    room.release.apply(&monitor("prod", "0.1.1", WAVES)).await.unwrap();
    room.is_covered_by("0.1.1", 2).await;
    pod_security(&mut room).await;
    quota(&mut room).await;
    quota_in_mid_rollout(&mut room).await;
    somebody_else_writes(&room).await;
    the_namespace_goes(&room).await;
}

async fn pod_security(room: &mut Room) {
    let level = |level: &str| format!("pod-security.kubernetes.io/enforce={level}");
    room.release.kubectl(&["label", "namespace", "tasuki-agents", "--overwrite", &level("restricted")]).await.unwrap();
    room.kwok.nodes("strict", 1, &BTreeMap::new()).await.unwrap();
    let pod = room.pod_on("strict-0").await;
    let said = room.explains(&pod, "violates PodSecurity").await;
    assert!(said.contains("\"reason\":\"NodeWithoutAgent\""), "{said}");

    // A version that cannot start is given up, and the old agents stay.
    let hasty = WAVES.replace("deadline: 60s", "deadline: 5s");
    room.release.apply(&monitor("prod", "0.1.2", &hasty)).await.unwrap();
    let memory = until("the version that is refused is given up", LIMIT, || async {
        let path = "-o=jsonpath={.data.memory}";
        let memory = room.release.kubectl(&["get", "configmap", "tasuki-rollout", "-n=tasuki-system", path]).await?;
        Ok(memory.contains("did not report").then_some(memory))
    });
    let memory = room.or_log(memory.await).await;
    assert!(memory.contains("violates PodSecurity"), "the cause is kept: {memory}");
    let back = until("only the old version is there", LIMIT, || async {
        Ok((room.versions().await? == ["0.1.1"] && room.labels().await?.is_empty()).then_some(()))
    });
    room.or_log(back.await).await;
    assert_eq!((room.agents.gaps(), room.agents.speaking("0.1.1")), (Vec::new(), 2));

    room.release.kubectl(&["label", "namespace", "tasuki-agents", "--overwrite", &level("privileged")]).await.unwrap();
    room.release.apply(&monitor("prod", "0.1.1", WAVES)).await.unwrap();
    room.is_covered_by("0.1.1", 3).await;
}

async fn quota(room: &mut Room) {
    room.release.kubectl(&["create", "quota", "tight", "--hard=pods=3", NAMESPACE]).await.unwrap();
    let used = until("the quota is counted", LIMIT, || async {
        let used =
            room.release.kubectl(&["get", "quota", "tight", NAMESPACE, "-o=jsonpath={.status.used.pods}"]).await?;
        Ok((used == "3").then_some(()))
    });
    used.await.unwrap();
    room.kwok.nodes("late", 1, &BTreeMap::new()).await.unwrap();
    let pod = room.pod_on("late-0").await;
    let said = room.explains(&pod, "exceeded quota").await;
    assert!(said.contains("\"reason\":\"NodeWithoutAgent\""), "{said}");
    room.release.kubectl(&["delete", "quota", "tight", NAMESPACE]).await.unwrap();
    room.is_covered_by("0.1.1", 4).await;
}

/// A quota that lets no further pod in once the first node is handed over.
async fn quota_in_mid_rollout(room: &mut Room) {
    held_by_quota(room, "0.1.4").await;
    room.release.kubectl(&["delete", "quota", "tight", NAMESPACE]).await.unwrap();
    room.is_covered_by("0.1.4", 4).await;

    // It stays past the deadline: the version is given up, and the way back waits for the quota as well.
    held_by_quota(room, "0.1.5").await;
    let hasty = WAVES.replace("deadline: 60s", "deadline: 5s");
    room.release.apply(&monitor("prod", "0.1.5", &hasty)).await.unwrap();
    let why = room.says("prod", "Stalled", "True", "RolledBack").await;
    assert!(why.starts_with("0.1.5 failed: ") && why.contains("exceeded quota"), "{why}");
    let speaking = room.agents.speaking("0.1.4") + room.agents.speaking("0.1.5");
    assert_eq!((room.agents.gaps(), speaking), (Vec::new(), 4), "each node has an agent, of either version");
    room.release.kubectl(&["delete", "quota", "tight", NAMESPACE]).await.unwrap();
    room.is_covered_by("0.1.4", 4).await;
    room.release.apply(&monitor("prod", "0.1.5", WAVES)).await.unwrap();
    let (code, said) = room.release.controller().unwrap().tasuki(&["rollout", "retry", "self"]).unwrap();
    assert_eq!(code, 0, "{said}");
    room.is_covered_by("0.1.5", 4).await;
    assert_eq!(room.agents.gaps(), [""; 0], "no node was without an agent");
}

/// Begins to roll to a version, and lets a quota stop it when one node of four has moved.
async fn held_by_quota(room: &mut Room, version: &str) {
    // The new agents say nothing yet, so that the hand-over of the first node stands still.
    room.agents.mute(version);
    let patient = WAVES.replace("deadline: 60s", "deadline: 5m");
    room.release.apply(&monitor("prod", version, &patient)).await.unwrap();
    let placed = until("the first node has both agents", LIMIT, || async {
        Ok((room.pods("tasuki-agents").await.len() == 5).then_some(()))
    });
    room.or_log(placed.await).await;
    room.release.kubectl(&["create", "quota", "tight", "--hard=pods=4", NAMESPACE]).await.unwrap();
    room.agents.unmute(version);
    let waits = until("one node has the new agent alone, and the next one waits for it", LIMIT, || async {
        let labels = room.labels().await?.into_values();
        let mut labels: Vec<_> = labels.collect();
        labels.sort();
        Ok((labels == ["both", "only"] && room.agents.speaking(version) == 1).then_some(()))
    });
    room.or_log(waits.await).await;
    let refused = until("the cluster refuses the next pod", LIMIT, || async {
        let events = room.release.kubectl(&["get", "events", NAMESPACE, "-o=jsonpath={.items[*].message}"]).await?;
        Ok(events.contains("exceeded quota").then_some(()))
    });
    room.or_log(refused.await).await;
    let why = room.says_with("prod", "RolledOut", "False", "RollingOut", "; it waits: node ").await;
    assert!(why.contains("exceeded quota"), "{why}");
    assert_eq!(room.agents.gaps(), [""; 0]);
}

/// Somebody takes fields of the DaemonSet: it is told, and no rollout is held up by it.
async fn somebody_else_writes(room: &Room) {
    let sets = room.list("daemonsets", &[NAMESPACE]).await.unwrap();
    let name = text(&sets[0]["metadata"]["name"]);
    let theirs = format!(
        "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: {name}, namespace: tasuki-agents}}\nspec:\n  template:\n    \
         spec:\n      terminationGracePeriodSeconds: 3\n      affinity: {{nodeAffinity: \
         {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{{matchExpressions: \
         [{{key: kubernetes.io/os, operator: In, values: [linux]}}]}}]}}}}}}\n"
    );
    let take = ["apply", "--server-side", "--force-conflicts", "--field-manager=kyverno", "--filename=-"];
    room.kubectl_with(&take, &theirs).await.unwrap();
    room.event("DaemonSetChanged", "kyverno").await;
    assert_eq!(room.agents.gaps(), [""; 0]);
    room.release.apply(&monitor("prod", "0.1.3", WAVES)).await.unwrap();
    room.is_covered_by("0.1.3", 4).await;
}

async fn the_namespace_goes(room: &Room) {
    room.release.kubectl(&["delete", "namespace", "tasuki-agents"]).await.unwrap();
    let pod = room.pod_on("node-0").await;
    let said = room.explains(&pod, "are gone; install the chart again").await;
    assert!(said.contains("namespace tasuki-agents or the chart's rights in it"), "{said}");
    room.release.install(&["enforce=true", "defaultMonitor=false"]).await.unwrap();
    room.is_covered_by("0.1.3", 4).await;
}
