//! What is wrong with documents although each has the right shape.

use super::{Monitor, Version, names::may_meet};
use crate::fleet::Str;
use std::collections::BTreeMap;
use tasuki_api::desired::{
    AwsScopeSpec, EcsTargets, KubernetesTargets, Mode, NameFilter, NodeStartup, RuntimeMonitorSpec, Standalone,
};
use wildmatch::WildMatch;

/// Something wrong with one document, for people: what, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}/{name}, {path}: {message}")]
pub struct Problem {
    /// Kind of the document.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Field, such as `spec.targets.ecs.scopes`.
    pub path: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Problem {
    pub(super) fn new(kind: &'static str, name: &str, path: &str, message: String) -> Self {
        Self { kind, name: name.to_owned(), path: path.to_owned(), message }
    }
}

pub(super) fn of_monitor(
    name: &str,
    spec: &RuntimeMonitorSpec,
    scopes: &BTreeMap<Str, AwsScopeSpec>,
    problems: &mut Vec<Problem>,
) {
    let mut refuse = |path: &str, message: String| problems.push(Problem::new("RuntimeMonitor", name, path, message));
    for scope in spec.targets.ecs.iter().flat_map(|e| &e.scopes) {
        if !scopes.contains_key(scope.as_str()) {
            let known: Vec<_> = scopes.keys().map(|s| &**s).collect();
            refuse(
                "spec.targets.ecs.scopes",
                format!("no AwsScope is named `{scope}`, so it selects nothing; known: {}", known.join(", ")),
            );
        }
    }
    match &spec.agent {
        None if spec.mode == Mode::Enforce => {
            refuse("spec.agent", "mode Enforce needs an agent to place; name version and image, or observe".to_owned());
        }
        Some(agent) => {
            for (path, version) in [
                ("spec.agent.version", Some(&agent.version)),
                ("spec.agent.minimumVersion", agent.minimum_version.as_ref()),
            ] {
                if let Some(version) = version
                    && Version::parse(version).is_none()
                {
                    refuse(path, format!("`{version}` is not a version; write numbers such as 1.4.2"));
                }
            }
            let newest = Version::parse(&agent.version);
            let oldest = agent.minimum_version.as_deref().and_then(Version::parse);
            if let (Some(newest), Some(oldest)) = (newest, oldest)
                && oldest > newest
            {
                refuse(
                    "spec.agent.minimumVersion",
                    "is above spec.agent.version: every agent would be Unhealthy".to_owned(),
                );
            }
            let hex = agent.image.digest.strip_prefix("sha256:").unwrap_or_default();
            if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                refuse(
                    "spec.agent.image.digest",
                    "is not sha256: and 64 hexadecimal digits; `docker buildx imagetools inspect` prints it".to_owned(),
                );
            }
        }
        None => {}
    }
    if spec.rollout.waves.is_empty() {
        refuse("spec.rollout.waves", "is empty, so nothing is ever rolled out; name at least one wave".to_owned());
    } else if spec.rollout.waves.last().is_some_and(|w| w.take.as_fraction() < 1.0) {
        refuse("spec.rollout.waves", "the last wave takes less than 100%, so the rollout never ends".to_owned());
    }
    if spec.ecs.fargate.standalone == Standalone::LatestRevision {
        refuse(
            "spec.ecs.fargate.standalone",
            "LatestRevision is not acted on by this version: standalone tasks are reported; use `tasuki render`"
                .to_owned(),
        );
    }
    if spec.kubernetes.startup == NodeStartup::TaintUntilReady {
        refuse(
            "spec.kubernetes.startup",
            "TaintUntilReady is not acted on by this version: pods start at once, as with BestEffort".to_owned(),
        );
    }
    for (index, exclusion) in spec.exclusions.iter().enumerate() {
        if exclusion.reason.trim().is_empty() {
            refuse(&format!("spec.exclusions[{index}].reason"), "is empty; an exclusion says why".to_owned());
        }
    }
}

