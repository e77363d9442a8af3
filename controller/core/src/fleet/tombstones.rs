//! Stopped tasks, remembered for an hour so that a late event cannot bring one back to life.

use super::{Str, TOMBSTONE_AGE};
use jiff::Timestamp;
use std::collections::{HashMap, VecDeque};

#[derive(Debug, Default)]
pub(super) struct Tombstones {
    stopped: HashMap<Str, Timestamp>,
    order: VecDeque<(Timestamp, Str)>,
}

impl Tombstones {
    /// When the task was found stopped.
    pub fn get(&self, task: &str) -> Option<Timestamp> {
        self.stopped.get(task).copied()
    }

    /// Remembers a stopped task; answers how many old ones had to go for it.
    pub fn put(&mut self, task: Str, now: Timestamp, limit: usize) -> u64 {
        let mut evicted = 0;
        while self.stopped.len() >= limit.max(1) {
            let Some((at, oldest)) = self.order.pop_front() else { break };
            if self.stopped.get(&oldest) == Some(&at) {
                self.stopped.remove(&oldest);
                evicted += 1;
            }
        }
        if self.stopped.insert(task.clone(), now).is_none() {
            self.order.push_back((now, task));
        }
        evicted
    }

    /// Takes a tombstone away: the task lives after all.
    pub fn lift(&mut self, task: &str) {
        self.stopped.remove(task);
    }

    pub fn expire(&mut self, now: Timestamp) {
        while let Some((at, _)) = self.order.front() {
            if now.duration_since(*at) < TOMBSTONE_AGE {
                break;
            }
            if let Some((at, task)) = self.order.pop_front()
                // It may have been lifted and put anew since.
                && self.stopped.get(&task) == Some(&at)
            {
                self.stopped.remove(&task);
            }
        }
    }
}
