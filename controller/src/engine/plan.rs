//! What Enforce would do: the same decision, made on a copy in which every monitor enforces.
//!
//! Nothing is carried out and nothing is remembered, so it needs no more than what Observe reads.

use super::{Knowledge, PlanChange, PlanItem};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tasuki_api::coverage::Verdict;
use tasuki_api::desired::Mode;
use tasuki_core::action::{Action, ActionKind};
use tasuki_core::decide::Decider;
use tasuki_core::fleet::{Fleet, Str};

/// One item a service or cluster, in the order of clusters and targets; what is blocked comes last.
pub fn plan(known: &Knowledge, now: Timestamp) -> Vec<PlanItem> {
    let mut desired = (**known.decider.desired()).clone();
    for monitor in &mut desired.monitors {
        if monitor.spec.agent.is_some() {
            monitor.spec.mode = Mode::Enforce;
        }
    }
    let mut decider = Decider::new(Arc::new(desired), known.decider.memory().clone());
    let decision = decider.decide_all(&known.fleet, now);
    let touched: BTreeSet<&Str> = decision.actions.iter().map(Action::target).collect();
    let mut items: Vec<PlanItem> =
        decision.actions.iter().filter_map(|action| of_action(&known.fleet, action)).collect();
    items.sort_by(|a, b| (&a.cluster, &a.target).cmp(&(&b.cluster, &b.target)));
    items.extend(of_the_rest(known, &decider, &touched, now));
    items
}

fn cluster_name(fleet: &Fleet, arn: &str) -> String {
    let known = fleet.cluster(arn).and_then(|state| state.cluster.as_ref());
    known.map_or_else(|| arn.rsplit('/').next().unwrap_or(arn).to_owned(), |cluster| cluster.value.name.to_string())
}

fn of_action(fleet: &Fleet, action: &Action) -> Option<PlanItem> {
    let nodes = || fleet.cluster(&action.cluster).map_or(0, |cluster| cluster.nodes.len() as u64);
    let service = |arn: &Str| fleet.service(arn);
    let name = |arn: &Str| service(arn).map_or_else(|| arn.to_string(), |service| service.name.to_string());
    let tasks = |arn: &Str| service(arn).map_or(0, |service| u64::from(service.desired));
    let item = |change, target: String, what: String, tasks_replaced, calls, memory_mib| PlanItem {
        change,
        cluster: cluster_name(fleet, &action.cluster),
        target,
        what,
        tasks_replaced,
        calls,
        memory_mib,
        diff: None,
    };
    let namespace = |arn: &Str| format!("namespace {}", arn.rsplit('/').next().unwrap_or(arn));
    use PlanChange::{Create, Replace};
    Some(match &action.kind {
        ActionKind::DescribeDefinition { .. }
        | ActionKind::Deregister { .. }
        | ActionKind::PromoteDaemon { .. }
        | ActionKind::SettleDaemon { .. }
        | ActionKind::DeleteAgent { .. } => return None,
        ActionKind::ProbeImage { service, agent } | ActionKind::OfferSidecar { service, agent } => {
            let what = format!(
                "sidecar with agent {} ({} MiB) in pods that are made from then on and run where no node agent can be",
                agent.version, agent.memory_mib
            );
            // A Job that tries the image, and a patch of the ConfigMap.
            item(Create, namespace(service), what, 0, 2, 0)
        }
        ActionKind::WithdrawSidecar { service } => {
            item(Replace, namespace(service), "no sidecar in new pods".to_owned(), 0, 1, 0)
        }
        ActionKind::CreateDaemon { service, agent, .. } => {
            let memory = nodes() * u64::from(agent.memory_mib);
            let placement = if agent.pods.is_some() { "DaemonSet" } else { "DAEMON service" };
            let what = format!("{placement} with agent {} on {} node(s)", agent.version, nodes());
            // RegisterTaskDefinition and CreateService.
            item(Create, service.to_string(), what, 0, 2, memory)
        }
        ActionKind::UpdateDaemon { service, agent, .. } => {
            item(Replace, name(service), format!("agent {} on {} node(s)", agent.version, nodes()), 0, 2, 0)
        }
        ActionKind::RevertDaemon { service, .. } => {
            item(Replace, name(service), "the agent that it ran before".to_owned(), 0, 1, 0)
        }
        ActionKind::DeleteDaemon { service } => item(Replace, name(service), "delete the daemon".to_owned(), 0, 1, 0),
        ActionKind::Inject { service, sidecar, .. } => {
            let count = tasks(service);
            let what = format!("sidecar with agent {} by a new deployment", sidecar.agent.version);
            // Describe, register, update, and one look at the service afterwards.
            item(Replace, name(service), what, count, 4, count * u64::from(sidecar.agent.memory_mib))
        }
        ActionKind::Uninject { service, .. } => {
            item(Replace, name(service), "take the sidecar out by a new deployment".to_owned(), tasks(service), 4, 0)
        }
        ActionKind::RollBack { service, .. } => {
            item(Replace, name(service), "roll the deployment back".to_owned(), tasks(service), 1, 0)
        }
        ActionKind::PutAttribute { node, name } | ActionKind::DeleteAttribute { node, name } => {
            let node = node.rsplit('/').next().unwrap_or(node);
            item(Replace, format!("node {node}"), format!("attribute {name}"), 0, 1, 0)
        }
    })
}

/// Workloads that no action would help now, with the reason, and those that need none.
fn of_the_rest(known: &Knowledge, decider: &Decider, touched: &BTreeSet<&Str>, now: Timestamp) -> Vec<PlanItem> {
    let mut workloads: BTreeMap<(&Str, &Str), Vec<(&Str, Verdict)>> = BTreeMap::new();
    for (cluster, group, task, verdict) in decider.verdicts() {
        workloads.entry((cluster, group)).or_default().push((task, verdict.verdict));
    }
    let one = |((cluster, group), tasks): ((&Str, &Str), Vec<(&Str, Verdict)>)| {
        let target = group.split_once(':').map_or(&**group, |(_, name)| name);
        let service = known.fleet.cluster(cluster).and_then(|state| state.service(target)).map(|service| &service.arn);
        if service.is_some_and(|arn| touched.contains(arn)) || touched.contains(cluster) {
            return None;
        }
        let lacking = tasks.iter().find(|(_, verdict)| matches!(verdict, Verdict::Uncovered | Verdict::Unhealthy));
        let (change, what) = match lacking {
            None if tasks.iter().all(|(_, verdict)| *verdict == Verdict::Excluded) => return None,
            None => (PlanChange::Nothing, "as it should be".to_owned()),
            Some((task, _)) => {
                let coverage = decider.explain(&known.fleet, task, now)?.coverage;
                let reason = coverage.reason?;
                let detail = coverage.detail.map(|detail| format!(": {detail}")).unwrap_or_default();
                (PlanChange::Blocked, format!("{}{detail} → {}", reason.name(), reason.next_step()))
            }
        };
        let (cluster, target) = (cluster_name(&known.fleet, cluster), target.to_owned());
        Some(PlanItem { change, cluster, target, what, tasks_replaced: 0, calls: 0, memory_mib: 0, diff: None })
    };
    let mut items: Vec<_> = workloads.into_iter().filter_map(one).collect();
    items.sort_by_key(|item| item.change == PlanChange::Blocked);
    items
}
