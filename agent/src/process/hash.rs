//! SHA-256 of executables: once per (device, inode, ctime, size), on a thread of its own, within a
//! byte budget per second.
//!
//! The file is opened where the exec is seen, because a short process is gone a moment later, and
//! read on the worker. A file that changed between exec and open gives no hash.

use super::snapshot::from_metadata;
use crate::event::FileId;
use lru::LruCache;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Files that wait to be read.
const QUEUE: usize = 128;
/// Files larger than this are not read.
const MAX_SIZE: u64 = 512 << 20;

/// What makes a file the same file.
type FileKey = (u64, u64, i64, u64);

fn key(file: &FileId) -> FileKey {
    (file.device, file.inode, file.ctime, file.size)
}

/// A hash as 32 bytes.
pub type Sha256 = [u8; 32];

/// A hash that became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// Of which file.
    pub file: FileId,
    /// The hash; `None` where the file could not be read.
    pub sha256: Option<Sha256>,
}

#[derive(Clone, Copy, Debug)]
enum Known {
    Pending,
    Unreadable,
    Is(Sha256),
}

/// What is known of a file's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is this.
    Is(Sha256),
    /// It is being computed; [`Hasher::finished`] will give it.
    Pending,
    /// It could not be read, or nothing may be read here (replay).
    Unknown,
}

/// Hashes, asked for on the hot path and computed beside it.
#[derive(Debug)]
pub struct Hasher {
    cache: LruCache<FileKey, Known>,
    work: Option<SyncSender<(FileId, File)>>,
    done: Option<Receiver<Hashed>>,
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<std::thread::JoinHandle<()>>,
    skipped: Arc<AtomicU64>,
    evictions: u64,
}

impl Hasher {
    /// A hasher that reads at most `bytes_per_second` and remembers `capacity` files.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(capacity: NonZeroUsize, bytes_per_second: u64) -> std::io::Result<Self> {
        let (work, queue) = sync_channel::<(FileId, File)>(QUEUE);
        let (results, done) = sync_channel(QUEUE * 2);
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let signal = stop.clone();
        let thread = std::thread::Builder::new().name("hash".into()).spawn(move || {
            let mut budget = Budget { per_second: bytes_per_second.max(1), spent: 0, since: Instant::now(), signal };
            for (id, file) in queue {
                let sha256 = sha256(id, file, &mut budget);
                if results.send(Hashed { file: id, sha256 }).is_err() || budget.stopped() {
                    break;
                }
            }
        })?;
        let mut hasher = Self::replay(capacity);
        (hasher.work, hasher.done, hasher.stop, hasher.thread) = (Some(work), Some(done), stop, Some(thread));
        Ok(hasher)
    }

    /// A hasher that reads nothing and knows only what [`Hasher::learn`] tells it.
    pub fn replay(capacity: NonZeroUsize) -> Self {
        Self {
            cache: LruCache::new(capacity),
            work: None,
            done: None,
            stop: Arc::default(),
            thread: None,
            skipped: Arc::default(),
            evictions: 0,
        }
    }

    /// The hash of a file that process `pid` runs; asks for it where it is not known. Where that process
    /// is gone, the file is opened by its path in the root of one of `others`, if it is the same there.
    pub fn ask(&mut self, pid: u32, others: impl IntoIterator<Item = u32>, file: &FileId, path: &str) -> Answer {
        match self.cache.get(&key(file)) {
            Some(Known::Is(sha256)) => return Answer::Is(*sha256),
            Some(Known::Pending) => return Answer::Pending,
            Some(Known::Unreadable) => return Answer::Unknown,
            None => {}
        }
        let Some(work) = &self.work else { return Answer::Unknown };
        let Some(open) = open(pid, others, file, path) else { return Answer::Unknown };
        match work.try_send((*file, open)) {
            Ok(()) => {
                self.remember(file, Known::Pending);
                Answer::Pending
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.skipped.fetch_add(1, Ordering::Relaxed);
                Answer::Unknown
            }
        }
    }

    /// Hashes that were finished since the last call.
    pub fn finished(&mut self) -> Vec<Hashed> {
        let hashed: Vec<Hashed> = self.done.iter().flat_map(|done| done.try_iter()).collect();
        for one in &hashed {
            self.remember(&one.file, one.sha256.map_or(Known::Unreadable, Known::Is));
        }
        hashed
    }

    /// Puts a hash in that a recording gave.
    pub fn learn(&mut self, file: &FileId, sha256: Sha256) {
        self.remember(file, Known::Is(sha256));
    }

    /// Files not hashed because too many waited.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// Files forgotten because the cache was full.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    fn remember(&mut self, file: &FileId, known: Known) {
        if self.cache.len() == self.cache.cap().get() && !self.cache.contains(&key(file)) {
            self.evictions += 1;
        }
        self.cache.put(key(file), known);
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        self.work = None;
        self.done = None;
        if let Ok(mut stopped) = self.stop.0.lock() {
            *stopped = true;
        }
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // The thread holds nothing that could be lost with it.
            let _ = thread.join();
        }
    }
}

