//! The steps of the demo, in order. Each one ends only when it was seen to have happened.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tasuki_e2e::config::THREATS;
use tasuki_e2e::coverage::{rows, settled};
use tasuki_e2e::process::until;
use tasuki_e2e::{attack, screen};
use tasuki_e2e_kubernetes::Kwok;
use tasuki_e2e_kubernetes::world::World;

/// Long enough for a loaded machine with two cores.
const LIMIT: Duration = Duration::from_secs(240);
/// Workload of the application on the first node.
const WEB: &str = "Deployment/shop/web-node-1";
/// And on the second.
const TAINTED: &str = "Deployment/shop/web-node-2";
/// Workload on a node that can have no agent.
const VIRTUAL: &str = "Pod/shop/billing";

/// Runs every step. `benign` is how long nothing may be found before the attack; with `keep` nothing is removed.
pub async fn run(world: &World, benign: Duration, keep: bool) -> Result<()> {
    // It only claims to run pods, as the nodes of a cloud's serverless offer do.
    let mut kwok = Kwok::start(&world.plane).await?;
    let first = customer(world, &mut kwok).await?;
    observe(world).await?;
    enforce(world).await?;
    attacks(world, first, benign).await?;
    roll(world).await?;
    broken(world).await?;
    if !keep {
        uninstall(world).await?;
    }
    Ok(())
}

async fn customer(world: &World, kwok: &mut Kwok) -> Result<Ipv4Addr> {
    screen::step(
        1,
        "A cluster with two nodes, one of them tainted, and a virtual one; the customer's application on each",
    );
    world.kubectl(&["taint", "node", "node-2", "gpu=true:NoSchedule"]).await?;
    let labels = BTreeMap::from([("type".to_owned(), "virtual-kubelet".to_owned())]);
    let virtual_node = kwok.nodes("virtual", 1, &labels).await?.remove(0);
    world.kubectl(&["taint", "node", &virtual_node, "virtual-kubelet.io/provider=kwok:NoSchedule"]).await?;
    let first = world.shop("node-1").await?;
    screen::seen(&format!("{WEB} runs at {first}"));
    let second = world.shop("node-2").await?;
    screen::seen(&format!("{TAINTED} runs at {second}"));
    world
        .apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: billing, namespace: shop}}, spec: {{nodeName: {virtual_node}, \
             containers: [{{name: billing, image: billing}}]}}}}"
        ))
        .await?;
    world.kubectl(&["wait", "--for=condition=Ready", "pod/billing", "--namespace=shop", "--timeout=60s"]).await?;
    screen::seen(&format!("{VIRTUAL} runs on {virtual_node}"));
    Ok(first)
}

async fn observe(world: &World) -> Result<()> {
    screen::step(2, "`helm install` with no values: every pod has a verdict, and nothing is changed");
    let began = Instant::now();
    let notes = world.install(&[]).await?;
    ensure!(notes.contains("deployed"), "helm says: {notes}");
    world.answers().await?;
    screen::seen(&format!("a table of coverage {} s after `helm install`", began.elapsed().as_secs()));
    screen::progress("pods that are younger than their grace of 2 minutes are Starting; waiting for verdicts");
    let wanted = BTreeMap::from([
        (WEB, "Uncovered ObserveOnly"),
        (TAINTED, "Uncovered ObserveOnly"),
        (VIRTUAL, "Uncovered UnsupportedPlatform"),
    ]);
    verdicts(world, &wanted).await?;
    show(world, &["coverage"]).await?;
    until("the monitor's status says how many pods there are", LIMIT, || async {
        let total =
            world.kubectl(&["get", "runtimemonitor", "default", "-o=jsonpath={.status.coverage.total}"]).await?;
        Ok((!total.is_empty()).then_some(()))
    })
    .await?;
    screen::output("kubectl get runtimemonitors", &world.kubectl(&["get", "runtimemonitors"]).await?);
    let sets = world.kubectl(&["get", "daemonsets", "--namespace=tasuki-agents", "-o=name"]).await?;
    ensure!(sets.trim().is_empty(), "Observe made {sets}");
    Ok(())
}

async fn enforce(world: &World) -> Result<()> {
    screen::step(
        3,
        "The chart grants the rights (`enforce: true`), a RuntimeMonitor enforces: agents come, and coverage follows their heartbeats",
    );
    // The monitor is the user's own: what the chart would make waits ten minutes after its canary.
    world.install(&["enforce=true", "defaultMonitor=false"]).await?;
    world.answers().await?;
    world.apply(THREATS).await?;
    world.apply(&world.monitor(&world.agent)).await?;
    let wanted = BTreeMap::from([(WEB, "Covered"), (TAINTED, "Covered"), (VIRTUAL, "Uncovered UnsupportedPlatform")]);
    verdicts(world, &wanted).await?;
    show(world, &["coverage"]).await
}

