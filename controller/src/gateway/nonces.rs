//! Nonces: 60 seconds, good once, and never more than a fixed number of them.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use jiff::{SignedDuration, Timestamp};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// How long a nonce is good.
pub const NONCE_SECONDS: i64 = 60;

/// The nonces that are out.
#[derive(Debug)]
pub struct Nonces {
    capacity: usize,
    state: Mutex<Out>,
}

#[derive(Debug, Default)]
struct Out {
    expires: HashMap<String, Timestamp>,
    /// In the order in which they were given out, which is that of their expiry.
    order: VecDeque<String>,
}

impl Nonces {
    /// At most `capacity` nonces are out at once; beyond, the oldest one is forgotten.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::default() }
    }

    /// Gives out a nonce. The number says how many good ones had to be forgotten for it.
    pub fn give(&self, now: Timestamp) -> (String, u64) {
        let nonce = BASE64.encode(rand::random::<[u8; 32]>());
        let mut out = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut evicted = 0;
        while let Some(first) = out.order.front().cloned() {
            let good = out.expires.get(&first).is_some_and(|expires| *expires > now);
            if good && out.order.len() < self.capacity {
                break;
            }
            out.order.pop_front();
            out.expires.remove(&first);
            evicted += u64::from(good);
        }
        out.order.push_back(nonce.clone());
        out.expires.insert(nonce.clone(), now + SignedDuration::from_secs(NONCE_SECONDS));
        (nonce, evicted)
    }

    /// Uses a nonce up. True where it was good.
    pub fn take(&self, nonce: &str, now: Timestamp) -> bool {
        let mut out = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        out.expires.remove(nonce).is_some_and(|expires| expires > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_once_for_a_minute_and_only_so_many_are_out() {
        let (nonces, t0) = (Nonces::new(3), Timestamp::from_second(1000).unwrap());
        let (first, _) = nonces.give(t0);
        assert!(nonces.take(&first, t0) && !nonces.take(&first, t0));
        let (late, _) = nonces.give(t0);
        assert!(!nonces.take(&late, t0 + SignedDuration::from_secs(NONCE_SECONDS)));
        let full = Nonces::new(3);
        let all: Vec<_> = (0..10).map(|_| full.give(t0)).collect();
        assert_eq!(all.iter().map(|(_, evicted)| evicted).sum::<u64>(), 7);
        assert_eq!(all.iter().filter(|(nonce, _)| full.take(nonce, t0)).count(), 3);
        assert!(!full.take("garbage", t0));
    }
}
