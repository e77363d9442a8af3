//! Keeps the policy bundle in force.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tasuki_api::agent::{Policy, SignedPolicy};
use tokio::sync::watch;

/// The controller's public key, with which bundles are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl PublicKey {
    /// Reads the value of `TASUKI_POLICY_KEY`.
    pub fn from_base64(text: &str) -> Result<Self, PolicyProblem> {
        match BASE64.decode(text.trim()) {
            Ok(key) if key.len() == 32 => Ok(Self(key)),
            _ => Err(PolicyProblem::Key),
        }
    }
}

/// Why a bundle does not count. The one in force stays.
#[derive(Debug, thiserror::Error)]
pub enum PolicyProblem {
    /// The key is not one.
    #[error("TASUKI_POLICY_KEY is not 32 bytes of base64; take it from `tasuki render`")]
    Key,
    /// No key is configured.
    #[error("there is no TASUKI_POLICY_KEY, so no policy can be checked; the built-in rules stay")]
    NoKey,
    /// The signature does not fit.
    #[error("the policy is not signed by the controller's key")]
    Signature,
    /// Not a policy.
    #[error("the policy is signed and cannot be read; the controller may be newer than this agent")]
    Unreadable(#[source] serde_json::Error),
    /// An old one is played back.
    #[error("the policy has serial {found}, which is lower than {held}: an old one is played back")]
    Older {
        /// Serial of the bundle.
        found: u64,
        /// Serial in force.
        held: u64,
    },
}

/// Keeps the bundle in force, hands it on, and remembers it on disk.
pub struct PolicyKeeper {
    key: Option<PublicKey>,
    path: Option<PathBuf>,
    serial: u64,
    hash: String,
    out: watch::Sender<Arc<Policy>>,
}

impl PolicyKeeper {
    /// Starts with the bundle of an earlier process, where `directory` holds a good one.
    pub fn open(key: Option<PublicKey>, directory: Option<&Path>, out: watch::Sender<Arc<Policy>>) -> Self {
        let path = directory.map(|directory| directory.join("policy.json"));
        let mut keeper = Self { key, path, serial: 0, hash: String::new(), out };
        let kept = keeper.path.as_ref().and_then(|path| std::fs::read(path).ok());
        if let Some(signed) = kept.and_then(|kept| serde_json::from_slice::<SignedPolicy>(&kept).ok())
            && let Err(error) = keeper.check(&signed).map(|policy| keeper.put(policy, &signed.policy))
        {
            tracing::warn!(%error, "the kept policy does not count");
        }
        keeper
    }

    /// Hash of the bundle in force; empty before the first.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Serial of the bundle in force.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Puts a bundle into force, if it counts.
    pub fn take(&mut self, signed: &SignedPolicy) -> Result<(), PolicyProblem> {
        let policy = self.check(signed)?;
        self.put(policy, &signed.policy);
        if let Some(path) = &self.path
            && let Err(error) = keep(path, signed)
        {
            tracing::warn!(%error, path = %path.display(), "the policy cannot be kept; after a restart it is fetched anew");
        }
        tracing::info!(serial = self.serial, hash = %self.hash, "policy in force");
        Ok(())
    }

    fn check(&self, signed: &SignedPolicy) -> Result<Policy, PolicyProblem> {
        let key = self.key.as_ref().ok_or(PolicyProblem::NoKey)?;
        let signature = BASE64.decode(&signed.signature).map_err(|_| PolicyProblem::Signature)?;
        UnparsedPublicKey::new(&ED25519, &key.0)
            .verify(SignedPolicy::signing_text(&signed.policy).as_bytes(), &signature)
            .map_err(|_| PolicyProblem::Signature)?;
        let policy: Policy = serde_json::from_str(&signed.policy).map_err(PolicyProblem::Unreadable)?;
        if policy.serial < self.serial {
            return Err(PolicyProblem::Older { found: policy.serial, held: self.serial });
        }
        Ok(policy)
    }

    fn put(&mut self, policy: Policy, text: &str) {
        self.serial = policy.serial;
        self.hash = crate::deliver::sha256_hex(text.as_bytes());
        self.out.send_replace(Arc::new(policy));
    }
}

/// Writes whole or not at all.
fn keep(path: &Path, signed: &SignedPolicy) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(signed)?)?;
    file.sync_all()?;
    std::fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

    fn sign(key: &Ed25519KeyPair, serial: u64) -> SignedPolicy {
        let policy = serde_json::to_string(&Policy { serial, ..Policy::default() }).unwrap();
        let signature = BASE64.encode(key.sign(SignedPolicy::signing_text(&policy).as_bytes()));
        SignedPolicy { policy, signature }
    }

    #[test]
    fn only_the_controllers_newest_bundle_counts_and_it_survives_a_restart() {
        let (key, other) = (Ed25519KeyPair::generate().unwrap(), Ed25519KeyPair::generate().unwrap());
        let public = PublicKey::from_base64(&BASE64.encode(key.public_key())).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let out = watch::Sender::new(Arc::default());
        let mut keeper = PolicyKeeper::open(Some(public.clone()), Some(dir.path()), out.clone());
        keeper.take(&sign(&key, 7)).unwrap();
        assert_eq!(out.borrow().serial, 7);
        let hash = keeper.hash().to_owned();
        for (bad, wanted) in [(sign(&other, 9), "not signed"), (sign(&key, 6), "played back")] {
            assert!(keeper.take(&bad).unwrap_err().to_string().contains(wanted));
        }
        let mut forged = sign(&key, 8);
        forged.policy = forged.policy.replace('8', "9");
        assert!(matches!(keeper.take(&forged), Err(PolicyProblem::Signature)));
        assert_eq!((out.borrow().serial, keeper.hash()), (7, hash.as_str()));

        let out = watch::Sender::new(Arc::default());
        let mut again = PolicyKeeper::open(Some(public.clone()), Some(dir.path()), out.clone());
        assert_eq!((out.borrow().serial, again.hash()), (7, hash.as_str()));
        assert!(matches!(again.take(&sign(&key, 6)), Err(PolicyProblem::Older { found: 6, held: 7 })));

        std::fs::write(dir.path().join("policy.json"), b"{\"policy\":").unwrap();
        assert_eq!(PolicyKeeper::open(Some(public), Some(dir.path()), out).serial(), 0);
        let mut keyless = PolicyKeeper::open(None, None, watch::Sender::new(Arc::default()));
        assert!(matches!(keyless.take(&sign(&key, 1)), Err(PolicyProblem::NoKey)));
        assert!(PublicKey::from_base64("AAAA").is_err());
    }
}
