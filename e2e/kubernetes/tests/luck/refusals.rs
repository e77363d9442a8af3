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
