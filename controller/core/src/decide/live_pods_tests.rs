//! What namespaces are offered, against a small world of pods on Fargate.

use super::*;
use crate::action::{Action, ActionKind, QUOTA, sidecar_service};
use crate::fixtures::*;
use crate::fleet::*;
use crate::memory::{Failure, Memory};
use serde_json::{Value, json};
use tasuki_api::coverage::Reason;

const SHOP: &str = "k8s/prod/sidecar/shop";

fn live(edit: impl FnOnce(&mut Value)) -> std::sync::Arc<crate::desired::Desired> {
    desired(&[monitor("prod", |spec| {
        spec["targets"] = json!({"kubernetes": {}});
        spec["kubernetes"] = json!({"delivery": "Live"});
        edit(spec);
    })])
}

struct Shop {
    fleet: Fleet,
    decider: Decider,
    now: i64,
}

impl Shop {
    /// One pod on Fargate.
    fn new(desired: std::sync::Arc<crate::desired::Desired>) -> Self {
        let mut fleet = Fleet::new(at(-3600));
        let Change::Cluster(mut described) = cluster() else { unreachable!() };
        described.scope = ScopeId::kubernetes("prod");
        fleet.apply(Change::Cluster(described), at(0));
        let mut pod = task("p", "x");
        pod.group = "Deployment/shop/web".into();
        (pod.launch, pod.platform_version, pod.definition) = (LaunchType::KubernetesVirtual, None, "".into());
        pod.platform_family = Some("fargate".into());
        let applied = fleet.apply(Change::Task(Box::new(pod)), at(0));
        assert_eq!(applied.wishes, [CLUSTER.into()], "the first pod of its kind is a wish");
        Self { fleet, decider: Decider::new(desired, Memory::default()), now: 600 }
    }

    fn decide(&mut self) -> Vec<Action> {
        self.decider.decide_all(&self.fleet, at(self.now)).actions
    }

    fn reason(&mut self) -> Option<Reason> {
        self.decide();
        self.decider.verdict(CLUSTER, "Deployment/shop/web", &task_arn("p")).unwrap().reason
    }

    /// What is known of the namespace: what it is offered, a trial of this spec, a quota.
    fn tell(&mut self, offer: Option<&Str>, trial: Option<(&Str, RolloutState)>, quota: bool) {
        let mut known = service(&sidecar_service("shop"));
        known.arn = SHOP.into();
        (known.launch, known.definition) = (LaunchType::KubernetesVirtual, "".into());
        known.deployments = trial.map(|(print, state)| deployment(print, state)).into_iter().collect();
        known.tags = quota.then(|| (QUOTA.to_owned(), "small".to_owned())).into_iter().collect();
        if let Some(spec) = offer {
            known.definition = format!("{SHOP}/{spec}").into();
            let mark = SidecarMark {
                version: VERSION.into(),
                image: "i".into(),
                source: None,
                source_hash: None,
                spec: Some(spec.clone()),
            };
            let definition = Definition {
                arn: known.definition.clone(),
                hash: "h".into(),
                active: true,
                containers: vec![],
                task_role: None,
                sidecar: Some(mark),
                obstacle: None,
                judged_for: None,
            };
            self.fleet.apply(Change::Definition(Box::new(definition)), at(self.now));
        }
        let applied = self.fleet.apply(Change::Service(Box::new(known)), at(self.now));
        assert!(applied.services.is_empty() && applied.clusters.len() <= 1, "its pods are of other services");
    }

