//! Token buckets by address, and connection counts by address; both bounded.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What the gateway bears.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address (an IPv6 /64 counts as one).
    pub connections_per_address: usize,
    /// Requests per second from one address, on average.
    pub requests_per_second: f64,
    /// Requests from one address at once.
    pub burst: f64,
    /// Requests per second of one session, on average; a tenfold burst is allowed.
    pub session_requests_per_second: f64,
    /// Sessions at once.
    pub sessions: usize,
}

impl Default for Limits {
    /// Room for 10,000 agents on one gateway. Behind a load balancer without proxy protocol all
    /// agents share its addresses: raise the limits per address then.
    fn default() -> Self {
        Self {
            connections: 16_384,
            connections_per_address: 64,
            requests_per_second: 20.0,
            burst: 100.0,
            session_requests_per_second: 25.0,
            sessions: 50_000,
        }
    }
}

/// One token bucket.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn full(burst: f64, now: Instant) -> Self {
        Self { tokens: burst, at: now }
    }

    /// Takes a token. False where there is none.
    pub fn take(&mut self, rate: f64, burst: f64, now: Instant) -> bool {
        self.tokens = (self.tokens + now.saturating_duration_since(self.at).as_secs_f64() * rate).min(burst);
        self.at = now;
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
        }
        allowed
    }
}

/// What counts as one address: an IPv6 /64 is one customer's.
pub fn address_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// Token buckets by address, of which at most `capacity` are kept.
#[derive(Debug)]
pub struct Buckets {
    rate: f64,
    burst: f64,
    capacity: usize,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

/// What a bucket said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Go on.
    Allowed,
    /// Go on; another address's bucket was forgotten for this one.
    AllowedEvicting,
    /// Too often.
    Refused,
}

impl Buckets {
    /// Buckets of `burst` tokens, refilled at `rate` a second.
    pub fn new(rate: f64, burst: f64, capacity: usize) -> Self {
        Self { rate, burst, capacity, buckets: Mutex::default() }
    }

    /// Takes a token of `address`.
    pub fn take(&self, address: IpAddr, now: Instant) -> Take {
        let key = address_key(address);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut evicted = false;
        if !buckets.contains_key(&key) && buckets.len() >= self.capacity {
            let refill = self.burst / self.rate;
            buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at).as_secs_f64() < refill);
            if buckets.len() >= self.capacity
                && let Some(any) = buckets.keys().next().copied()
            {
                buckets.remove(&any);
                evicted = true;
            }
        }
        let bucket = buckets.entry(key).or_insert_with(|| Bucket::full(self.burst, now));
        match (bucket.take(self.rate, self.burst, now), evicted) {
            (false, _) => Take::Refused,
            (true, false) => Take::Allowed,
            (true, true) => Take::AllowedEvicting,
        }
    }
}

/// Counts open connections, in all and by address.
#[derive(Clone, Debug)]
pub struct Connections {
    all: Arc<Semaphore>,
    per_address: usize,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One open connection; counted until dropped.
#[derive(Debug)]
pub struct Connection {
    key: IpAddr,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Connections {
    /// At most `all` at once, and `per_address` from one address.
    pub fn new(all: usize, per_address: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), per_address, open: Arc::default() }
    }

    /// Room for one connection that nobody is named for yet.
    pub fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.all.clone().try_acquire_owned().ok()
    }

    /// Counts a connection of `address`. `None` where the address has too many.
    pub fn open(&self, address: IpAddr, permit: OwnedSemaphorePermit) -> Option<Connection> {
        let key = address_key(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(key).or_default();
        if *count >= self.per_address {
            return None;
        }
        *count += 1;
        drop(open);
        Some(Connection { key, open: self.open.clone(), _permit: permit })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_allows_its_burst_then_its_rate_and_old_ones_make_room() {
        let (buckets, t0) = (Buckets::new(1.0, 3.0, 4), Instant::now());
        let one: IpAddr = "10.0.0.1".parse().unwrap();
        let taken = (0..5).filter(|_| buckets.take(one, t0) == Take::Allowed).count();
        assert_eq!(taken, 3);
        assert_eq!(buckets.take(one, t0 + Duration::from_secs(1)), Take::Allowed);
        for last in 2..=4 {
            assert_eq!(buckets.take(format!("10.0.0.{last}").parse().unwrap(), t0), Take::Allowed);
        }
        assert_eq!(buckets.take("10.0.0.5".parse().unwrap(), t0), Take::AllowedEvicting, "full");
        let later = t0 + Duration::from_secs(9);
        assert_eq!(buckets.take("10.0.0.6".parse().unwrap(), later), Take::Allowed, "idle ones went");
        let (a, b): (IpAddr, IpAddr) = ("2001:db8::1".parse().unwrap(), "2001:db8::ffff".parse().unwrap());
        assert_eq!(address_key(a), address_key(b));
    }

    #[test]
    fn connections_are_counted_until_they_close() {
        let (connections, address) = (Connections::new(3, 2), IpAddr::from([10, 0, 0, 1]));
        let first = connections.open(address, connections.permit().unwrap()).unwrap();
        let _second = connections.open(address, connections.permit().unwrap()).unwrap();
        assert!(connections.open(address, connections.permit().unwrap()).is_none(), "two an address");
        let _other = connections.open([10, 0, 0, 2].into(), connections.permit().unwrap()).unwrap();
        assert!(connections.permit().is_none(), "three in all");
        drop(first);
        assert!(connections.open(address, connections.permit().unwrap()).is_some());
    }
}
