//! Policy bundles: built from desired state, one a monitor, signed, with a serial that only rises.

use crate::store::{POLICY_KEY, Store, StoreError};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use tasuki_api::agent::{Policy, SignedPolicy};
use tasuki_api::desired::{DetectionRuleSpec, Document, ThreatListSpec};

/// Setting: the serial in force and the hash of what it stands for.
const POLICY_SERIAL: &str = "policy.serial";

/// Why policies cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The store failed.
    #[error("the policy's key or serial could not be kept")]
    Store(#[from] StoreError),
    /// The kept key is not one.
    #[error(
        "the store's setting {POLICY_KEY} is not an Ed25519 key; restore it, or delete it and give all agents the new one"
    )]
    Key,
    /// A bundle could not be written as JSON.
    #[error("a policy could not be written")]
    Write(#[from] serde_json::Error),
}

/// A bundle as agents get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Text and signature.
    pub signed: SignedPolicy,
    /// Hexadecimal SHA-256 of the text.
    pub hash: String,
}

/// The policies in force. Reads never wait for the store.
pub struct PolicyStore {
    store: Store,
    key: Ed25519KeyPair,
    bundles: RwLock<Bundles>,
}

#[derive(Default)]
struct Bundles {
    by_monitor: BTreeMap<String, Arc<Bundle>>,
    default: Option<Arc<Bundle>>,
}

#[derive(Serialize, Deserialize, Default)]
struct Serial {
    serial: u64,
    content: String,
}

/// What a monitor contributes; the rest is common to all.
#[derive(Serialize)]
struct Content<'a> {
    monitors: BTreeMap<&'a str, Policy>,
    default: Policy,
}

impl PolicyStore {
    /// Opens the key, or makes it, and the policy of an empty desired state.
    pub async fn open(store: Store) -> Result<Self, PolicyError> {
        let kept = match store.setting(POLICY_KEY).await? {
            Some(kept) => kept,
            None => {
                let fresh = Ed25519KeyPair::generate().map_err(|_| PolicyError::Key)?;
                let pkcs8 = fresh.to_pkcs8().map_err(|_| PolicyError::Key)?;
                store.setting_or_insert(POLICY_KEY, &BASE64.encode(pkcs8.as_ref())).await?
            }
        };
        let pkcs8 = BASE64.decode(kept).map_err(|_| PolicyError::Key)?;
        let key = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|_| PolicyError::Key)?;
        Ok(Self { store, key, bundles: RwLock::default() })
    }

    /// Public key, base64: agents get it as `TASUKI_POLICY_KEY`.
    pub fn public_key(&self) -> String {
        BASE64.encode(self.key.public_key().as_ref())
    }

    /// Puts desired state into force. One serial stands for all bundles, so that an agent that moves
    /// from one monitor to another never sees it fall. Returns whether anything changed.
    pub async fn update(&self, documents: &[Document]) -> Result<bool, PolicyError> {
        let mut content = contents(documents);
        let hash = sha256_hex(serde_json::to_string(&content)?.as_bytes());
        let kept = self.store.setting(POLICY_SERIAL).await?;
        let mut serial: Serial = kept.and_then(|kept| serde_json::from_str(&kept).ok()).unwrap_or_default();
        let changed = serial.content != hash;
        if changed {
            serial = Serial { serial: serial.serial + 1, content: hash };
            self.store.set_setting(POLICY_SERIAL, &serde_json::to_string(&serial)?).await?;
        }
        let mut bundles = Bundles::default();
        for (monitor, mut policy) in std::mem::take(&mut content.monitors) {
            policy.serial = serial.serial;
            bundles.by_monitor.insert(monitor.to_owned(), Arc::new(self.sign(&policy)?));
        }
        content.default.serial = serial.serial;
        bundles.default = Some(Arc::new(self.sign(&content.default)?));
        *self.bundles.write().unwrap_or_else(PoisonError::into_inner) = bundles;
        Ok(changed)
    }

    fn sign(&self, policy: &Policy) -> Result<Bundle, PolicyError> {
        let policy = serde_json::to_string(policy)?;
        let hash = sha256_hex(policy.as_bytes());
        let signature = BASE64.encode(self.key.sign(SignedPolicy::signing_text(&policy).as_bytes()).as_ref());
        Ok(Bundle { signed: SignedPolicy { policy, signature }, hash })
    }

    /// The bundle of a monitor; of no monitor, or one that is gone, the built-in rules alone.
    /// `None` before the first [`PolicyStore::update`].
    pub fn bundle(&self, monitor: Option<&str>) -> Option<Arc<Bundle>> {
        let bundles = self.bundles.read().unwrap_or_else(PoisonError::into_inner);
        monitor.and_then(|monitor| bundles.by_monitor.get(monitor)).or(bundles.default.as_ref()).cloned()
    }

    /// Hash of [`PolicyStore::bundle`]; empty before the first update.
    pub fn hash(&self, monitor: Option<&str>) -> String {
        self.bundle(monitor).map(|bundle| bundle.hash.clone()).unwrap_or_default()
    }
}

