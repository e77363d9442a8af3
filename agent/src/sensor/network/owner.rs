//! Which process holds a socket: by its inode in `/proc/*/fd`.
//!
//! A search reads every descriptor of every process of the socket's user: milliseconds. So what a
//! search finds is kept (bounded), those who had sockets lately are asked first, and searches get
//! a share of the time; a socket that does not get one stays unnamed, and is counted.

use crate::event::ProcessKey;
use crate::sensor::proc;
use lru::LruCache;
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Inodes that are remembered; about 64 bytes each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Processes that are asked before all others.
const LATELY: usize = 16;
/// Time for whole searches in each second: 5 % of a core.
const SHARE: Duration = Duration::from_millis(50);
/// What [`SHARE`] is of.
const SECOND: Duration = Duration::from_secs(1);

/// Finds owners.
pub struct Owners {
    known: LruCache<u32, ProcessKey>,
    lately: VecDeque<u32>,
    window: Instant,
    spent: Duration,
    /// Sockets that were not looked for because the time was used up.
    pub skipped: u64,
    /// Inodes that were forgotten because the memory was full.
    pub evictions: u64,
}

impl Owners {
    /// Knows nobody yet.
    pub fn new() -> Self {
        Self {
            known: LruCache::new(REMEMBERED),
            lately: VecDeque::new(),
            window: Instant::now(),
            spent: Duration::ZERO,
            skipped: 0,
            evictions: 0,
        }
    }

    /// The process that holds the socket, if it can be found in time. Nobody holds inode 0.
    pub fn find(&mut self, inode: u32, uid: u32) -> Option<ProcessKey> {
        if inode == 0 {
            return None;
        }
        if let Some(key) = self.known.get(&inode).copied()
            && proc::key(key.pid) == Some(key)
        {
            return Some(key);
        }
        let begun = Instant::now();
        if begun.duration_since(self.window) >= SECOND {
            self.window = begun;
            self.spent = Duration::ZERO;
        }
        if self.spent >= SHARE {
            self.skipped += 1;
            return None;
        }
        let found = self.look(inode, uid);
        self.spent += begun.elapsed();
        found
    }

    fn look(&mut self, inode: u32, uid: u32) -> Option<ProcessKey> {
        if let Some(key) = self.lately.clone().into_iter().find_map(|pid| self.search(pid, inode)) {
            return Some(key);
        }
        // A process may hold another user's socket, but first its own user's are asked.
        let (same, other): (Vec<u32>, Vec<u32>) = proc::processes()
            .into_iter()
            .partition(|pid| std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|file| file.uid() == uid));
        same.into_iter().chain(other).find_map(|pid| self.search(pid, inode))
    }

    /// Remembers every socket of a process; its key if it holds this one.
    fn search(&mut self, pid: u32, inode: u32) -> Option<ProcessKey> {
        let mut key = None;
        let mut found = false;
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            let number =
                target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            let Some(number) = number else { continue };
            if key.is_none() {
                key = Some(proc::key(pid)?);
            }
            if let Some(key) = key {
                self.remember(number, key);
            }
            found |= number == inode;
        }
        if !found {
            return None;
        }
        self.lately.retain(|other| *other != pid);
        self.lately.push_front(pid);
        self.lately.truncate(LATELY);
        key
    }

    fn remember(&mut self, inode: u32, key: ProcessKey) {
        if self.known.len() == REMEMBERED.get() && !self.known.contains(&inode) {
            self.evictions += 1;
        }
        self.known.put(inode, key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_socket_is_found_and_remembered() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&socket))).unwrap();
        let inode = link.display().to_string().trim_start_matches("socket:[").trim_end_matches(']').parse().unwrap();
        let mut owners = Owners::new();
        let key = owners.find(inode, 0).unwrap();
        assert_eq!(key.pid, std::process::id());
        owners.spent = SHARE;
        owners.lately.clear();
        assert_eq!(owners.find(inode, 0), Some(key), "from memory, without a search");
    }

    #[test]
    fn a_search_that_gets_no_time_is_counted() {
        let mut owners = Owners::new();
        owners.spent = SHARE;
        assert_eq!(owners.find(1, 0), None);
        assert_eq!(owners.skipped, 1);
    }

    #[test]
    fn the_memory_is_bounded_and_counts_what_it_forgets() {
        let mut owners = Owners::new();
        for inode in 0..REMEMBERED.get() as u32 + 10 {
            owners.remember(inode, ProcessKey::default());
        }
        assert_eq!((owners.known.len(), owners.evictions), (REMEMBERED.get(), 10));
    }
}
