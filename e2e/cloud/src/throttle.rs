//! Token buckets per account, Region and group of operations.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::clock::seconds_between;
use crate::effect::Place;

/// All buckets. Bounded by accounts × Regions × groups.
#[derive(Debug, Default)]
pub struct Throttle {
    buckets: HashMap<(Place, &'static str), Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Timestamp,
}

impl Throttle {
    /// Takes one token; false when the bucket is empty.
    pub fn take(&mut self, place: &Place, group: &'static str, burst: f64, refill: f64, now: Timestamp) -> bool {
        let bucket = self.buckets.entry((place.clone(), group)).or_insert(Bucket { tokens: burst, at: now });
        bucket.tokens = (bucket.tokens + seconds_between(bucket.at, now) * refill).min(burst);
        bucket.at = now;
        let enough = bucket.tokens >= 1.0;
        if enough {
            bucket.tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::later;
    use std::time::Duration;

    #[test]
    fn burst_then_refill_per_place() {
        let mut throttle = Throttle::default();
        let place = |account: &str| Place { account: account.into(), region: "eu-west-1".into() };
        let start = Timestamp::UNIX_EPOCH;
        let granted = (0..30).filter(|_| throttle.take(&place("1"), "g", 20.0, 1.0, start)).count();
        assert_eq!(granted, 20);
        assert!(throttle.take(&place("2"), "g", 20.0, 1.0, start));
        let soon = later(start, Duration::from_secs(3));
        assert_eq!((0..30).filter(|_| throttle.take(&place("1"), "g", 20.0, 1.0, soon)).count(), 3);
    }
}
