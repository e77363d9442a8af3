//! `tasuki rollout retry`: which failures a cluster's name stands for.

use super::Decider;
use super::daemon::failed_as;
use crate::action::AgentSpec;
use crate::fleet::{Fleet, Str};
use crate::memory::Failure;
use std::collections::BTreeSet;

/// The cluster of a key in [`Memory::failed`](crate::memory::Memory), which may say `#external` after it.
fn cluster_of(key: &str) -> &str {
    key.split_once('#').map_or(key, |(cluster, _)| cluster)
}

impl Decider {
    /// Why an agent that a monitor wants for a cluster's nodes is not tried there again.
    pub fn failure(&self, cluster: &str, agent: &AgentSpec) -> Option<&Failure> {
        let key = failed_as(&agent.image, &agent.fingerprint());
        let here = self.memory().failed.iter().filter(|(at, _)| cluster_of(at) == cluster);
        here.filter_map(|(_, failures)| failures.get(&key)).max_by_key(|failure| failure.at)
    }

    /// Forgets what failed in a cluster, by its name or ARN, and that services of it were rolled back or
    /// fought over. Answers how many targets had such; [`Self::memory`] changed unless it is 0.
    pub fn retry_cluster(&mut self, fleet: &Fleet, cluster: &str) -> usize {
        let matches = |arn: &str| arn == cluster || arn.rsplit('/').next() == Some(cluster);
        let arns: BTreeSet<&Str> = fleet.clusters().map(|(arn, _)| arn).filter(|arn| matches(arn)).collect();
        let memory = self.memory();
        let failed = memory.failed.keys().filter(|key| arns.contains(&Str::from(cluster_of(key))));
        let services = memory.services.iter().filter(|(service, history)| {
            let held = history.rolled_back.is_some() || !history.flipped.is_empty();
            held && fleet.service(service).is_some_and(|service| arns.contains(&service.cluster))
        });
        let targets: Vec<Str> = failed.chain(services.map(|(service, _)| service)).cloned().collect();
        for target in &targets {
            self.retry(target);
        }
        targets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::*;
    use crate::fleet::{Change, Cluster};
    use crate::memory::{Memory, ServiceHistory};

    #[test]
    fn a_cluster_whose_name_begins_alike_is_left_alone() {
        let mut fleet = fleet(vec![of_service(service("web"))]);
        let other = format!("{CLUSTER}-2");
        let Change::Cluster(mut twin) = cluster() else { unreachable!() };
        *twin = Cluster { arn: other.as_str().into(), name: "prod-2".into(), ..*twin };
        fleet.apply(Change::Cluster(twin), at(0));
        let failure = Failure { at: at(0), why: "it broke".into() };
        let mut memory = Memory::default();
        for key in [CLUSTER.to_owned(), format!("{CLUSTER}#external"), other.clone(), format!("{other}#external")] {
            memory.failed.entry(key.into()).or_default().insert("image".into(), failure.clone());
        }
        let rolled_back = ServiceHistory { rolled_back: Some(("d".into(), failure)), ..ServiceHistory::default() };
        memory.services.insert(service_arn("web"), rolled_back);
        let mut decider = Decider::new(desired(&[]), memory);
        assert_eq!(decider.retry_cluster(&fleet, "prod"), 3);
        let left: Vec<&str> = decider.memory().failed.keys().map(|key| &**key).collect();
        assert_eq!(left, [other.as_str(), format!("{other}#external").as_str()]);
        assert_eq!(decider.memory().services[&service_arn("web")].rolled_back, None);
        assert_eq!(decider.retry_cluster(&fleet, "prod"), 0);
        assert_eq!(decider.retry_cluster(&fleet, &other), 2);
    }
}
