//! Verdicts, table by table.

use super::*;
use crate::action::{ActionKind, SIDECAR};
use crate::fixtures::*;
use crate::fleet::*;
use crate::memory::Memory;
use serde_json::{Value, json};
use tasuki_api::coverage::{Currency, Depth, Reason, TaskCoverage, Verdict};
use tasuki_api::desired::Document;

fn judged(documents: &[Document], fleet: &Fleet, task: &str, now: i64) -> TaskCoverage {
    let mut decider = Decider::new(desired(documents), Memory::default());
    decider.decide_all(fleet, at(now));
    let explained = decider.explain(fleet, &task_arn(task), at(now)).unwrap();
    let (cluster, group) = fleet.place_of_task(&task_arn(task)).unwrap();
    let held = decider.verdict(cluster, group, &task_arn(task)).unwrap();
    assert_eq!((held.verdict, held.reason), (explained.coverage.verdict, explained.coverage.reason));
    explained.coverage
}

fn verdict(documents: &[Document], fleet: &Fleet, task: &str, now: i64) -> (Verdict, Option<Reason>) {
    let row = judged(documents, fleet, task, now);
    if row.reason.is_some() {
        assert!(row.detail.as_ref().is_some_and(|d| !d.is_empty()), "{row:?}");
        assert!(row.next_step.is_some());
    }
    (row.verdict, row.reason)
}

pub(super) fn enforce() -> [Document; 1] {
    [monitor("prod", |_| {})]
}

fn set(path: &'static str, value: Value) -> [Document; 1] {
    [monitor("prod", |spec| {
        let mut at = spec;
        for part in path.split('.') {
            if at.get(part).is_none() {
                at[part] = json!({});
            }
            at = at.get_mut(part).unwrap();
        }
        *at = value;
    })]
}

const COVERED: (Verdict, Option<Reason>) = (Verdict::Covered, None);
const STARTING: (Verdict, Option<Reason>) = (Verdict::Starting, None);

fn unhealthy(reason: Reason) -> (Verdict, Option<Reason>) {
    (Verdict::Unhealthy, Some(reason))
}
fn uncovered(reason: Reason) -> (Verdict, Option<Reason>) {
    (Verdict::Uncovered, Some(reason))
}