async fn attacks(world: &World, address: Ipv4Addr, benign: Duration) -> Result<()> {
    screen::step(4, "A coin miner, a reverse shell, a new binary and fileless execution in a pod");
    screen::progress(&format!("{} s of ordinary work first: nothing may be found", benign.as_secs()));
    let end = Instant::now() + benign;
    let day = "date; ls / | wc -l; grep -c root /etc/passwd; wget -q -O /dev/null http://127.0.0.1:8080/; true";
    while Instant::now() < end {
        attack::inject(address, day).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let found = findings(world).await?;
    ensure!(found.is_empty(), "ordinary work was found to be an attack: {found:#?}");
    screen::seen("nothing was found in it");
    attack::miner(address).await?;
    attack::reverse_shell(address).await?;
    attack::new_binary(address).await?;
    attack::fileless(address).await?;
    let wanted = [
        "Impact:Runtime/CryptoMinerExecuted",
        "CryptoCurrency:Runtime/BitcoinTool.B!DNS",
        "Execution:Runtime/ReverseShell",
        "Execution:Runtime/NewBinaryExecuted",
        "DefenseEvasion:Runtime/FilelessExecution",
    ];
    let found = until("every attack is found", Duration::from_secs(60), || async {
        let mut found = findings(world).await?;
        // Both nodes have the one kernel of this machine: the other node's agent finds it too, and cannot name the pod.
        found.retain(|finding| finding["resource"]["namespace"] == "shop");
        let kinds: BTreeSet<&str> = found.iter().filter_map(|finding| finding["type"].as_str()).collect();
        Ok(wanted.iter().all(|kind| kinds.contains(kind)).then_some(found))
    });
    let found = match found.await {
        Ok(found) => found,
        Err(error) => return Err(error.context(world.tasuki(&["findings"]).await?)),
    };
    for kind in wanted {
        screen::seen(kind);
    }
    let miner = found.iter().find(|finding| finding["type"] == wanted[0]).context("the miner's finding is gone")?;
    for (path, value) in [
        ("/resource/cluster", "k8s/self"),
        ("/resource/namespace", "shop"),
        ("/resource/workload", "Deployment/web-node-1"),
        ("/resource/node", "k8s/self/node/node-1"),
        ("/resource/container/name", "web"),
        ("/resource/container/image", "registry.example.test/shop:1"),
        ("/process/executable", "/tmp/.x/xmrig"),
    ] {
        let is = miner.pointer(path).and_then(Value::as_str).unwrap_or_default();
        ensure!(is == value, "{path} of the miner's finding is {is:?}, not {value:?}: {miner:#}");
    }
    for path in ["/resource/pod", "/resource/container/imageDigest", "/process/sha256", "/process/lineage/1/executable"]
    {
        ensure!(
            miner.pointer(path).is_some_and(|value| value.as_str() != Some("")),
            "the miner's finding lacks {path}: {miner:#}"
        );
    }
    show(world, &["findings"]).await
}

async fn findings(world: &World) -> Result<Vec<Value>> {
    Ok(world.json(&["findings"]).await?.as_array().cloned().unwrap_or_default())
}

async fn roll(world: &World) -> Result<()> {
    screen::step(5, "A new agent version, one line of YAML: it comes beside the old one, which goes when it reports");
    world.apply(&world.monitor(&world.next)).await?;
    never_without(world, "both nodes run the new version", async {
        until("both nodes run the new version", LIMIT, || async {
            let coverage = world.json(&["coverage"]).await?;
            let rows = rows(&coverage);
            let new =
                [WEB, TAINTED].iter().all(|name| rows.iter().any(|row| row.0 == *name && row.2 == world.next.version));
            Ok((new && settled(&coverage, "self")).then_some(()))
        })
        .await
    })
    .await?;
    let labelled = world.kubectl(&["get", "nodes", "-l", "tasuki.dev/agent-next", "-o=name"]).await?;
    ensure!(labelled.trim().is_empty(), "nodes are still in hand-over: {labelled}");
    screen::seen(&format!("{} serves every node, and no pod was uncovered meanwhile", world.next.version));
    show(world, &["coverage"]).await
}

async fn broken(world: &World) -> Result<()> {
    screen::step(6, "A broken version is rolled out, and rolled back by itself");
    world.apply(&world.monitor(&world.broken)).await?;
    never_without(world, "the broken version is taken back", async {
        until("the roll-out of the broken version begins", LIMIT, || async {
            Ok((!settled(&world.json(&["coverage"]).await?, "self")).then_some(()))
        })
        .await?;
        screen::progress("the broken version was started beside the good one");
        until("the broken version is taken back", LIMIT, || async {
            let sets = world.kubectl(&["get", "daemonsets", "--namespace=tasuki-agents", "-o=name"]).await?;
            Ok((sets.lines().count() == 1 && settled(&world.json(&["coverage"]).await?, "self")).then_some(()))
        })
        .await
    })
    .await?;
    screen::seen("it was taken back, and no pod was uncovered meanwhile");
    let events = world
        .kubectl(&["get", "events", "--field-selector=involvedObject.kind=RuntimeMonitor", "--namespace=default"])
        .await?;
    ensure!(events.contains("CreateDaemon") && events.contains("PromoteDaemon"), "actions leave Events: {events}");
    screen::output("kubectl get events --field-selector involvedObject.kind=RuntimeMonitor", &events);
    show(world, &["actions"]).await
}

async fn uninstall(world: &World) -> Result<()> {
    screen::step(7, "`helm uninstall` leaves nothing but CRDs and CRs; the customer's pods run on as they were");
    let before = customers_pods(world).await?;
    tasuki_e2e_kubernetes::helm(&world.plane, &["uninstall", "tasuki", "--namespace", "tasuki-system", "--wait"])
        .await?;
    until("the agents' namespace is gone", LIMIT, || async {
        let left = world.kubectl(&["get", "namespace", "tasuki-agents", "--ignore-not-found", "-o=name"]).await?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .await?;
    let kinds = "clusterroles,clusterrolebindings,priorityclasses,validatingadmissionpolicies,validatingadmissionpolicybindings";
    let left = world.kubectl(&["get", kinds, "-o=name"]).await?;
    let left: Vec<_> = left.lines().filter(|name| name.contains("tasuki")).collect();
    ensure!(left.is_empty(), "left in the cluster: {left:?}");
    let own = "deployments,services,serviceaccounts,secrets,configmaps,leases,roles,rolebindings";
    let kept = until("what the controller made goes with the release", LIMIT, || async {
        let left = world.kubectl(&["get", own, "--namespace=tasuki-system", "-o=name"]).await?;
        let left: Vec<String> = left.lines().filter(|name| name.contains("tasuki")).map(str::to_owned).collect();
        Ok(left.is_empty().then_some(left))
    });
    kept.await.context(world.kubectl(&["get", own, "--namespace=tasuki-system"]).await?)?;
    let crds = world.kubectl(&["get", "crds", "-o=name"]).await?;
    ensure!(crds.contains("runtimemonitors.tasuki.dev"), "the definitions stay: {crds}");
    let after = customers_pods(world).await?;
    ensure!(before == after, "the customer's pods changed: {before} became {after}");
    let labelled = world.kubectl(&["get", "nodes", "-l", "tasuki.dev/agent-next", "-o=name"]).await?;
    ensure!(labelled.trim().is_empty(), "nodes are still labelled: {labelled}");
    screen::seen(
        "no DaemonSet, namespace, role, policy or label of Tasuki's is left, and no pod of the customer's was restarted",
    );
    Ok(())
}

/// The application's pods, and how often their containers were restarted.
async fn customers_pods(world: &World) -> Result<String> {
    let path = "-o=jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[*].restartCount}{\"\\n\"}{end}";
    world.kubectl(&["get", "pods", "--namespace=shop", "--sort-by=.metadata.uid", path]).await
}

/// Waits for `end`; fails at once when one of the application's pods is seen to be anything but covered.
async fn never_without(world: &World, what: &str, end: impl Future<Output = Result<()>>) -> Result<()> {
    let dropped = async {
        loop {
            // A question that got no answer says nothing.
            if let Ok(coverage) = world.json(&["coverage"]).await {
                let rows = rows(&coverage);
                for name in [WEB, TAINTED] {
                    match rows.iter().find(|row| row.0 == name) {
                        Some(row) if row.1 == "Covered" => {}
                        Some(row) => return anyhow::anyhow!("until {what}: coverage of {name} dropped to {}", row.3),
                        None => return anyhow::anyhow!("until {what}: {name} is no longer listed"),
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        done = end => done,
        dropped = dropped => Err(dropped),
    }
}

/// Waits until every workload has its verdict (and reason).
async fn verdicts(world: &World, wanted: &BTreeMap<&str, &str>) -> Result<()> {
    let seen = until("every pod has the verdict that it should have", LIMIT, || async {
        let coverage = world.json(&["coverage"]).await?;
        let now: BTreeMap<String, String> = rows(&coverage).into_iter().map(|row| (row.0, row.3)).collect();
        Ok(wanted.iter().all(|(workload, verdict)| now.get(*workload).is_some_and(|v| v == verdict)).then_some(now))
    });
    match seen.await {
        Ok(_) => {
            screen::seen("every pod has the verdict that it should have");
            Ok(())
        }
        Err(error) => Err(error.context(world.tasuki(&["coverage", "-o", "wide"]).await?)),
    }
}

async fn show(world: &World, arguments: &[&str]) -> Result<()> {
    screen::output(&format!("tasuki {}", arguments.join(" ")), &world.tasuki(arguments).await?);
    Ok(())
}