/// Where the store knows no serial, the next one is greater than `serial`.
pub(super) async fn begin_serial_at(store: &Store, serial: u64) -> Result<(), PolicyError> {
    let begun = serde_json::to_string(&Serial { serial, content: String::new() })?;
    store.setting_or_insert(POLICY_SERIAL, &begun).await?;
    Ok(())
}

fn contents(documents: &[Document]) -> Content<'_> {
    let mut custom: Vec<(&str, DetectionRuleSpec)> = Vec::new();
    let mut lists: Vec<(&str, ThreatListSpec)> = Vec::new();
    for document in documents {
        match document {
            Document::DetectionRule(rule) => custom.push((&rule.metadata.name, rule.spec.clone())),
            Document::ThreatList(list) => lists.push((&list.metadata.name, list.spec.clone())),
            _ => {}
        }
    }
    // The order of files must not make a new policy.
    custom.sort_by_key(|(name, _)| *name);
    lists.sort_by_key(|(name, _)| *name);
    let default = Policy {
        custom: custom.into_iter().map(|(_, spec)| spec).collect(),
        lists: lists.into_iter().map(|(_, spec)| spec).collect(),
        ..Policy::default()
    };
    let monitors = documents
        .iter()
        .filter_map(|document| match document {
            Document::RuntimeMonitor(monitor) => Some(monitor),
            _ => None,
        })
        .map(|monitor| {
            let detection = &monitor.spec.detection;
            let policy = Policy {
                rules: detection.rules.clone(),
                response: detection.response.clone(),
                syscall_tracepoints: monitor.spec.agent.as_ref().map(|a| a.syscall_tracepoints).unwrap_or_default(),
                ..default.clone()
            };
            (monitor.metadata.name.as_str(), policy)
        })
        .collect();
    Content { monitors, default }
}

/// Hexadecimal SHA-256.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tasuki_api::desired::{Metadata, Object, Response};

    fn document(name: &str, disable: &[&str]) -> Document {
        let spec = serde_json::from_value(json!({
            "detection": {"rules": {"disable": disable}, "response": {"T": "Kill"}}
        }));
        let metadata = Metadata { name: name.to_owned(), ..Default::default() };
        Document::RuntimeMonitor(Box::new(Object { metadata, spec: spec.unwrap() }))
    }

    #[tokio::test]
    async fn the_serial_rises_only_with_a_change_and_is_one_for_all_monitors() {
        let store = Store::open("sqlite::memory:").await.unwrap();
        let policies = PolicyStore::open(store.clone()).await.unwrap();
        assert_eq!(policies.bundle(None), None);
        let documents = [document("b", &[]), document("a", &["X"])];
        assert!(policies.update(&documents).await.unwrap());
        let first = policies.bundle(Some("a")).unwrap();
        let reversed: Vec<_> = documents.iter().rev().cloned().collect();
        assert!(!policies.update(&reversed).await.unwrap());
        assert_eq!(policies.bundle(Some("a")).unwrap(), first);
        let again = PolicyStore::open(store).await.unwrap();
        assert!(!again.update(&documents).await.unwrap(), "a restart changes nothing");
        assert_eq!(again.public_key(), policies.public_key());
        assert_eq!(again.bundle(Some("a")).unwrap(), first);
        assert!(again.update(&[document("a", &["X"]), document("b", &["Y"])]).await.unwrap());
        let (a, b): (Policy, Policy) = (read(&again, "a"), read(&again, "b"));
        assert_eq!((a.serial, b.serial), (2, 2));
        assert_eq!(a.response.get("T"), Some(&Response::Kill));
        assert_eq!(again.hash(Some("gone")), again.hash(None));
    }

    fn read(policies: &PolicyStore, monitor: &str) -> Policy {
        serde_json::from_str(&policies.bundle(Some(monitor)).unwrap().signed.policy).unwrap()
    }
}
