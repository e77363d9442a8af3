//! User names as the container's own /etc/passwd gives them. The file is the container's, so it
//! is hostile: read bounded, never followed outside the container's root, never trusted for more
//! than a label.

use lru::LruCache;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::Path;

/// Bytes of a passwd file that are read.
const MAX_BYTES: u64 = 256 << 10;
/// Names kept per container.
const MAX_NAMES: usize = 1_024;
/// Bytes of a name (useradd allows 32).
const MAX_NAME: usize = 32;

/// Names per mount namespace.
#[derive(Debug)]
pub struct Users {
    cache: LruCache<u64, HashMap<u32, String>>,
    /// Containers pushed out because the cache was full.
    pub evictions: u64,
}

impl Users {
    /// An empty cache for `capacity` containers.
    pub fn new(capacity: NonZeroUsize) -> Self {
        Self { cache: LruCache::new(capacity), evictions: 0 }
    }

    /// The name of `uid` where these processes live, all in one container; the first that still lives is
    /// asked. Read once per mount namespace.
    pub fn name(&mut self, mount_namespace: u64, pids: impl IntoIterator<Item = u32>, uid: u32) -> Option<String> {
        if mount_namespace == 0 {
            return None;
        }
        if !self.cache.contains(&mount_namespace) {
            // Where all are gone nothing is remembered: the next process of the container is asked.
            let names = pids.into_iter().find_map(names_of)?;
            if self.cache.len() == self.cache.cap().get() {
                self.evictions += 1;
            }
            self.cache.put(mount_namespace, names);
        }
        self.cache.get(&mount_namespace)?.get(&uid).cloned()
    }
}

/// The names where a process lives; `None` where it is gone.
fn names_of(pid: u32) -> Option<HashMap<u32, String>> {
    match open_in_root(pid, "etc/passwd") {
        Some(file) => Some(parse(file)),
        // A container without the file has no names.
        None => std::fs::metadata(format!("/proc/{pid}/root")).is_ok().then(HashMap::new),
    }
}

/// Opens a path inside the root of a process without leaving that root by a symbolic link, and
/// only if it is a plain file.
pub fn open_in_root(pid: u32, path: &str) -> Option<File> {
    use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
    let root = File::open(format!("/proc/{pid}/root")).ok()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let relative = path.trim_start_matches('/');
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(openat2(&root, Path::new(relative), flags, Mode::empty(), resolve).ok()?);
    file.metadata().ok()?.is_file().then_some(file)
}

fn parse(file: impl Read) -> HashMap<u32, String> {
    let mut bytes = Vec::new();
    if file.take(MAX_BYTES).read_to_end(&mut bytes).is_err() {
        return HashMap::new();
    }
    let mut names = HashMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b':');
        let (Some(name), Some(_), Some(uid)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (Ok(name), Ok(uid)) = (std::str::from_utf8(name), std::str::from_utf8(uid)) else { continue };
        let Ok(uid) = uid.parse() else { continue };
        if !name.is_empty() && name.len() <= MAX_NAME && names.len() < MAX_NAMES {
            names.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_file_gives_only_what_is_well_formed() {
        let text = format!(
            "root:x:0:0::/:/bin/sh\nevil:x:0:0::/:\nbad\n:x:5:\nweb:x:33:33\n{}:x:7:7\nneg:x:-1:0\n\u{0}\u{1}:x:9",
            "n".repeat(100)
        );
        let names = parse(text.as_bytes());
        assert_eq!(names.get(&0).map(String::as_str), Some("root"), "the first one wins, as getpwuid has it");
        assert_eq!(names.get(&33).map(String::as_str), Some("web"));
        assert!(!names.contains_key(&7) && !names.contains_key(&5));
        let many: String = (0..5_000).map(|n| format!("u{n}:x:{n}:0\n")).collect();
        assert_eq!(parse(many.as_bytes()).len(), MAX_NAMES);
    }

    #[test]
    fn this_process_s_own_root_is_read_and_the_cache_stays_bounded() {
        let mut users = Users::new(NonZeroUsize::new(2).unwrap());
        assert_eq!(users.name(1, [std::process::id()], 0).as_deref(), Some("root"));
        for namespace in 2..10 {
            users.name(namespace, [std::process::id()], 0);
        }
        assert_eq!((users.cache.len(), users.evictions), (2, 7));
        assert_eq!(users.name(0, [std::process::id()], 0), None);
    }

    #[test]
    fn a_process_that_is_gone_leaves_the_question_to_the_next() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        let mut users = Users::new(NonZeroUsize::new(2).unwrap());
        assert_eq!(users.name(1, [child.id()], 0), None);
        assert_eq!(users.name(1, [child.id(), std::process::id()], 0).as_deref(), Some("root"));
        assert_eq!(users.name(1, [child.id()], 0).as_deref(), Some("root"), "remembered");
    }
}
