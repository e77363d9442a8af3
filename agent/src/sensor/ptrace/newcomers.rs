//! Processes that no tracee forked: ECS Exec, containers that start later.
//!
//! `/proc/sys/kernel/ns_last_pid` is the id that was given last in this PID namespace. Where it
//! moved, the ids in between are the newcomers (and the tracees' own children, which the table
//! knows). One read costs 1.3 µs, so it is made at every tick.

use super::sys::Tid;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Ids that are looked at one by one; beyond, a whole scan of `/proc` is cheaper.
const STEP: u32 = 256;
/// How often `/proc` is scanned where `ns_last_pid` cannot be read.
const BLIND_SCAN: Duration = Duration::from_millis(50);
/// How often `/proc` is scanned anyway: finds what chose its own id (clone3 `set_tid`) or was
/// refused before.
const RECONCILE: Duration = Duration::from_secs(2);

/// Where to look now.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// At these ids: given since the last call, and those to be looked at a second time.
    At { new: Vec<Tid>, again: Vec<Tid> },
    /// At everything in `/proc`.
    Everywhere,
}

/// Watches for newcomers.
pub struct Newcomers {
    file: Option<File>,
    last: Tid,
    again: Vec<Tid>,
    /// Children of tracees since the last call: most are gone by the next, and need not be looked for.
    adopted: Vec<Tid>,
    scanned: Instant,
}

impl Newcomers {
    /// Begins to watch.
    pub fn new() -> Self {
        let mut newcomers = Self {
            file: File::open("/proc/sys/kernel/ns_last_pid").ok(),
            last: 0,
            again: Vec::new(),
            adopted: Vec::new(),
            scanned: Instant::now(),
        };
        newcomers.last = newcomers.last_pid().unwrap_or(0);
        newcomers
    }

    /// Whether new ids are seen at once, and not only by scanning.
    pub fn exact(&self) -> bool {
        self.file.is_some()
    }

    fn last_pid(&mut self) -> Option<Tid> {
        let mut text = [0_u8; 16];
        let read = self.file.as_ref()?.read_at(&mut text, 0);
        let number =
            read.ok().and_then(|count| std::str::from_utf8(text.get(..count)?).ok()?.trim().parse::<Tid>().ok());
        if number.is_none() {
            self.file = None;
        }
        number
    }

    /// Where newcomers may be since the last call.
    pub fn look(&mut self, now: Instant) -> Look {
        let last = self.last_pid();
        let pause = if last.is_some() { RECONCILE } else { BLIND_SCAN };
        let from = std::mem::replace(&mut self.last, last.unwrap_or(0));
        let again = std::mem::take(&mut self.again);
        let adopted = std::mem::take(&mut self.adopted);
        let new = between(from, self.last);
        let new = new.map(|ids| ids.into_iter().filter(|tid| !adopted.contains(tid)).collect());
        match new {
            Some(new) if now.duration_since(self.scanned) < pause => Look::At { new, again },
            _ => {
                self.scanned = now;
                Look::Everywhere
            }
        }
    }

    /// A new id is a tracee's child: it is no newcomer.
    pub fn adopted(&mut self, tid: Tid) {
        if self.adopted.len() < STEP as usize {
            self.adopted.push(tid);
        }
    }

    /// A new id's process is not in `/proc`: look again at the next tick, in case it is not there
    /// *yet*. Once only: most are there no longer.
    pub fn look_again(&mut self, tid: Tid) {
        if self.again.len() < STEP as usize {
            self.again.push(tid);
        }
    }
}

/// Ids that were given after `from`, up to `to`; `None` where they are many, or wrapped around at
/// pid_max.
fn between(from: Tid, to: Tid) -> Option<Vec<Tid>> {
    let count = to.checked_sub(from)?;
    (count <= STEP).then(|| (from + 1..=to).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_steps_are_looked_at_one_by_one_and_large_or_wrapped_ones_everywhere() {
        assert_eq!(between(5, 5), Some(vec![]));
        assert_eq!(between(5, 8), Some(vec![6, 7, 8]));
        assert_eq!(between(5, 5 + STEP + 1), None);
        assert_eq!(between(30_000, 301), None);
    }

    #[test]
    fn a_new_process_moves_the_last_id() {
        let mut newcomers = Newcomers::new();
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let seen = match newcomers.look(Instant::now()) {
            Look::At { new, .. } => new.contains(&child.id()),
            Look::Everywhere => true,
        };
        child.wait().unwrap();
        assert!(seen);
    }

    #[test]
    fn a_tracees_child_is_no_newcomer() {
        let mut newcomers = Newcomers::new();
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        newcomers.adopted(child.id());
        let seen = matches!(newcomers.look(Instant::now()), Look::At { new, .. } if new.contains(&child.id()));
        child.wait().unwrap();
        assert!(!seen && newcomers.adopted.is_empty());
        (0..10_000).for_each(|tid| newcomers.adopted(tid));
        assert_eq!(newcomers.adopted.len(), STEP as usize);
    }

    #[test]
    fn an_id_is_looked_at_again_once() {
        let mut newcomers = Newcomers::new();
        newcomers.look_again(7);
        let again = |look: Look| if let Look::At { again, .. } = look { again } else { vec![] };
        assert_eq!(again(newcomers.look(Instant::now())), [7]);
        assert!(again(newcomers.look(Instant::now())).is_empty());
    }

    #[test]
    fn ids_to_look_at_again_are_bounded() {
        let mut newcomers = Newcomers::new();
        for tid in 0..10_000 {
            newcomers.look_again(tid);
        }
        assert_eq!(newcomers.again.len(), STEP as usize);
    }
}
