//! The spool: findings wait here until the gateway has a receipt for them.
//!
//! *Expected flow*: [`Spool::append`] takes a batch and is durable when it returns; [`Spool::peek`]
//! gives the oldest; [`Spool::forget`] drops what the gateway has. On disk each process writes
//! segments of its own, so a torn tail is never appended to; a segment is deleted when all of it is
//! forgotten. After a crash a part of one segment may be sent again: the gateway knows the ids.
//!
//! *Guarantees*: never more than the bound. Where it is nearly full the less severe are turned away
//! first (Low at a half, Medium at three quarters), so that a flood of small findings cannot push out
//! the serious one; what is in is never thrown out. Findings only: telemetry takes other ways and
//! never their room. *Caveats*: in memory a crash loses what waits.

use super::record::{self, HEADER, LARGEST};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use tasuki_api::finding::{Finding, Severity};

/// Default bound on disk, bytes.
pub const DISK_BYTES: u64 = 64 << 20;
/// Default bound in memory, bytes.
pub const MEMORY_BYTES: u64 = 16 << 20;
/// A segment is closed at this size, so that forgetting frees room.
const SEGMENT_BYTES: u64 = 1 << 20;

/// The spool's directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the spool in {path} cannot be opened; findings wait in memory instead")]
pub struct SpoolError {
    /// Directory.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

/// What became of findings, since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolCounters {
    /// Turned away: the spool was too full for their severity.
    pub dropped: u64,
    /// Turned away: larger than a finding may be.
    pub oversize: u64,
    /// Records of an earlier process that could not be read.
    pub damaged: u64,
    /// Segments of an earlier process that ended in the middle of a record.
    pub torn: u64,
    /// Findings kept in memory because the disk refused them.
    pub disk_errors: u64,
    /// Findings that an earlier process left.
    pub recovered: u64,
}

enum Place {
    Disk { segment: u64, offset: u64, length: u32 },
    Memory(Vec<u8>),
}

struct Entry {
    index: u64,
    size: u64,
    place: Place,
}

/// A finding that waits.
#[derive(Debug, PartialEq)]
pub struct Waiting {
    /// For [`Spool::forget`].
    pub index: u64,
    /// The finding.
    pub finding: Finding,
}

/// The spool.
pub struct Spool {
    directory: Option<PathBuf>,
    bound: u64,
    used: u64,
    next: u64,
    entries: VecDeque<Entry>,
    /// Segments with the number of entries in each that are not forgotten.
    segments: BTreeMap<u64, u64>,
    active: Option<(u64, File, u64)>,
    /// Number of the newest segment that was ever begun.
    newest: u64,
    counters: SpoolCounters,
}

impl Spool {
    /// A spool in memory.
    pub fn memory(bound: u64) -> Self {
        Self {
            directory: None,
            bound,
            used: 0,
            next: 0,
            entries: VecDeque::new(),
            segments: BTreeMap::new(),
            active: None,
            newest: 0,
            counters: SpoolCounters::default(),
        }
    }

    /// A spool in `directory`, which is made where absent (mode 0700), with what an earlier process left.
    pub fn open(directory: &Path, bound: u64) -> Result<Self, SpoolError> {
        let mut spool = Self { directory: Some(directory.to_owned()), ..Self::memory(bound) };
        spool.recover(directory).map_err(|source| SpoolError { path: directory.to_owned(), source })?;
        Ok(spool)
    }

