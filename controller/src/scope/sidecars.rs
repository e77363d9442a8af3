//! What namespaces are offered in sidecars: the ConfigMap from which the chart's admission policy takes it, and the
//! pods that try an agent's image.
//!
//! A key for each namespace, whose value is an [`Offer`]; keys with a dot, which no namespace has, are for all.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use std::collections::BTreeMap;
use std::fmt;
use tasuki_core::action::{AgentSpec, PROBE as JOB};
use tasuki_core::fleet::Str;

/// Name of the ConfigMap, in the agents' namespace.
pub const MAP: &str = "tasuki-sidecar";
/// Name of the policy by which the API server adds sidecars; it comes with the chart.
pub const POLICY: &str = "tasuki-sidecar";
/// Key of the gateway's URL.
pub const GATEWAY: &str = "gateway.url";
/// Key of the gateway's certificate authority.
pub const GATEWAY_CA: &str = "gateway.ca";
/// Key of the public key of policy bundles.
pub const POLICY_KEY: &str = "gateway.policy-key";
/// Key of the cluster's name.
pub const CLUSTER: &str = "cluster.name";
/// Label of a pod that tries an agent's image: the fingerprint of its spec.
pub const PROBE: &str = "tasuki.dev/probe";

/// What the sidecars of one namespace run. Written as words with a blank between them, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Agent version.
    pub version: Str,
    /// Image with digest.
    pub image: Str,
    /// Such as `auto`.
    pub sensor: Str,
    /// MiB.
    pub memory_mib: u32,
    /// The agent's share, such as `10%`.
    pub cpu: Str,
    /// CPU request of the container, such as `50m`.
    pub request: Str,
    /// Fingerprint of the agent spec.
    pub spec: Str,
    /// Since when.
    pub at: Timestamp,
}

impl Offer {
    /// An offer of this agent from `at` on.
    ///
    /// # Errors
    /// The word that cannot be one.
    pub fn new(agent: &AgentSpec, at: Timestamp) -> Result<Self, String> {
        let offer = Self {
            version: agent.version.clone(),
            image: agent.image.clone(),
            sensor: agent.sensor.clone(),
            memory_mib: agent.memory_mib,
            cpu: agent.cpu.clone(),
            request: agent.pod_cpu().into(),
            spec: agent.fingerprint(),
            at,
        };
        for word in [&offer.version, &offer.image, &offer.sensor, &offer.cpu, &offer.request] {
            if word.is_empty() || word.contains(char::is_whitespace) {
                return Err(format!("{word:?} is empty or has a blank, so no sidecar can be made of it"));
            }
        }
        Ok(offer)
    }

    /// Reads what was written; `None` where it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut word = || words.next().filter(|word| !word.is_empty()).map(Str::from);
        let offer = Self {
            version: word()?,
            image: word()?,
            sensor: word()?,
            memory_mib: word()?.parse().ok()?,
            cpu: word()?,
            request: word()?,
            spec: word()?,
            at: word()?.parse().ok()?,
        };
        words.next().is_none().then_some(offer)
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, image, sensor, memory_mib, cpu, request, spec, at } = self;
        write!(f, "{version} {image} {sensor} {memory_mib} {cpu} {request} {spec} {at}")
    }
}

/// What each namespace is offered; what cannot be read is told and left out.
pub fn offers(map: &ConfigMap) -> BTreeMap<String, Offer> {
    let namespaces = map.data.iter().flatten().filter(|(key, _)| !key.contains('.'));
    let offers = namespaces.filter_map(|(namespace, text)| {
        let offer = Offer::parse(text);
        if offer.is_none() {
            tracing::warn!(namespace, "ConfigMap {MAP}: what it offers cannot be read");
        }
        Some((namespace.clone(), offer?))
    });
    offers.collect()
}

/// Name of the Job that tries an agent.
pub fn probe(spec: &str) -> String {
    format!("{JOB}{}", spec.get(..10).unwrap_or(spec))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agent;

    #[test]
    fn an_offer_is_read_as_it_was_written_and_nothing_else_is() {
        let agent = agent("1.4.2");
        let offer = Offer::new(&agent, Timestamp::UNIX_EPOCH).unwrap();
        let text = offer.to_string();
        assert_eq!(Offer::parse(&text), Some(offer));
        for other in ["", "a b", &format!("{text} more"), &text.replace(" 64 ", " much "), &text.replace("auto", "")] {
            assert_eq!(Offer::parse(other), None, "{other}");
        }
        for blank in ["", "1 2"] {
            assert!(Offer::new(&AgentSpec { version: blank.into(), ..agent.clone() }, Timestamp::UNIX_EPOCH).is_err());
        }
    }
}
