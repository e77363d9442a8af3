//! The agent's directory on a node's disk. In Kubernetes two agents share the disk while one hands over to
//! the next, so each pod has a directory of its own, named by its uid; what a pod that is gone could not
//! send any more is sent by the next one.

use super::spool::{MEMORY_BYTES, Spool};
use crate::workload::kubernetes::is_uid;
use std::collections::HashSet;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Findings taken over at a time.
const BATCH: usize = 256;
/// Directories that are looked at, at most.
const MAX_ENTRIES: usize = 4_096;

/// Makes the directory of the pod with this uid below `base`.
///
/// # Errors
/// Where it cannot be made.
pub fn of_pod(base: &Path, uid: &str) -> std::io::Result<PathBuf> {
    let own = base.join(uid);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&own)?;
    Ok(own)
}

/// Takes over what pods that are gone left to send, and removes their directories. `logs` is the kubelet's
/// directory with one directory a pod, `<namespace>_<pod>_<uid>`: who has one is not gone. Where it cannot be
/// read nothing is removed. Gives how many findings were taken over.
pub(super) fn inherit(own: &Path, logs: &Path, spool: &mut Spool) -> usize {
    let (Some(base), Some(uid)) = (own.parent(), own.file_name().and_then(|name| name.to_str())) else { return 0 };
    let names = |directory: &Path| -> std::io::Result<Vec<String>> {
        let entries = std::fs::read_dir(directory)?.take(MAX_ENTRIES).flatten();
        Ok(entries.filter_map(|entry| entry.file_name().into_string().ok()).collect())
    };
    let living: HashSet<String> = match names(logs) {
        Ok(names) => names.iter().filter_map(|name| name.rsplit('_').next()).map(str::to_owned).collect(),
        Err(error) => {
            tracing::warn!(logs = %logs.display(), %error, "directories of agents that are gone stay");
            return 0;
        }
    };
    // A list without the own pod is not the kubelet's.
    if !living.contains(uid) {
        return 0;
    }
    let gone = names(base).unwrap_or_default().into_iter().filter(|name| is_uid(name) && !living.contains(name));
    let mut taken = 0;
    for name in gone {
        let directory = base.join(&name);
        match Spool::open(&directory.join("spool"), u64::MAX) {
            Ok(mut left) => taken += take_over(&mut left, spool),
            Err(error) => tracing::warn!(directory = %directory.display(), %error, "its findings cannot be read"),
        }
        if let Err(error) = std::fs::remove_dir_all(&directory) {
            tracing::warn!(directory = %directory.display(), %error, "the directory of an agent that is gone stays");
        }
    }
    taken
}

fn take_over(from: &mut Spool, to: &mut Spool) -> usize {
    let mut taken = 0;
    loop {
        let waiting = from.peek(BATCH, usize::try_from(MEMORY_BYTES).unwrap_or(usize::MAX));
        if waiting.is_empty() {
            return taken;
        }
        let (indices, findings): (Vec<u64>, Vec<_>) = waiting.into_iter().map(|one| (one.index, one.finding)).unzip();
        to.append(&findings);
        from.forget(&indices);
        taken += findings.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tasuki_api::finding::Finding;
    use ulid::Ulid;

    const OWN: &str = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
    const GONE: &str = "e81d4fae-7dec-11d0-a765-00a0c91e6bf6";
    const OTHER: &str = "d81d4fae-7dec-11d0-a765-00a0c91e6bf6";

    fn finding(number: u128) -> Finding {
        let time = "2026-01-01T00:00:00Z";
        serde_json::from_value(json!({"id": Ulid(number).to_string(), "type": "T", "severity": "Low", "title": "t",
            "firstSeen": time, "lastSeen": time, "count": 1, "resource": {}, "rule": {},
            "agent": {"version": "1", "depth": "Full", "sensor": "ebpf"}}))
        .unwrap()
    }

    fn open(base: &Path, uid: &str) -> Spool {
        Spool::open(&of_pod(base, uid).unwrap().join("spool"), 1 << 20).unwrap()
    }

    #[test]
    fn what_an_agent_that_is_gone_could_not_send_is_taken_over_and_the_living_are_left_alone() {
        let (base, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(base.path().join("not-a-pod")).unwrap();
        for (uid, number) in [(GONE, 1), (OTHER, 2)] {
            open(base.path(), uid).append(&[finding(number)]);
        }
        let mut own = open(base.path(), OWN);
        let directory = base.path().join(OWN);
        assert_eq!(inherit(&directory, &logs.path().join("missing"), &mut own), 0);
        assert_eq!(inherit(&directory, logs.path(), &mut own), 0, "an empty list is not believed");
        assert!(base.path().join(GONE).exists());
        for uid in [OWN, OTHER] {
            std::fs::create_dir(logs.path().join(format!("tasuki-agents_tasuki-agent-x_{uid}"))).unwrap();
        }
        assert_eq!(inherit(&directory, logs.path(), &mut own), 1);
        assert_eq!(own.peek(9, 1 << 20)[0].finding.id, Ulid(1));
        assert!(!base.path().join(GONE).exists() && base.path().join("not-a-pod").exists());
        assert_eq!(open(base.path(), OTHER).len(), 1);
    }
}