    fn recover(&mut self, directory: &Path) -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".spool")?.parse::<u64>().ok());
            found.extend(number);
        }
        found.sort_unstable();
        self.newest = found.last().copied().unwrap_or(0);
        for segment in found {
            let mut bytes = Vec::new();
            // A segment larger than the bound is not ours; what is beyond is left unread.
            File::open(self.path(segment))?.take(self.bound).read_to_end(&mut bytes)?;
            let scan = record::scan(&bytes);
            self.counters.damaged += scan.damaged;
            self.counters.torn += u64::from(scan.torn);
            let mut live = 0;
            for (offset, length) in scan.payloads {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let payload = bytes.get(start..start.saturating_add(length as usize)).unwrap_or_default();
                if serde_json::from_slice::<Finding>(payload).is_err() {
                    self.counters.damaged += 1;
                    continue;
                }
                let size = u64::from(length) + HEADER as u64;
                if self.used + size > self.bound {
                    self.counters.dropped += 1;
                    continue;
                }
                self.push(size, Place::Disk { segment, offset, length });
                live += 1;
            }
            self.counters.recovered += live;
            if live == 0 {
                std::fs::remove_file(self.path(segment))?;
            } else {
                self.segments.insert(segment, live);
            }
        }
        Ok(())
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.directory.as_deref().unwrap_or(Path::new("")).join(format!("{segment:020}.spool"))
    }

    fn push(&mut self, size: u64, place: Place) {
        self.entries.push_back(Entry { index: self.next, size, place });
        self.next += 1;
        self.used += size;
    }

    /// Takes findings; durable when this returns, on disk with one sync for all of them.
    pub fn append(&mut self, findings: &[Finding]) {
        let (mut bytes, mut taken) = (Vec::new(), Vec::new());
        for finding in findings {
            let Ok(payload) = serde_json::to_vec(finding) else {
                self.counters.oversize += 1;
                continue;
            };
            if payload.len() > LARGEST {
                self.counters.oversize += 1;
                continue;
            }
            let share = match finding.severity {
                Severity::Low => 2,
                Severity::Medium => 3,
                Severity::High | Severity::Critical => 4,
            };
            let size = (payload.len() + HEADER) as u64;
            let waiting = self.used + bytes.len() as u64;
            if waiting + size > self.bound / 4 * share {
                self.counters.dropped += 1;
                continue;
            }
            let offset = bytes.len() + HEADER;
            record::write(&payload, &mut bytes);
            taken.push((offset, payload));
        }
        if taken.is_empty() {
            return;
        }
        let written = if self.directory.is_some() { self.write(&bytes) } else { Ok(None) };
        let at = written.unwrap_or_else(|error| {
            self.counters.disk_errors += taken.len() as u64;
            tracing::warn!(%error, "the spool's disk refuses findings; they wait in memory");
            self.abandon();
            None
        });
        for (offset, payload) in taken {
            let size = (payload.len() + HEADER) as u64;
            let place = match at {
                Some((segment, start)) => {
                    *self.segments.entry(segment).or_default() += 1;
                    let length = u32::try_from(payload.len()).unwrap_or(0);
                    Place::Disk { segment, offset: start + offset as u64, length }
                }
                None => Place::Memory(payload),
            };
            self.push(size, place);
        }
    }

    /// Writes to the active segment; gives segment and offset.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<Option<(u64, u64)>> {
        if self.active.as_ref().is_none_or(|(_, _, length)| *length >= SEGMENT_BYTES) {
            // Counted before it is made: a number whose making failed half way is never tried again.
            self.newest += 1;
            let number = self.newest;
            let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(self.path(number))?;
            self.active = Some((number, file, 0));
            // The name must be as durable as the content.
            if let Some(directory) = &self.directory {
                File::open(directory)?.sync_all()?;
            }
        }
        let Some((number, file, length)) = &mut self.active else { return Ok(None) };
        file.write_all(bytes)?;
        file.sync_data()?;
        let start = *length;
        *length += bytes.len() as u64;
        Ok(Some((*number, start)))
    }

    /// Lets go of the segment that may have been written in part, and so is not appended to: where
    /// findings of before wait in it, only the torn part is cut off; else it goes, to leave no file
    /// behind for each attempt.
    fn abandon(&mut self) {
        let Some((number, file, length)) = self.active.take() else { return };
        let done = match self.segments.contains_key(&number) {
            true => file.set_len(length),
            false => std::fs::remove_file(self.path(number)),
        };
        if let Err(error) = done {
            tracing::warn!(%error, segment = number, "what was begun of a spool segment could not be taken back");
        }
    }

    /// The oldest findings, at most `count` of them and `bytes` of JSON.
    pub fn peek(&mut self, count: usize, bytes: usize) -> Vec<Waiting> {
        let (mut waiting, mut size, mut unreadable) = (Vec::new(), 0, Vec::new());
        for entry in &self.entries {
            size += usize::try_from(entry.size).unwrap_or(usize::MAX);
            if waiting.len() == count || (size > bytes && !waiting.is_empty()) {
                break;
            }
            let payload = match &entry.place {
                Place::Memory(payload) => Some(payload.clone()),
                Place::Disk { segment, offset, length } => self.load(*segment, *offset, *length).ok(),
            };
            match payload.and_then(|payload| serde_json::from_slice(&payload).ok()) {
                Some(finding) => waiting.push(Waiting { index: entry.index, finding }),
                None => unreadable.push(entry.index),
            }
        }
        if !unreadable.is_empty() {
            self.counters.damaged += unreadable.len() as u64;
            self.forget(&unreadable);
        }
        waiting
    }

    fn load(&self, segment: u64, offset: u64, length: u32) -> std::io::Result<Vec<u8>> {
        let mut file = File::open(self.path(segment))?;
        file.seek(SeekFrom::Start(offset))?;
        let mut payload = vec![0; length as usize];
        file.read_exact(&mut payload)?;
        Ok(payload)
    }

    /// Drops findings that the gateway has, or will never take.
    pub fn forget(&mut self, indices: &[u64]) {
        let mut gone: Vec<Entry> = Vec::new();
        let mut kept = VecDeque::with_capacity(self.entries.len());
        for entry in self.entries.drain(..) {
            if indices.contains(&entry.index) { gone.push(entry) } else { kept.push_back(entry) }
        }
        self.entries = kept;
        for entry in gone {
            self.used -= entry.size;
            if let Place::Disk { segment, .. } = entry.place {
                if let Some(live) = self.segments.get_mut(&segment) {
                    *live -= 1;
                }
                self.delete_if_done(segment);
            }
        }
    }

    /// Deletes a segment of which nothing waits, also the active one: what is forgotten must not be
    /// sent again after a restart.
    fn delete_if_done(&mut self, segment: u64) {
        if self.segments.get(&segment).is_some_and(|live| *live > 0) {
            return;
        }
        if self.active.as_ref().is_some_and(|(number, ..)| *number == segment) {
            self.active = None;
        }
        self.segments.remove(&segment);
        if let Err(error) = std::fs::remove_file(self.path(segment)) {
            tracing::warn!(%error, segment, "a finished spool segment could not be deleted");
        }
    }

    /// Findings that wait.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that wait.
    #[cfg(test)]
    fn used(&self) -> u64 {
        self.used
    }

    /// What became of findings.
    pub fn counters(&self) -> SpoolCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use ulid::Ulid;

    fn finding(id: u128, severity: &str, title: &str) -> Finding {
        serde_json::from_value(json!({
            "id": Ulid(id).to_string(), "type": "T", "severity": severity, "title": title,
            "firstSeen": "2026-01-01T00:00:00Z", "lastSeen": "2026-01-01T00:00:00Z", "count": 1, "resource": {},
            "rule": {}, "agent": {"version": "1", "depth": "Full", "sensor": "ebpf"}
        }))
        .unwrap()
    }
    fn numbers(spool: &mut Spool) -> Vec<u128> {
        spool.peek(usize::MAX, usize::MAX).iter().map(|waiting| waiting.finding.id.0).collect()
    }

    #[test]
    fn what_waits_survives_a_crash_and_what_is_forgotten_does_not_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), DISK_BYTES).unwrap();
        spool.append(&[finding(1, "Low", "a"), finding(2, "High", "b")]);
        spool.append(&[finding(3, "Low", "c")]);
        let first = spool.peek(2, usize::MAX);
        assert_eq!(first.iter().map(|w| w.finding.id.0).collect::<Vec<_>>(), [1, 2]);
        std::mem::forget(spool); // a crash: nothing is closed
        let mut spool = Spool::open(dir.path(), DISK_BYTES).unwrap();
        assert_eq!((numbers(&mut spool), spool.counters().recovered), (vec![1, 2, 3], 3));
        spool.append(&[finding(4, "Low", "d")]);
        let all: Vec<u64> = spool.peek(3, usize::MAX).iter().map(|w| w.index).collect();
        spool.forget(&all);
        drop(spool);
        let mut spool = Spool::open(dir.path(), DISK_BYTES).unwrap();
        assert_eq!(numbers(&mut spool), [4]);
        let last: Vec<u64> = spool.peek(9, usize::MAX).iter().map(|w| w.index).collect();
        spool.forget(&last);
        assert_eq!((spool.used(), std::fs::read_dir(dir.path()).unwrap().count()), (0, 0));
    }

    #[test]
    fn a_torn_tail_and_a_damaged_record_cost_only_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), DISK_BYTES).unwrap();
        spool.append(&(1..=4).map(|id| finding(id, "High", "x")).collect::<Vec<_>>());
        drop(spool);
        let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let one = bytes.len() / 4;
        bytes.truncate(bytes.len() - 5);
        bytes[one + 30] ^= 0xff;
        std::fs::write(&path, &bytes).unwrap();
        let mut spool = Spool::open(dir.path(), DISK_BYTES).unwrap();
        assert_eq!(numbers(&mut spool), [1, 3]);
        assert_eq!((spool.counters().damaged, spool.counters().torn), (1, 1));
    }

    #[test]
    fn a_full_spool_turns_the_less_severe_away_first_and_counts() {
        for on_disk in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let bound = 40_000;
            let mut spool = if on_disk { Spool::open(dir.path(), bound).unwrap() } else { Spool::memory(bound) };
            let flood: Vec<_> = (0..500).map(|id| finding(id, "Low", "flood")).collect();
            spool.append(&flood);
            let low = spool.len() as u64;
            assert!(spool.used() <= bound / 2 && low > 10);
            assert_eq!(spool.counters().dropped, 500 - low);
            spool.append(&(1000..1500).map(|id| finding(id, "Medium", "more")).collect::<Vec<_>>());
            assert!(spool.used() <= bound / 4 * 3);
            spool.append(&[finding(5000, "Critical", "the one that counts")]);
            assert_eq!(numbers(&mut spool).last(), Some(&5000));
            spool.append(&(6000..7000).map(|id| finding(id, "High", "x")).collect::<Vec<_>>());
            assert!(spool.used() <= bound);
            let waiting = spool.len() as u64;
            assert_eq!(spool.counters().dropped, 500 + 500 + 1 + 1000 - waiting);
            spool.append(&[finding(9, "Critical", &"x".repeat(LARGEST))]);
            assert_eq!(spool.counters().oversize, 1);
        }
    }

    /// Needs root.
    #[test]
    fn a_full_disk_leaves_no_files_behind_and_is_used_again_when_it_has_room() {
        struct Mounted(tempfile::TempDir);
        impl Drop for Mounted {
            fn drop(&mut self) {
                let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
            }
        }
        let mounted = Mounted(tempfile::tempdir().unwrap());
        let (none, size) = (nix::mount::MsFlags::empty(), Some("size=64k"));
        nix::mount::mount(Some("tmpfs"), mounted.0.path(), Some("tmpfs"), none, size).unwrap();
        let files = || std::fs::read_dir(mounted.0.path()).unwrap().count();
        let mut spool = Spool::open(mounted.0.path(), DISK_BYTES).unwrap();
        spool.append(&[finding(1, "High", "fits")]);
        let filler = mounted.0.path().join("filler");
        let full = std::fs::write(&filler, vec![0; 1 << 20]);
        assert!(full.is_err(), "the disk is full");
        for id in 2..6 {
            spool.append(&[finding(id, "High", &"x".repeat(20_000))]);
        }
        assert_eq!((spool.counters().disk_errors, files()), (4, 2), "the first segment and what fills the disk");
        assert_eq!(numbers(&mut spool), [1, 2, 3, 4, 5]);
        std::fs::remove_file(&filler).unwrap();
        spool.append(&[finding(6, "High", "fits again")]);
        assert_eq!((spool.counters().disk_errors, files()), (4, 2), "two segments");
        drop(spool);
        let mut spool = Spool::open(mounted.0.path(), DISK_BYTES).unwrap();
        assert_eq!(numbers(&mut spool), [1, 6]);
        assert_eq!((spool.counters().torn, spool.counters().damaged), (0, 0), "nothing torn was left");
    }

    #[test]
    fn a_disk_that_refuses_leaves_findings_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(&dir.path().join("s"), DISK_BYTES).unwrap();
        std::fs::remove_dir_all(dir.path().join("s")).unwrap();
        spool.append(&[finding(1, "High", "x")]);
        assert_eq!((spool.peek(9, usize::MAX).len(), spool.counters().disk_errors), (1, 1));
        assert!(Spool::open(Path::new("/proc/nonexistent/x"), 1).is_err());
    }
}
