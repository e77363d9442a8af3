//! How busy the network namespace is: a packet socket makes each packet dearer, by some 0.1 µs (docs/benchmarks.md).

use std::time::{Duration, Instant};

/// How often the counters are looked at.
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
    pub datagrams: Datagrams,
    /// Connections that were asked for from here.
    pub opened: u64,
}

/// UDP datagrams that came in.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams {
    /// By IPv4.
    pub four: u64,
    /// By IPv6; `None` where that was not read.
    pub six: Option<u64>,
}

impl Counts {
    /// Reads them; `None` where /proc does not have them. Those of IPv6, with their 90 lines, only where it matters.
    fn read(six: bool) -> Option<Self> {
        let text = std::fs::read_to_string("/proc/net/snmp").ok()?;
        let of = |protocol, name| field(&text, protocol, name);
        let datagrams = |name| of("Udp: ", name);
        let four = ["InDatagrams", "NoPorts", "InErrors"]
            .iter()
            .try_fold(0_u64, |sum, name| Some(sum.wrapping_add(datagrams(name)?)))?;
        let six = six.then(procfs::net::snmp6).and_then(Result::ok);
        let six = six.map(|it| it.udp_in_datagrams.wrapping_add(it.udp_no_ports).wrapping_add(it.udp_in_errors));
        Some(Self {
            segments: of("Tcp: ", "InSegs")?,
            datagrams: Datagrams { four, six },
            opened: of("Tcp: ", "ActiveOpens")?,
        })
    }
}

/// One counter of /proc/net/snmp, where a line of names stands above a line of values for each protocol. Not by the
/// procfs crate: it makes a text of each of the hundred counters, at a tenth of a millisecond, four times a second.
fn field(text: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol));
    let at = lines.next()?.split(' ').position(|it| it == name)?;
    lines.next()?.split(' ').nth(at)?.parse().ok()
}

/// Whether packets are too many to be looked at one by one.
#[derive(Debug)]
pub struct Load {
    last: Option<(Instant, Counts)>,
    looked: Instant,
    /// Whether segments were many at the last look.
    many: bool,
    busy: bool,
    since: Instant,
}

impl Load {
    /// Nothing is known yet.
    pub fn new() -> Self {
        let now = Instant::now();
        Self { last: None, looked: now, many: false, busy: false, since: now }
    }

    /// Whether it is busy, at the last look.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Looks, where it is time to. Where nothing can be read it is not busy.
    pub fn look(&mut self) -> Option<Counts> {
        let now = Instant::now();
        if now.duration_since(self.looked) < LOOK {
            return None;
        }
        self.looked = now;
        match Counts::read(self.many) {
            Some(counts) => {
                self.judge(now, counts);
                Some(counts)
            }
            None => {
                self.busy = false;
                self.last.map(|(_, counts)| counts)
            }
        }
    }

    fn judge(&mut self, now: Instant, counts: Counts) {
        let Some((then, before)) = self.last.replace((now, counts)) else { return };
        let milliseconds = u64::try_from(now.duration_since(then).as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = |now: u64, then: u64| now.saturating_sub(then).saturating_mul(1000) / milliseconds;
        let segments = rate(counts.segments, before.segments);
        let six = counts.datagrams.six.zip(before.datagrams.six).map_or(0, |(now, then)| rate(now, then));
        let datagrams = rate(counts.datagrams.four, before.datagrams.four) + six;
        self.many = segments >= QUIET;
        if segments >= if self.busy { QUIET } else { BUSY } {
            (self.busy, self.since) = (true, now);
        }
        // The other way to see datagrams copies each before it is asked whether it is DNS.
        if now.duration_since(self.since) >= CALM || (self.many && datagrams >= segments / 4) {
            self.busy = false;
        }
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
            // Half of them by IPv6, which is read only where segments are many.
            let six = load.many.then_some(datagrams / 2);
            load.judge(now, Counts { segments, datagrams: Datagrams { four: datagrams / 2, six }, opened: 0 });
            load.is_busy()
        };
        assert!(!pass(&mut load, 500_000, 0), "the first look has nothing to compare with");
        assert!(!pass(&mut load, BUSY - 1, 0));
        assert!(!pass(&mut load, BUSY, BUSY), "datagrams would be dearer that way");
        assert!(!pass(&mut load, 0, 0));
        assert!(pass(&mut load, BUSY, BUSY / 3), "those of IPv6 are not read");
        assert!(pass(&mut load, BUSY, BUSY / 3), "… have nothing to compare with");
        assert!(!pass(&mut load, BUSY, BUSY / 3));
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
    fn counters_are_found_by_name() {
        let text =
            "Tcp: InErrs InSegs\nTcp: 1 18446744073709551615\nUdp: InSegs\nUdp: x\nUdpLite: InSegs\nUdpLite: 3\n";
        assert_eq!(field(text, "Tcp: ", "InSegs"), Some(u64::MAX));
        assert_eq!(field(text, "UdpLite: ", "InSegs"), Some(3));
        for (protocol, name) in [("Tcp: ", "OutSegs"), ("Udp: ", "InSegs"), ("Icmp: ", "InSegs")] {
            assert_eq!(field(text, protocol, name), None);
        }
    }

    #[test]
    fn this_namespace_has_counters_and_traffic_moves_them() {
        let before = Counts::read(true).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        drop(std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let socket = std::net::UdpSocket::bind(any).unwrap();
            socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            socket.recv(&mut [0]).unwrap();
        }
        let after = Counts::read(true).unwrap();
        assert!(after.opened > before.opened && after.segments > before.segments, "{before:?} {after:?}");
        assert!(after.datagrams.four > before.datagrams.four, "{before:?} {after:?}");
        assert!(after.datagrams.six > before.datagrams.six, "{before:?} {after:?}");
    }
}
