//! How busy the network namespace is: a packet socket makes each packet dearer, by some 0.1 µs (docs/benchmarks.md).

use std::time::{Duration, Instant};

/// How often the counters are looked at. A look costs about 40 µs.
const LOOK: Duration = Duration::from_millis(250);
/// TCP segments that come in in a second, from which on packets cost more than half a percent of a core.
const BUSY: u64 = 40_000;
/// … and below which they are no matter any more.
const QUIET: u64 = BUSY / 2;
/// How long it must have been quiet.
const CALM: Duration = Duration::from_secs(5);

/// Counters of the network namespace since it was made.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// TCP segments that came in.
    pub segments: u64,
    /// UDP datagrams that came in.
    pub datagrams: u64,
    /// Connections that were asked for from here.
    pub opened: u64,
}

impl Counts {
    /// Reads them; `None` where /proc does not have them.
    fn read() -> Option<Self> {
        let counts = procfs::net::snmp().ok()?;
        Some(Self { segments: counts.tcp_in_segs, datagrams: counts.udp_in_datagrams, opened: counts.tcp_active_opens })
    }
}

/// Whether packets are too many to be looked at one by one.
#[derive(Debug)]
pub struct Load {
    last: Option<(Instant, Counts)>,
    looked: Instant,
    busy: bool,
    since: Instant,
}

impl Load {
    /// Nothing is known yet.
    pub fn new() -> Self {
        let now = Instant::now();
        Self { last: None, looked: now, busy: false, since: now }
    }

    /// Whether it is busy, at the last look.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Looks, where it is time to.
    pub fn look(&mut self) -> Option<Counts> {
        let now = Instant::now();
        if now.duration_since(self.looked) < LOOK {
            return None;
        }
        self.looked = now;
        let counts = Counts::read()?;
        self.judge(now, counts);
        Some(counts)
    }

    fn judge(&mut self, now: Instant, counts: Counts) {
        let Some((then, before)) = self.last.replace((now, counts)) else { return };
        let milliseconds = u64::try_from(now.duration_since(then).as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = |now: u64, then: u64| now.saturating_sub(then).saturating_mul(1000) / milliseconds;
        let segments = rate(counts.segments, before.segments);
        // The other way to see datagrams copies each before it is asked whether it is DNS.
        let few_datagrams = rate(counts.datagrams, before.datagrams) < segments / 4;
        if self.busy && segments >= QUIET && few_datagrams {
            self.since = now;
        }
        let busy = if self.busy { now.duration_since(self.since) < CALM } else { segments >= BUSY && few_datagrams };
        if busy && !self.busy {
            self.since = now;
        }
        self.busy = busy;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_segments_make_it_busy_until_they_have_been_few_for_a_while() {
        let mut load = Load::new();
        let mut now = Instant::now();
        let (mut segments, mut datagrams) = (1_000_000, 0);
        let mut pass = |load: &mut Load, more: u64, others: u64| {
            now += Duration::from_secs(1);
            segments += more;
            datagrams += others;
            load.judge(now, Counts { segments, datagrams, opened: 0 });
            load.is_busy()
        };
        assert!(!pass(&mut load, 500_000, 0), "the first look has nothing to compare with");
        assert!(!pass(&mut load, BUSY - 1, 0));
        assert!(!pass(&mut load, BUSY, BUSY), "datagrams would be dearer that way");
        assert!(pass(&mut load, BUSY, 10));
        assert!(pass(&mut load, QUIET, 0));
        for _ in 1..CALM.as_secs() {
            assert!(pass(&mut load, QUIET - 1, 0));
        }
        assert!(pass(&mut load, QUIET, 0), "not quiet for long enough");
        for _ in 1..CALM.as_secs() {
            assert!(pass(&mut load, 0, 0));
        }
        assert!(!pass(&mut load, 0, 0));
    }

    #[test]
    fn this_namespace_has_counters_and_a_connection_moves_them() {
        let before = Counts::read().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        drop(std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let after = Counts::read().unwrap();
        assert!(after.opened > before.opened && after.segments > before.segments, "{before:?} {after:?}");
    }
}