/// The file that runs: by the process while it lives, else by its path in the process's or another's root.
fn open(pid: u32, others: impl IntoIterator<Item = u32>, id: &FileId, path: &str) -> Option<File> {
    let same = |file: &File| {
        let found = from_metadata(&file.metadata().ok()?);
        ((found.inode, found.size) == (id.inode, id.size)).then_some(())
    };
    let by_process = File::open(format!("/proc/{pid}/exe")).ok().filter(|file| same(file).is_some());
    let in_root = |pid| super::users::open_in_root(pid, path).filter(|file| same(file).is_some());
    by_process.or_else(|| std::iter::once(pid).chain(others).find_map(in_root))
}

/// Bytes per second, kept by waiting on the stop signal so that the end is never waited for.
struct Budget {
    per_second: u64,
    spent: u64,
    since: Instant,
    signal: Arc<(Mutex<bool>, Condvar)>,
}

impl Budget {
    fn stopped(&self) -> bool {
        self.signal.0.lock().is_ok_and(|stopped| *stopped)
    }

    /// Takes `bytes`; waits where the second's budget is spent. False when the hasher stops.
    fn take(&mut self, bytes: u64) -> bool {
        let second = Duration::from_secs(1);
        if self.since.elapsed() >= second {
            (self.since, self.spent) = (Instant::now(), 0);
        }
        self.spent += bytes;
        if self.spent < self.per_second {
            return true;
        }
        let wait = second.saturating_sub(self.since.elapsed());
        let Ok(stopped) = self.signal.0.lock() else { return false };
        match self.signal.1.wait_timeout_while(stopped, wait, |stopped| !*stopped) {
            Ok((stopped, _)) => !*stopped,
            Err(_) => false,
        }
    }
}

fn sha256(id: FileId, mut file: File, budget: &mut Budget) -> Option<Sha256> {
    if id.size > MAX_SIZE {
        return None;
    }
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut buffer = vec![0; 256 << 10];
    let mut left = MAX_SIZE;
    loop {
        let read = file.read(&mut buffer).ok()?;
        if read == 0 {
            break;
        }
        context.update(buffer.get(..read)?);
        left = left.checked_sub(read as u64)?;
        if !budget.take(read as u64) {
            return None;
        }
    }
    // Written to while it was read: the hash would be of nothing that ever ran.
    let after = from_metadata(&file.metadata().ok()?);
    if after.size != id.size || (id.ctime != 0 && after.ctime != id.ctime) {
        return None;
    }
    context.finish().as_ref().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(hasher: &mut Hasher) -> Hashed {
        loop {
            if let Some(hashed) = hasher.finished().pop() {
                return hashed;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_running_program_is_hashed_once_within_a_small_budget() {
        let mut hasher = Hasher::start(NonZeroUsize::new(4).unwrap(), 64 << 20).unwrap();
        let mut child = std::process::Command::new("/bin/cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let exe = format!("/proc/{}/exe", child.id());
        let file = super::super::snapshot::file_id(&exe).unwrap();
        let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &std::fs::read(&exe).unwrap());
        assert_eq!(hasher.ask(child.id(), [], &file, "/bin/cat"), Answer::Pending);
        let hashed = finish(&mut hasher);
        assert_eq!(hashed.sha256.unwrap(), expected.as_ref());
        assert_eq!(hasher.ask(child.id(), [], &file, "/bin/cat"), Answer::Is(hashed.sha256.unwrap()));
        let other = FileId { inode: file.inode + 1, ..file };
        assert_eq!(hasher.ask(child.id(), [], &other, "/bin/cat"), Answer::Unknown, "another file is not read for it");
        child.kill().unwrap();
        child.wait().unwrap();
        // Gone, and not known: another process still shows the file.
        let mut hasher = Hasher::start(NonZeroUsize::new(4).unwrap(), 64 << 20).unwrap();
        assert_eq!(hasher.ask(child.id(), [], &file, "/bin/cat"), Answer::Unknown);
        assert_eq!(hasher.ask(child.id(), [std::process::id()], &other, "/bin/cat"), Answer::Unknown);
        assert_eq!(hasher.ask(child.id(), [std::process::id()], &file, "/bin/cat"), Answer::Pending);
        assert_eq!(finish(&mut hasher).sha256.unwrap(), expected.as_ref());
    }

    #[test]
    fn the_cache_stays_within_its_size() {
        let mut hasher = Hasher::replay(NonZeroUsize::new(4).unwrap());
        for inode in 0..10 {
            hasher.learn(&FileId { inode, ..FileId::default() }, [0; 32]);
        }
        assert_eq!((hasher.cache.len(), hasher.evictions()), (4, 6));
    }
}
