//! The agent alone on a Docker host, without a controller: it names what was done in a container.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;
use tasuki_e2e::dockerd::Cgroups;
use tasuki_e2e::process::{Process, until};
use tasuki_e2e::shop::Shop;
use tasuki_e2e::{attack, benign, world};

/// Findings that the agent printed, by type.
fn findings(process: &Process) -> BTreeMap<String, Vec<Value>> {
    let mut all: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in std::fs::read_to_string(&process.log).unwrap_or_default().lines() {
        if let Ok(finding) = serde_json::from_str::<Value>(line)
            && let Some(kind) = finding["type"].as_str()
        {
            all.entry(kind.to_owned()).or_default().push(finding);
        }
    }
    all
}

async fn attacked(name: &str, subnet: [u8; 3], cgroups: Cgroups) {
    let directory = tempfile::tempdir().unwrap();
    let lab = std::path::Path::new(env!("CARGO_BIN_EXE_tasuki-lab"));
    let shop = Shop::start(directory.path(), name, subnet, cgroups, lab).await.unwrap();
    let policy = directory.path().join("policy.json");
    let list =
        json!({"verdict": "Threat", "entity": "Domain", "category": "CryptoCurrency", "inline": ["pool.example.test"]});
    std::fs::write(&policy, json!({"lists": [list]}).to_string()).unwrap();
    let agent = world::binaries().unwrap().join("tasuki-agent");
    let mut command = match cgroups {
        Cgroups::Host => Command::new(agent),
        // The agent must see what the engine sees: a host that has version 2 and nothing else.
        Cgroups::V2 => {
            let mut command = Command::new("unshare");
            let script = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec \"$0\" \"$@\"";
            command.args(["--mount", "sh", "-c", script]).arg(agent);
            command
        }
    };
    command.args(["run", "--stdout", "--sensor", "ebpf", "--policy"]).arg(&policy).env("NO_COLOR", "1");
    command.env("RUST_LOG", "info,tasuki_agent::pipeline::world=trace");
    let mut agent = Process::start("agent", command, directory.path()).unwrap();
    agent.says("watching", Duration::from_secs(120)).await.unwrap();

    benign::day(shop.address, 3).await.unwrap();
    let alarms = findings(&agent);
    assert!(alarms.is_empty(), "an ordinary day is no attack: {alarms:#?}");

    attack::miner(shop.address).await.unwrap();
    attack::reverse_shell(shop.address).await.unwrap();
    attack::new_binary(shop.address).await.unwrap();
    attack::fileless(shop.address).await.unwrap();
    let expected = [
        "Impact:Runtime/CryptoMinerExecuted",
        "CryptoCurrency:Runtime/BitcoinTool.B!DNS",
        "Execution:Runtime/ReverseShell",
        "Execution:Runtime/NewBinaryExecuted",
        "DefenseEvasion:Runtime/FilelessExecution",
    ];
    let seen = until("every attack is found", Duration::from_secs(20), || async {
        let seen = findings(&agent);
        Ok(expected.iter().all(|kind| seen.contains_key(*kind)).then_some(seen))
    })
    .await;
    let seen = seen
        .unwrap_or_else(|error| panic!("{error}; the agent said:\n{}", std::fs::read_to_string(&agent.log).unwrap()));

    let miner = &seen["Impact:Runtime/CryptoMinerExecuted"][0];
    assert_eq!(miner["process"]["executable"], "/tmp/.x/xmrig", "{miner:#}");
    assert_eq!(miner["process"]["arguments"][2], "stratum+tcp://pool.example.test:3333", "{miner:#}");
    assert_eq!(miner["resource"]["container"]["id"], shop.id, "{miner:#}");
    let lineage = miner["process"]["lineage"].as_array().unwrap();
    assert!(lineage.iter().any(|ancestor| ancestor["arguments"][0] == "httpd"), "{miner:#}");
    let sha = miner["process"]["sha256"].as_str().unwrap_or_default();
    let own = Command::new("sha256sum").arg(lab).output().unwrap();
    assert_eq!(sha, String::from_utf8_lossy(&own.stdout).split_whitespace().next().unwrap());
    // Written is what a write or the overlay's layer told; a late ctime alone would be weak.
    for new in &seen["Execution:Runtime/NewBinaryExecuted"] {
        assert_eq!(new["evidence"]["process.image.written_after_start"], true, "{new:#}");
        assert!(new["evidence"].get("process.image.changed_after_start_weak").is_none(), "{new:#}");
    }
    let question = &seen["CryptoCurrency:Runtime/BitcoinTool.B!DNS"][0]["dns"];
    assert_eq!(question["question"], "pool.example.test");
    // Its writers are gone before anybody can ask who they were.
    attack::user(shop.address, 20).await.unwrap();
    let kind = "Persistence:Runtime/SensitiveFileModified";
    let file = until("the written file is found", Duration::from_secs(20), || async {
        Ok(findings(&agent).remove(kind).map(|mut found| found.remove(0)))
    })
    .await;
    let file = file.unwrap_or_else(|error| panic!("{error}; the agent said:\n{}", agent.tail()));
    assert_eq!(file["file"]["path"], "/etc/passwd", "{file:#}");
    assert_eq!(file["process"]["executable"], "/bin/busybox", "{file:#}");
    let lineage = file["process"]["lineage"].as_array().unwrap();
    assert!(lineage.iter().any(|ancestor| ancestor["arguments"][0] == "httpd"), "{file:#}");
    assert!(!file["evidence"].to_string().contains("exec_session"), "{file:#}");
    agent.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(agent.wait(Duration::from_secs(20)).unwrap().success());
    let log = std::fs::read_to_string(&agent.log).unwrap();
    // The service listened before the agent came, so its accepts have no process. All else has a place.
    let lost: Vec<_> =
        log.lines().filter(|line| line.contains("an event without a place") && !line.contains("Accept(")).collect();
    assert!(lost.is_empty() && log.contains("unplaced: "), "{lost:#?}");
    let all: u64 = findings(&agent)[kind].iter().map(|finding| finding["count"].as_u64().unwrap()).max().unwrap();
    assert_eq!(all, 20, "every write matched");
    shop.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_in_a_container_are_found_and_named_on_cgroup_v1() {
    attacked("tsk-test-alone1", [172, 31, 253], Cgroups::Host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_in_a_container_are_found_and_named_on_cgroup_v2() {
    attacked("tsk-test-alone2", [172, 31, 254], Cgroups::V2).await;
}