/// Two monitors of one priority that can select one task are a problem on both.
pub(super) fn of_ties(monitors: &[Monitor], problems: &mut Vec<Problem>) {
    for (index, a) in monitors.iter().enumerate() {
        for b in monitors.iter().skip(index + 1).take_while(|b| b.spec.priority == a.spec.priority) {
            let (of_a, of_b) = (&a.spec.targets, &b.spec.targets);
            let ecs = of_a.ecs.as_ref().zip(of_b.ecs.as_ref()).is_some_and(|(a, b)| may_select_the_same(a, b));
            let pods = of_a.kubernetes.as_ref().zip(of_b.kubernetes.as_ref());
            if ecs || pods.is_some_and(|(a, b)| may_select_the_same_pods(a, b)) {
                for (one, other) in [(a, b), (b, a)] {
                    let message = format!(
                        "is {} as on RuntimeMonitor/{}, and both can select one task; give one a higher priority",
                        a.spec.priority, other.name
                    );
                    problems.push(Problem::new("RuntimeMonitor", &one.name, "spec.priority", message));
                }
            }
        }
    }
}

fn may_select_the_same_pods(a: &KubernetesTargets, b: &KubernetesTargets) -> bool {
    filters_meet(&a.clusters, &b.clusters) && filters_meet(&a.namespaces, &b.namespaces)
}

/// Whether some name may pass both, as far as that is easily told.
fn filters_meet(a: &NameFilter, b: &NameFilter) -> bool {
    let met = a.include.is_empty()
        || b.include.is_empty()
        || a.include.iter().any(|x| b.include.iter().any(|y| may_meet(x, y)));
    // What one takes, the other leaves.
    let apart = |taken: &NameFilter, left: &NameFilter| {
        let leaves: Vec<WildMatch> = left.exclude.iter().map(|pattern| WildMatch::new(pattern)).collect();
        !taken.include.is_empty() && taken.include.iter().all(|name| leaves.iter().any(|left| left.matches(name)))
    };
    met && !apart(a, b) && !apart(b, a)
}

fn may_select_the_same(a: &EcsTargets, b: &EcsTargets) -> bool {
    fn share<T: PartialEq>(a: &[T], b: &[T]) -> bool {
        a.is_empty() || b.is_empty() || a.iter().any(|x| b.contains(x))
    }
    let names_meet = a.clusters.include.is_empty()
        || b.clusters.include.is_empty()
        || a.clusters.include.iter().any(|x| b.clusters.include.iter().any(|y| may_meet(x, y)));
    // One key that each demands with values that never meet keeps them apart.
    let apart_by_tags = a.tags.include.iter().any(|(key, of_a)| {
        b.tags.include.get(key).is_some_and(|of_b| !of_a.iter().any(|x| of_b.iter().any(|y| may_meet(x, y))))
    });
    share(&a.scopes, &b.scopes) && share(&a.compute, &b.compute) && names_meet && !apart_by_tags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_filters_meet_unless_one_leaves_what_the_other_takes() {
        let filter = |include: &[&str], exclude: &[&str]| NameFilter {
            include: include.iter().map(|name| (*name).to_owned()).collect(),
            exclude: exclude.iter().map(|name| (*name).to_owned()).collect(),
        };
        for (a, b, met) in [
            (filter(&[], &[]), filter(&[], &[]), true),
            (filter(&["shop"], &[]), filter(&[], &[]), true),
            (filter(&["shop"], &[]), filter(&["pay"], &[]), false),
            (filter(&["shop"], &[]), filter(&[], &["shop"]), false),
            (filter(&["shop", "pay"], &[]), filter(&[], &["shop"]), true),
            (filter(&["shop-*"], &[]), filter(&[], &["shop-*", "x"]), false),
            (filter(&["shop-*"], &[]), filter(&["*-a"], &[]), true),
        ] {
            assert_eq!(filters_meet(&a, &b), met, "{a:?} {b:?}");
            assert_eq!(filters_meet(&b, &a), met, "{b:?} {a:?}");
        }
    }
}
