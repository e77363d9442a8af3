//! The agent's Ed25519 key: made here, never sent, and kept over a restart of the agent's process.
//!
//! The gateway pins the first key of a container and takes a second one for a conflict while the first
//! is alive. So that a restart is not taken for one, the key outlives the process where there is a place
//! for it: a descriptor that the supervisor holds (a memfd: no path, no file), or a file of mode 0600 in
//! the agent's own state directory. Without either, the gateway lets the new key in after three
//! heartbeats of the old one's silence.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Bytes of an Ed25519 seed.
const SEED: usize = 32;

/// Where the key lives.
#[derive(Debug)]
pub enum KeyHome {
    /// With the process.
    Process,
    /// In a descriptor that the supervisor holds.
    Descriptor(File),
    /// In a file.
    File(PathBuf),
}

impl KeyHome {
    /// In the agent's directory where it has one, else where the supervisor keeps it, `kept`.
    pub fn choose(state: Option<&Path>, kept: Option<&str>) -> Self {
        match (state, kept) {
            (Some(state), _) => Self::File(state.join("key")),
            (None, Some(path)) => OpenOptions::new().read(true).write(true).open(path).map_or_else(
                |error| {
                    tracing::warn!(path, %error, "the supervisor's place for the key cannot be opened");
                    Self::Process
                },
                Self::Descriptor,
            ),
            (None, None) => Self::Process,
        }
    }
}

/// The system gave no key.
#[derive(Debug, thiserror::Error)]
#[error("no key could be made: the system's random numbers are not available")]
pub struct KeyError;

/// The key.
pub struct AgentKey(Ed25519KeyPair);

impl AgentKey {
    /// Takes the key out of its home, or makes one and puts it there. A home that fails is said in
    /// the log and done without.
    pub fn open(home: KeyHome) -> Result<Self, KeyError> {
        let kept = match &home {
            KeyHome::Process => None,
            KeyHome::Descriptor(file) => read(file),
            KeyHome::File(path) => File::open(path).ok().and_then(|file| read(&file)),
        };
        if let Some(pair) = kept.and_then(|seed| Ed25519KeyPair::from_seed_unchecked(&seed).ok()) {
            return Ok(Self(pair));
        }
        let mut seed = [0; SEED];
        SystemRandom::new().fill(&mut seed).map_err(|_| KeyError)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError)?;
        let stored = match home {
            KeyHome::Process => Ok(()),
            KeyHome::Descriptor(file) => write(&file, &seed),
            KeyHome::File(path) => {
                let _ = std::fs::remove_file(&path); // a damaged one, perhaps of another mode
                let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
                file.and_then(|file| write(&file, &seed))
            }
        };
        if let Err(error) = stored {
            tracing::warn!(%error, "the agent's key cannot be kept; after a restart the gateway waits for three heartbeats");
        }
        Ok(Self(pair))
    }

    /// Raw public key.
    pub fn public(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// Public key, base64.
    pub fn public_base64(&self) -> String {
        BASE64.encode(self.public())
    }

    /// Signature, base64.
    pub fn sign(&self, text: &str) -> String {
        BASE64.encode(self.0.sign(text.as_bytes()).as_ref())
    }
}

fn read(mut file: &File) -> Option<[u8; SEED]> {
    let mut seed = [0; SEED];
    file.seek(SeekFrom::Start(0)).ok()?;
    file.read_exact(&mut seed).ok()?;
    Some(seed)
}

fn write(mut file: &File, seed: &[u8; SEED]) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_kept_key_survives_and_is_nobody_elses_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let open = || AgentKey::open(KeyHome::File(path.clone())).unwrap().public_base64();
        let first = open();
        assert_eq!(open(), first);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, b"short").unwrap();
        let second = open();
        assert!(second != first && open() == second, "a damaged key is replaced");
        let memory = nix::sys::memfd::memfd_create(c"key", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let memory = File::from(memory);
        let open = || AgentKey::open(KeyHome::Descriptor(memory.try_clone().unwrap())).unwrap().public_base64();
        assert_eq!(open(), open());
        let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&memory));
        let by_path = || AgentKey::open(KeyHome::choose(None, Some(&path))).unwrap().public_base64();
        assert_eq!(by_path(), open(), "another process opens the same one by its path");
        assert!(matches!(KeyHome::choose(None, Some("/proc/self/fd/9999")), KeyHome::Process));
        assert!(matches!(KeyHome::choose(Some(dir.path()), Some(&path)), KeyHome::File(_)));
        let process = || AgentKey::open(KeyHome::Process).unwrap().public_base64();
        assert_ne!(process(), process());
    }
}