    /// The spec that the monitor wants.
    fn print(&mut self) -> Str {
        match self.decide().as_slice() {
            [Action { kind: ActionKind::ProbeImage { service, agent }, .. }] => {
                assert_eq!(&**service, SHOP);
                agent.fingerprint()
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_agent_is_tried_then_offered_then_nothing_more_is_done() {
    let mut shop = Shop::new(live(|_| {}));
    let print = shop.print();
    assert_eq!(shop.reason(), Some(Reason::StartedBeforeMonitoring));
    shop.tell(None, Some((&print, RolloutState::InProgress)), false);
    assert_eq!(shop.decide(), []);
    shop.tell(None, Some((&print, RolloutState::Completed)), false);
    let offered = shop.decide();
    assert!(
        matches!(&offered[..], [Action { kind: ActionKind::OfferSidecar { agent, .. }, .. }] if agent.fingerprint() == print)
    );
    // What tried it has gone by itself.
    shop.tell(Some(&print), None, false);
    assert_eq!((shop.decide(), shop.reason()), (vec![], Some(Reason::StartedBeforeMonitoring)));
    // Another agent is another trial, and the old offer stands meanwhile.
    shop.decider.set_desired(live(|spec| spec["agent"]["version"] = json!("9.9.9")));
    assert_ne!(shop.print(), print);
}

#[test]
fn what_stands_in_the_way_is_named_and_nothing_is_offered() {
    let mut shop = Shop::new(live(|_| {}));
    let print = shop.print();
    shop.tell(None, Some((&print, RolloutState::Failed)), false);
    assert_eq!((shop.decide(), shop.reason()), (vec![], Some(Reason::ImageNotPullable)));
    shop.tell(None, Some((&print, RolloutState::Completed)), true);
    assert_eq!((shop.decide(), shop.reason()), (vec![], Some(Reason::NoRoom)));
    shop.tell(Some(&print), None, true);
    assert!(matches!(shop.decide()[..], [Action { kind: ActionKind::WithdrawSidecar { .. }, .. }]));
    shop.tell(None, None, false);
    let detail = "namespaces is forbidden".to_owned();
    let refusal = Change::Obstructed { target: SHOP.into(), reason: Reason::PermissionDenied, detail };
    shop.fleet.apply(refusal, at(shop.now));
    assert_eq!((shop.decide(), shop.reason()), (vec![], Some(Reason::PermissionDenied)));
    shop.now += 61;
    shop.print();

    type Edit = fn(&mut Value);
    for (edit, reason) in [
        ((|spec| spec["mode"] = json!("Observe")) as Edit, Reason::ObserveOnly),
        (|spec| spec["rollout"]["paused"] = json!(true), Reason::Paused),
        (|spec| spec["rollout"]["frozen"] = json!(true), Reason::Frozen),
        (|spec| spec["kubernetes"] = json!({}), Reason::AwaitingRender),
    ] {
        shop.decider.set_desired(live(edit));
        assert_eq!((shop.decide(), shop.reason()), (vec![], Some(reason)));
    }
}

#[test]
fn a_version_that_failed_on_the_nodes_is_not_offered() {
    let mut shop = Shop::new(live(|_| {}));
    let print = shop.print();
    let image = match shop.decide().remove(0).kind {
        ActionKind::ProbeImage { agent, .. } => agent.image,
        other => panic!("{other:?}"),
    };
    let mut memory = Memory::default();
    let failure = Failure { at: at(0), why: "it crashed".to_owned() };
    memory.failed.entry(CLUSTER.into()).or_default().insert(super::daemon::failed_as(&image, &print), failure);
    shop.decider = Decider::new(live(|_| {}), memory);
    assert_eq!((shop.decide(), shop.reason()), (vec![], Some(Reason::RolledBack)));
}

#[test]
fn what_is_excluded_by_git_gets_no_sidecar_and_neither_do_its_neighbours() {
    let exclude = |what: &str| {
        let what = what.to_owned();
        move |spec: &mut Value| spec["exclusions"] = json!([{"matches": what, "reason": "legacy"}])
    };
    let mut shop = Shop::new(live(exclude("prod/Deployment/shop/web")));
    assert_eq!(shop.decide(), []);
    let print = Shop::new(live(|_| {})).print();
    shop.tell(Some(&print), None, false);
    assert!(matches!(shop.decide()[..], [Action { kind: ActionKind::WithdrawSidecar { .. }, .. }]));
    shop.tell(None, None, false);
    shop.decider.set_desired(live(exclude("prod/Deployment/shop/other")));
    shop.print();
    let mut other = shop.fleet.task(&task_arn("p")).unwrap().task.as_ref().clone();
    (other.arn, other.group) = (task_arn("q"), "Deployment/shop/other".into());
    shop.fleet.apply(Change::Task(Box::new(other)), at(shop.now));
    assert_eq!((shop.decide(), shop.reason()), (vec![], Some(Reason::AwaitingRender)));
}

#[test]
fn what_tries_the_image_is_nobodys_and_what_only_looks_so_is_somebodys() {
    let mut shop = Shop::new(live(|_| {}));
    let image = match shop.decide().remove(0).kind {
        ActionKind::ProbeImage { agent, .. } => agent.image,
        other => panic!("{other:?}"),
    };
    for (image, selected) in [(image, false), ("registry.example.test/miner@sha256:1".into(), true)] {
        let mut trial = shop.fleet.task(&task_arn("p")).unwrap().task.as_ref().clone();
        (trial.arn, trial.group) = (task_arn("t"), "Job/shop/tasuki-probe-0123456789".into());
        trial.containers = vec![Container { image, ..container(crate::action::SIDECAR) }];
        trial.version += i64::from(selected);
        shop.fleet.apply(Change::Task(Box::new(trial)), at(shop.now));
        shop.decide();
        let verdict = shop.decider.verdict(CLUSTER, "Job/shop/tasuki-probe-0123456789", &task_arn("t")).unwrap();
        assert_eq!(verdict.monitor.is_some(), selected);
    }
}

#[test]
fn an_offer_that_no_monitor_wants_stands_for_ten_minutes() {
    let mut shop = Shop::new(live(|_| {}));
    let print = shop.print();
    shop.tell(Some(&print), None, false);
    let elsewhere = || live(|spec| spec["targets"] = json!({"kubernetes": {"namespaces": {"include": ["other"]}}}));
    shop.decider.set_desired(elsewhere());
    assert_eq!(shop.decide(), []);
    shop.now += 599;
    assert_eq!(shop.decide(), []);
    let stored = serde_json::to_string(shop.decider.memory()).unwrap();
    shop.decider = Decider::new(elsewhere(), serde_json::from_str(&stored).unwrap());
    shop.now += 1;
    assert!(matches!(shop.decide()[..], [Action { kind: ActionKind::WithdrawSidecar { .. }, .. }]));
    // It is wanted again before it went.
    shop.decider.set_desired(live(|_| {}));
    assert_eq!(shop.decide(), []);
    assert!(shop.decider.memory().unselected.is_empty());
    // Under a monitor that only observes nothing is changed any more, new pods neither; a freeze holds even that.
    shop.decider.set_desired(live(|spec| spec["mode"] = json!("Observe")));
    assert!(matches!(shop.decide()[..], [Action { kind: ActionKind::WithdrawSidecar { .. }, .. }]));
    shop.decider.set_desired(live(|spec| spec["rollout"]["frozen"] = json!(true)));
    assert_eq!(shop.decide(), []);
    // A namespace without pods of that kind keeps it for a day.
    shop.decider.set_desired(live(|_| {}));
    let gone = Task { status: TaskStatus::Stopped, ..shop.fleet.task(&task_arn("p")).unwrap().task.as_ref().clone() };
    shop.fleet.apply(Change::Task(Box::new(gone)), at(shop.now));
    assert_eq!(shop.decide(), []);
    shop.now += 86_399;
    assert_eq!(shop.decide(), []);
    shop.now += 1;
    assert!(matches!(shop.decide()[..], [Action { kind: ActionKind::WithdrawSidecar { .. }, .. }]));
    assert!(matches!(uninstall(&shop.fleet)[..], [Action { kind: ActionKind::WithdrawSidecar { .. }, .. }]));
}