#[test]
fn a_sidecar_is_judged_by_its_report_and_by_ecs() {
    type Case = (&'static str, (Verdict, Option<Reason>), fn(&mut Task, &mut AgentReport));
    let edits: Vec<Case> = vec![
        ("whole", COVERED, |_, _| {}),
        ("conflict", unhealthy(Reason::AgentIdentityConflict), |_, r| r.conflict = Some(at(990))),
        ("sensor", unhealthy(Reason::SensorDegraded), |_, r| r.heartbeat.sensors[0].whole = false),
        ("no sensor", unhealthy(Reason::SensorDegraded), |_, r| r.heartbeat.sensors.clear()),
        ("depth", unhealthy(Reason::DepthBelowMinimum), |_, r| r.heartbeat.depth = Depth::Network),
        ("clock", unhealthy(Reason::ClockSkew), |_, r| r.heartbeat.time = at(0)),
        ("old", unhealthy(Reason::BelowMinimumVersion), |_, r| r.heartbeat.version = "1.2.9".into()),
        ("silent", unhealthy(Reason::AgentNotReporting), |_, r| r.received_at = at(700)),
        ("ecs says no", unhealthy(Reason::AgentNotReporting), |t, _| t.containers[1].status = "PENDING".into()),
        ("exited", unhealthy(Reason::AgentExited), |t, _| {
            (t.containers[1].status, t.containers[1].exit_code) = ("STOPPED".into(), Some(3));
        }),
        ("oom", unhealthy(Reason::AgentOutOfMemory), |t, _| {
            t.containers[1].status = "STOPPED".into();
            t.containers[1].reason = Some("OutOfMemoryError: Container killed".into());
        }),
        ("pull", unhealthy(Reason::ImagePullFailed), |t, _| {
            t.containers[1].reason = Some("CannotPullContainerError: no such host".into());
        }),
        ("stopping", COVERED, |t, _| {
            t.desired_stopped = true;
            (t.containers[1].status, t.containers[1].exit_code) = ("STOPPED".into(), Some(0));
        }),
    ];
    let documents = set("agent.minimumVersion", json!("1.3.0"));
    for (name, expected, edit) in edits {
        let (mut task, mut report) = (with_sidecar(task("a", "shop")), sidecar_report("a", at(1000)));
        edit(&mut task, &mut report);
        let fleet = fleet(vec![of_task(task), of_agent(report)]);
        assert_eq!(verdict(&documents, &fleet, "a", 1000), expected, "{name}");
    }
}

#[test]
fn an_agent_that_lost_findings_is_unhealthy_for_an_hour() {
    let mut fleet = fleet(vec![of_task(with_sidecar(task("a", "shop")))]);
    let mut hear = |now: i64, lost: u64| {
        let mut report = sidecar_report("a", at(now));
        report.heartbeat.usage.spool_dropped = lost;
        fleet.apply(of_agent(report), at(now));
        judged(&enforce(), &fleet, "a", now)
    };
    assert_eq!(hear(300, 0).verdict, Verdict::Covered);
    let row = hear(360, 7);
    assert_eq!((row.verdict, row.reason), unhealthy(Reason::EventLoss));
    assert!(row.detail.unwrap().contains("lost 7 findings"));
    assert_eq!(hear(360 + 3599, 7).reason, Some(Reason::EventLoss));
    assert_eq!(hear(360 + 3600, 7).verdict, Verdict::Covered, "nothing more was lost since");
    assert_eq!(hear(360 + 3660, 8).reason, Some(Reason::EventLoss));
}

#[test]
fn silence_is_counted_in_the_intervals_that_the_gateway_asks_for() {
    let mut report = sidecar_report("a", at(300));
    report.heartbeat_seconds = 10;
    let fleet = fleet(vec![of_task(with_sidecar(task("a", "shop"))), of_agent(report)]);
    assert_eq!(judged(&enforce(), &fleet, "a", 329).verdict, Verdict::Covered);
    assert_eq!(judged(&enforce(), &fleet, "a", 330).reason, Some(Reason::AgentNotReporting));
}

#[test]
fn a_heartbeat_covers_three_intervals_and_names_only_its_own_task() {
    let fleet = fleet(vec![
        of_task(with_sidecar(task("a", "shop"))),
        of_task(with_sidecar(task("b", "shop"))),
        of_agent(sidecar_report("a", at(1000))),
    ]);
    assert_eq!(verdict(&enforce(), &fleet, "a", 1179), COVERED);
    assert_eq!(verdict(&enforce(), &fleet, "a", 1180), unhealthy(Reason::AgentNotReporting));
    assert_eq!(verdict(&enforce(), &fleet, "b", 1000), unhealthy(Reason::AgentNotReporting));
}

#[test]
fn grace_is_for_the_young() {
    let fleet =
        fleet(vec![of_task(task("a", "shop")), of_service(service("shop")), of_task(with_sidecar(task("b", "shop")))]);
    for id in ["a", "b"] {
        assert_eq!(verdict(&enforce(), &fleet, id, 119), STARTING);
    }
    assert_eq!(verdict(&enforce(), &fleet, "a", 120), uncovered(Reason::AwaitingRender));
    assert_eq!(verdict(&enforce(), &fleet, "b", 120), unhealthy(Reason::AgentNotReporting));
}

#[test]
fn currency_is_not_health() {
    let mut stale = sidecar_report("a", at(1000));
    stale.heartbeat.policy = "older".into();
    let fleet = fleet(vec![of_task(with_sidecar(task("a", "shop"))), of_agent(stale)]);
    let row = judged(&enforce(), &fleet, "a", 1000);
    assert_eq!((row.verdict, row.currency), (Verdict::Covered, Some(Currency::Stale)));
    let row = judged(&set("agent.version", json!("1.5.0")), &fleet, "a", 1000);
    assert_eq!((row.verdict, row.currency), (Verdict::Covered, Some(Currency::Outdated)));
}

#[test]
fn a_node_agent_that_cannot_start_is_named_between_its_tries() {
    let on_node = |mut task: Task| {
        (task.node, task.launch) = (Some(node_arn("n")), LaunchType::Ec2);
        task
    };
    let mut failed = on_node(with_sidecar(task("agent", "tasuki")));
    failed.containers.retain(|container| &*container.name == SIDECAR);
    (failed.status, failed.desired_stopped, failed.stop_code) =
        (TaskStatus::Stopped, true, Some("TaskFailedToStart".into()));
    failed.containers[0].status = "STOPPED".into();
    failed.containers[0].reason = Some("CannotPullContainerError: manifest unknown".into());
    let mut known = vec![
        of_node(node("n")),
        of_service(daemon_service("tasuki", "tasuki:1")),
        of_task(on_node(task("a", "shop"))),
        of_task(failed.clone()),
    ];
    let fleet_of = |changes: &[Change]| fleet(changes.to_vec());
    let row = judged(&enforce(), &fleet_of(&known), "a", 300);
    assert_eq!((row.verdict, row.reason), (Verdict::Unhealthy, Some(Reason::ImagePullFailed)), "{row:?}");
    assert!(row.detail.unwrap().contains("manifest unknown"));
    // Believed for ten minutes, and only where it ended by itself.
    assert_eq!(verdict(&enforce(), &fleet_of(&known), "a", 600), uncovered(Reason::NodeWithoutAgent));
    failed.stop_code = Some("ServiceSchedulerInitiated".into());
    known[3] = of_task(failed);
    assert_eq!(verdict(&enforce(), &fleet_of(&known), "a", 300), uncovered(Reason::NodeWithoutAgent));
}

#[test]
fn a_deleted_daemon_service_does_not_hold_its_definition() {
    let definition = Definition {
        task_role: None,
        arn: definition_arn("tasuki:1"),
        hash: "h".into(),
        active: true,
        containers: vec![SIDECAR.into()],
        sidecar: Some(SidecarMark {
            version: "1".into(),
            image: "i".into(),
            source: None,
            source_hash: None,
            spec: Some("s".into()),
        }),
        obstacle: None,
        judged_for: None,
    };
    let actions = |active: bool| {
        let mut service = daemon_service("tasuki", "tasuki:1");
        service.active = active;
        let known = vec![of_node(node("n")), of_service(service), Change::Definition(Box::new(definition.clone()))];
        uninstall(&fleet(known)).into_iter().map(|action| action.kind).collect::<Vec<_>>()
    };
    assert!(matches!(actions(true)[..], [ActionKind::DeleteDaemon { .. }]), "{:?}", actions(true));
    assert!(matches!(actions(false)[..], [ActionKind::Deregister { .. }]), "{:?}", actions(false));
}

#[test]
fn a_policy_is_compared_with_the_monitors_own() {
    let fleet = fleet(vec![of_task(with_sidecar(task("a", "shop"))), of_agent(sidecar_report("a", at(1000)))]);
    let documents = [monitor("another", |_| {}), monitor("prod", |spec| spec["priority"] = json!(200))];
    for (policy_of, wanted) in [("prod", Currency::Current), ("another", Currency::Stale)] {
        let policy = |name: &str| if name == policy_of { "policy".to_owned() } else { "other".to_owned() };
        let desired = crate::desired::Desired::compile(&documents, Default::default(), false, policy).0;
        let mut decider = Decider::new(std::sync::Arc::new(desired), Memory::default());
        decider.decide_all(&fleet, at(1000));
        let row = decider.explain(&fleet, &task_arn("a"), at(1000)).unwrap().coverage;
        assert_eq!((row.verdict, row.currency), (Verdict::Covered, Some(wanted)), "{policy_of}");
    }
}

#[test]
fn selection_and_exclusions() {
    let fleet = fleet(vec![of_task(task("a", "shop")), of_service(service("shop"))]);
    let of = |documents: &[Document]| verdict(documents, &fleet, "a", 1000).0;
    assert_eq!(of(&set("targets.ecs.clusters", json!({"include": ["dev-*"]}))), Verdict::Excluded);
    assert_eq!(of(&set("targets.ecs.compute", json!(["EC2"]))), Verdict::Excluded);
    assert_eq!(of(&set("targets.ecs.scopes", json!(["other"]))), Verdict::Excluded);
    assert_eq!(of(&set("targets.ecs.tags", json!({"include": {"env": ["prod"]}}))), Verdict::Excluded);
    let excluded = |matches: &str, until: Value| {
        set("exclusions", json!([{"matches": matches, "reason": "batch", "until": until}]))
    };
    assert_eq!(of(&excluded("prod/shop", Value::Null)), Verdict::Excluded);
    assert_eq!(of(&excluded("shop", Value::Null)), Verdict::Excluded);
    assert_eq!(of(&excluded("prod/other", Value::Null)), Verdict::Uncovered);
    assert_eq!(of(&excluded("prod/shop", json!("2026-11-24T12:10:00Z"))), Verdict::Uncovered, "it has ended");
    assert_eq!(judged(&excluded("shop", Value::Null), &fleet, "a", 1000).detail.unwrap(), "excluded by prod: batch");
}

#[test]
fn a_tag_excludes_only_where_the_monitor_allows_it() {
    let mut tagged = service("shop");
    tagged.tags.insert("tasuki.dev/monitor".into(), "false".into());
    let fleet = fleet(vec![of_task(task("a", "shop")), of_service(tagged)]);
    assert_eq!(verdict(&enforce(), &fleet, "a", 1000).0, Verdict::Uncovered);
    assert_eq!(verdict(&set("allowTagExclusion", json!(true)), &fleet, "a", 1000).0, Verdict::Excluded);
}

#[test]
fn the_higher_priority_wins() {
    let documents = [monitor("low", |_| {}), monitor("high", |s| s["priority"] = json!(5))];
    let fleet = fleet(vec![of_task(task("a", "shop"))]);
    assert_eq!(judged(&documents, &fleet, "a", 1000).monitor.as_deref(), Some("high"));
}

#[test]
fn a_name_alone_hides_nothing() {
    let mut fake = service("tasuki");
    fake.launch = LaunchType::Fargate;
    let mut posing = task("a", "tasuki");
    posing.containers[0].name = SIDECAR.into();
    let changes = vec![of_task(posing.clone()), of_service(fake)];
    assert_ne!(verdict(&enforce(), &fleet(changes), "a", 1000).0, Verdict::Excluded);
    let own = fleet(vec![of_task(posing), of_service(daemon_service("tasuki", "tasuki:1"))]);
    assert_eq!(verdict(&enforce(), &own, "a", 1000).0, Verdict::Excluded);
}

#[test]
fn what_stands_in_the_way_of_a_sidecar() {
    type Edit = fn(&mut Task, &mut Service);
    let live = set("ecs.fargate.delivery", json!("Live"));
    let edits: Vec<(Reason, Edit)> = vec![
        (Reason::UnsupportedController, |_, s| s.controller = DeploymentController::CodeDeploy),
        (Reason::UnsupportedController, |_, s| s.strategy = Strategy::TrafficShifting),
        (Reason::HasLifecycleHooks, |_, s| s.has_hooks = true),
        (Reason::ManagedByExpress, |_, s| s.express = true),
        (Reason::WouldInterrupt, |_, s| s.minimum_healthy = 0),
        (Reason::WouldInterrupt, |_, s| s.maximum = 100),
        (Reason::WouldInterrupt, |_, s| (s.desired, s.maximum) = (1, 150)),
        (Reason::UnsupportedPlatform, |t, _| t.platform_version = Some("1.3.0".into())),
        (Reason::UnsupportedPlatform, |t, _| t.platform_family = Some("WINDOWS_SERVER_2022_CORE".into())),
        (Reason::UnsupportedArchitecture, |t, _| t.architecture = Some("riscv64".into())),
        (Reason::StandaloneTask, |t, _| t.group = "family:shop".into()),
        (Reason::NeedsNewDeployment, |_, _| {}),
    ];
    // A better reason than the mode wins even in Observe, since Enforce would not help.
    let observe = [monitor("prod", |spec| {
        spec["mode"] = json!("Observe");
        spec["ecs"] = json!({"fargate": {"delivery": "Live"}});
    })];
    for (reason, edit) in edits {
        let (mut task, mut service) = (task("a", "shop"), service("shop"));
        edit(&mut task, &mut service);
        let fleet = fleet(vec![of_task(task), of_service(service)]);
        assert_eq!(verdict(&live, &fleet, "a", 1000), uncovered(reason));
        let observed = if reason == Reason::NeedsNewDeployment { Reason::ObserveOnly } else { reason };
        assert_eq!(verdict(&observe, &fleet, "a", 1000), uncovered(observed));
    }
}

#[test]
fn a_node_without_an_agent_says_why() {
    let of = |documents: &[Document], changes: Vec<Change>| {
        let mut all = vec![of_task(on_node(task("a", "web"), "n1")), of_node(node("n1"))];
        all.extend(changes);
        verdict(documents, &fleet(all), "a", 1000)
    };
    assert_eq!(of(&enforce(), vec![]), uncovered(Reason::NodeWithoutAgent));
    assert_eq!(of(&set("mode", json!("Observe")), vec![]), uncovered(Reason::ObserveOnly));
    assert_eq!(of(&set("rollout.frozen", json!(true)), vec![]), uncovered(Reason::Frozen));
    let denied = Change::Denied { scope: scope(), api: "ecs:CreateService".into(), detail: "explicit deny".into() };
    assert_eq!(of(&enforce(), vec![denied]), uncovered(Reason::PermissionDenied));
    let mut windows = node("n1");
    windows.attributes.insert("ecs.os-type".into(), "windows".into());
    assert_eq!(of(&enforce(), vec![of_node(windows)]), uncovered(Reason::UnsupportedPlatform));

    let mut daemon = on_node(task("d", "tasuki"), "n1");
    daemon.containers = vec![container(SIDECAR)];
    let placed = |edit: fn(&mut Task)| {
        let mut daemon = daemon.clone();
        edit(&mut daemon);
        vec![of_service(daemon_service("tasuki", "tasuki:1")), of_task(daemon)]
    };
    assert_eq!(of(&enforce(), placed(|_| {})), unhealthy(Reason::AgentNotReporting));
    assert_eq!(
        of(&enforce(), placed(|d| d.containers[0].reason = Some("CannotPullContainerError: denied".into()))),
        unhealthy(Reason::ImagePullFailed)
    );
    let mut heard = placed(|_| {});
    heard.push(of_agent(node_report("d", "n1", &["a"], at(990))));
    assert_eq!(of(&enforce(), heard.clone()), COVERED);
    for (kernel, reason) in [
        ("4.14.355-277.amzn2.x86_64", Reason::KernelUnsupported),
        ("5.4.0-1-generic", Reason::KernelUnsupported),
        ("5.10", Reason::DepthBelowMinimum),
    ] {
        let mut report = node_report("d", "n1", &["a"], at(990));
        (report.heartbeat.depth, report.heartbeat.kernel) = (Depth::Network, kernel.into());
        heard.pop();
        heard.push(of_agent(report.clone()));
        assert_eq!(of(&enforce(), heard.clone()), unhealthy(reason), "{kernel}");
        report.heartbeat.sensors[0].detail =
            Some("ebpf: /sys/kernel/btf/vmlinux cannot be read: … CONFIG_DEBUG_INFO_BTF".into());
        heard.pop();
        heard.push(of_agent(report));
        assert_eq!(of(&enforce(), heard.clone()), unhealthy(Reason::KernelUnsupported), "{kernel} without BTF");
    }
    heard.pop();
    heard.push(of_agent(node_report("d", "n1", &["other"], at(990))));
    assert_eq!(of(&enforce(), heard), unhealthy(Reason::AgentNotReporting), "it does not name this task");
}

#[test]
fn the_rows_are_those_that_explain_gives_of_each_task() {
    let mut fargate = task("e", "web");
    fargate.launch = LaunchType::Fargate;
    let fleet = fleet(vec![
        of_node(node("n1")),
        of_service(service("shop")),
        of_task(on_node(task("a", "web"), "n1")),
        of_task(with_sidecar(task("b", "shop"))),
        of_agent(sidecar_report("b", at(990))),
        of_task(task("c", "shop")),
        of_task(fargate),
    ]);
    let mut decider = Decider::new(desired(&enforce()), Memory::default());
    decider.decide_all(&fleet, at(1000));
    let each: Vec<_> =
        decider.verdicts().filter_map(|(_, _, task, _)| decider.coverage(&fleet, task, at(1010))).collect();
    assert_eq!((each.len(), decider.rows(&fleet, at(1010))), (4, each));
}

#[test]
fn a_controller_that_has_just_begun_awaits_the_heartbeats_of_agents_that_were_there_before() {
    let mut daemon = on_node(task("d", "tasuki"), "n1");
    daemon.containers = vec![container(SIDECAR)];
    let mut fleet = Fleet::new(at(1000));
    for change in [
        cluster(),
        of_node(node("n1")),
        of_task(on_node(task("a", "web"), "n1")),
        of_service(daemon_service("tasuki", "tasuki:1")),
        of_task(daemon),
        of_task(with_sidecar(task("b", "shop"))),
    ] {
        fleet.apply(change, at(1000));
    }
    for (id, heartbeats) in [("a", 45), ("b", 180)] {
        assert_eq!(verdict(&enforce(), &fleet, id, 1000), STARTING, "{id}");
        assert_eq!(verdict(&enforce(), &fleet, id, 1000 + heartbeats - 1), STARTING, "{id}");
        assert_eq!(verdict(&enforce(), &fleet, id, 1000 + heartbeats), unhealthy(Reason::AgentNotReporting), "{id}");
    }
}

#[test]
fn a_task_that_no_agent_ever_saw_is_missed_for_a_day() {
    let mut fleet = fleet(vec![of_service(service("job"))]);
    let mut decider = Decider::new(desired(&enforce()), Memory::default());
    let mut end = |id: &str, edit: fn(&mut Task), now: i64| {
        let mut task = task(id, "job");
        (task.status, task.version) = (TaskStatus::Stopped, 6);
        (task.started_at, task.stopped_at) = (Some(at(now - 5)), Some(at(now)));
        edit(&mut task);
        let applied = fleet.apply(of_task(task), at(now));
        decider.decide(&fleet, &applied, at(now))
    };
    assert!(end("quick", |_| {}, 10).memory_changed);
    assert!(!end("quick", |_| {}, 11).memory_changed, "told twice, counted once");
    assert!(!end("never-started", |t| t.started_at = None, 12).memory_changed);
    assert_eq!(decider.tally().counts(None).missed, 1);
    let row = decider.coverage(&fleet, &task_arn("quick"), at(20)).unwrap();
    assert_eq!((row.verdict, row.workload.as_str()), (Verdict::Missed, "job"));
    let memory: Memory = serde_json::from_str(&serde_json::to_string(decider.memory()).unwrap()).unwrap();
    let mut later = Decider::new(desired(&enforce()), memory);
    later.decide_all(&fleet, at(86_400));
    assert_eq!(later.tally().counts(None).missed, 1);
    assert!(later.decide_all(&fleet, at(86_411)).memory_changed);
    assert_eq!(later.tally().counts(None).missed, 0);
}

#[test]
fn missed_tasks_are_bounded_and_counted() {
    let mut memory = Memory::default();
    let missed = |ended| crate::memory::MissedTask {
        cluster: CLUSTER.into(),
        group: "service:job".into(),
        monitor: "prod".into(),
        started_at: None,
        ended_at: at(ended),
        reason: None,
    };
    for i in 0..(super::missed::MISSED_LIMIT as i64 + 2) {
        super::missed::keep(&mut memory, task_arn(&i.to_string()), missed(i));
    }
    assert_eq!((memory.missed.len(), memory.missed_dropped), (super::missed::MISSED_LIMIT, 2));
    assert!(!memory.missed.contains_key(&task_arn("0")));
}
