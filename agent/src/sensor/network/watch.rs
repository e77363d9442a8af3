//! The sensor's thread: packets become events, and a list of all sockets fills the gaps.

use super::Report;
use super::diag::{Diag, Found};
use super::filter::SNAP;
use super::load::{Counts, Load};
use super::owner::Owners;
use super::packet::{Kind, Packet};
use super::taps::{Tap, Taps};
use crate::event::{Connect, DnsPacket, Event, EventKind, ProcessKey, Transport};
use crate::sensor::outbox::{Outbox, boottime};
use lru::LruCache;
use netlink_packet_sock_diag::inet::StateFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Connections that are remembered as told, about 100 bytes each.
const TOLD: NonZeroUsize = NonZeroUsize::new(8192).unwrap();
/// A second SYN of the same two ends within this time is a repetition: Linux repeats after 1, 3, 7 s.
const REPETITION: Duration = Duration::from_secs(10);
/// How often all sockets are listed.
const RECONCILE: Duration = Duration::from_secs(5);
/// How much of a core listing sockets may take where it must tell what no packet tells, as its reciprocal.
const LISTING_SHARE: u32 = 50;
/// How soon a stop is obeyed.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
/// Packets between two looks at the clock.
const ROUND: usize = 256;
/// More packets than the buffer of a socket has room for.
const FULL: usize = 8192;

/// Two ends, this side first.
type Ends = (SocketAddr, SocketAddr);

pub struct Watch {
    taps: Taps,
    diag: Diag,
    owners: Owners,
    outbox: Outbox,
    report: Arc<Report>,
    stop: Arc<AtomicBool>,
    told: LruCache<Ends, Instant>,
    forgotten: u64,
    listening: HashSet<(bool, SocketAddr)>,
    load: Load,
    /// What was known when packets were spared.
    spared: Option<Spared>,
    /// Connects that were told.
    connects: u64,
    /// Ports that the kernel gives to those who ask for none.
    ephemeral: (u16, u16),
}

impl Watch {
    pub fn new(taps: Taps, diag: Diag, outbox: Outbox, report: Arc<Report>, stop: Arc<AtomicBool>) -> Self {
        Self {
            taps,
            diag,
            owners: Owners::new(),
            outbox,
            report,
            stop,
            told: LruCache::new(TOLD),
            forgotten: 0,
            listening: HashSet::new(),
            load: Load::new(),
            spared: None,
            connects: 0,
            ephemeral: ephemeral(),
        }
    }

    pub fn run(mut self) -> std::io::Result<()> {
        let mut buffer = vec![0; SNAP];
        let mut listed = self.list();
        while !self.stop.load(Ordering::Relaxed) {
            let links_changed = {
                let links = self.taps.links();
                let mut all = vec![PollFd::new(&links, PollFlags::IN)];
                all.extend(self.taps.all().map(|tap| PollFd::new(tap, PollFlags::IN)));
                let _ = poll(&mut all, Some(&PAUSE));
                all.first().is_some_and(|links| !links.revents().is_empty())
            };
            let mut packets = Vec::new();
            for tap in self.taps.all() {
                drain(tap, ROUND, &mut buffer, &mut packets)?;
            }
            self.on_packets(packets);
            if let Some(counts) = self.load.look() {
                self.spare(counts, &mut buffer)?;
                if self.spared.as_mut().is_some_and(|spared| spared.is_due(counts, &listed)) {
                    listed = self.list();
                    self.count_unlisted(counts);
                }
            }
            if listed.at.elapsed() >= RECONCILE {
                listed = self.list();
            }
            self.outbox.flush();
            self.count();
            // After all is read that a socket holds which goes now.
            if links_changed {
                self.taps.follow()?;
            }
        }
        self.outbox.flush();
        Ok(())
    }

    /// Lets packets be looked at one by one, or not, as the load is.
    fn spare(&mut self, counts: Counts, buffer: &mut [u8]) -> std::io::Result<()> {
        match self.taps.spare(self.load.is_busy()) {
            Ok(old) => {
                let mut packets = Vec::new();
                for tap in &old {
                    drain(tap, FULL, buffer, &mut packets)?;
                }
                self.on_packets(packets);
            }
            Err(error) => tracing::debug!(%error, "packets are looked at as before, though they are many"),
        }
        let spared = self.taps.is_spared();
        self.report.spared.store(spared, Ordering::Relaxed);
        match (&self.spared, spared) {
            (None, true) => {
                let unlisted = self.report.unlisted.load(Ordering::Relaxed);
                let opened = counts.opened;
                self.spared = Some(Spared { opened, connects: self.connects, listed: opened, unlisted });
            }
            (Some(_), false) => {
                // What came between the last list and now.
                self.list();
                self.count_unlisted(counts);
                self.spared = None;
            }
            _ => {}
        }
        Ok(())
    }

    /// Counts the connections that were asked for and that no list has shown.
    fn count_unlisted(&mut self, counts: Counts) {
        let Some(spared) = &self.spared else { return };
        let asked = counts.opened.saturating_sub(spared.opened);
        let unlisted = asked.saturating_sub(self.connects - spared.connects);
        self.report.unlisted.store(spared.unlisted + unlisted, Ordering::Relaxed);
    }

    /// Tells what the list of all sockets shows; when, and how long it took.
    fn list(&mut self) -> Listed {
        let at = Instant::now();
        self.reconcile();
        Listed { at, took: at.elapsed() }
    }

    fn count(&mut self) {
        // Which family the lost packets were of, nobody knows; connections are the graver loss.
        self.report.network.add_ring_full(self.taps.drops());
        self.report.skipped.store(self.owners.skipped, Ordering::Relaxed);
        self.report.evictions.store(self.owners.evictions + self.forgotten, Ordering::Relaxed);
    }

    fn on_packets(&mut self, packets: Vec<(Packet, bool)>) {
        for (packet, ours) in packets {
            self.on_packet(packet, ours);
        }
    }

    /// `ours` is what leaves this host, and what stays within it.
    fn on_packet(&mut self, packet: Packet, ours: bool) {
        let Packet { source, destination, kind } = packet;
        match kind {
            Kind::Syn if ours => {
                if self.is_first((source, destination)) {
                    let process = self.diag.connection(source, destination).and_then(|found| self.owner(found));
                    self.tell(process, EventKind::Connect(connect(source, destination)));
                }
            }
            Kind::SynAck if ours => {
                if self.is_first((source, destination)) {
                    // The connection has no descriptor before accept(): who listens is who takes it.
                    let process = self.diag.listener(source).and_then(|found| self.owner(found));
                    self.tell(process, EventKind::Accept(connect(source, destination)));
                }
            }
            // Others' requests are told when they are answered; others' answers follow our requests.
            Kind::Syn | Kind::SynAck => self.report.network.add_filtered(1),
            Kind::Dns { tcp, payload } => {
                let answer = source.port() == 53;
                let (server, client) = if answer { (source, destination) } else { (destination, source) };
                let found =
                    if tcp { self.diag.connection(client, server) } else { self.diag.datagrams(client, server) };
                let process = found.and_then(|found| self.owner(found));
                let packet = DnsPacket { server, client: client.ip(), answer, payload };
                let event = Event { time: boottime(), process, cgroup: None, kind: EventKind::Dns(Box::new(packet)) };
                self.outbox.push(event, &self.report.dns);
            }
        }
    }

    fn owner(&mut self, found: Found) -> Option<ProcessKey> {
        self.owners.find(found.inode, found.uid)
    }

    fn tell(&mut self, process: Option<ProcessKey>, kind: EventKind) {
        self.connects += u64::from(matches!(kind, EventKind::Connect(_)));
        if process.is_none() {
            self.report.unnamed.fetch_add(1, Ordering::Relaxed);
        }
        self.outbox.push(Event { time: boottime(), process, cgroup: None, kind }, &self.report.network);
    }

    /// Whether these ends have not been told; counts a repetition as filtered.
    fn is_first(&mut self, ends: Ends) -> bool {
        let now = Instant::now();
        if self.told.get(&ends).is_some_and(|told| now.duration_since(*told) < REPETITION) {
            self.report.network.add_filtered(1);
            return false;
        }
        self.remember(ends, now);
        true
    }

    fn remember(&mut self, ends: Ends, now: Instant) {
        if self.told.len() == TOLD.get() && !self.told.contains(&ends) {
            self.forgotten += 1;
        }
        self.told.put(ends, now);
    }

    /// Tells what no packet told: sockets that listen, and connections from before the start or
    /// whose packets were lost.
    fn reconcile(&mut self) {
        let Ok(tcp) = self.diag.list(Transport::Tcp, StateFlags::LISTEN | StateFlags::ESTABLISHED) else { return };
        let udp = self.diag.list(Transport::Udp, StateFlags::CLOSE).unwrap_or_default();
        let (listening, established): (Vec<Found>, Vec<Found>) =
            tcp.into_iter().partition(|found| found.remote.port() == 0);
        // Bound to a port of its own choice: a service. The others are clients.
        let (first, last) = self.ephemeral;
        let services = udp.into_iter().filter(|found| {
            found.local.port() != 0 && !(first..=last).contains(&found.local.port()) && found.remote.port() == 0
        });
        let ports: HashSet<u16> = listening.iter().map(|found| found.local.port()).collect();
        let all = listening.into_iter().map(|found| (Transport::Tcp, found));
        let mut still = HashSet::new();
        for (transport, found) in all.chain(services.map(|found| (Transport::Udp, found))) {
            let socket = (transport == Transport::Tcp, found.local);
            if still.insert(socket) && !self.listening.contains(&socket) {
                let process = self.owner(found);
                self.tell(process, EventKind::Listen { transport, local: found.local });
            }
        }
        self.listening = still;
        for found in established {
            let ends = (found.local, found.remote);
            // Keeps what lives in memory.
            if self.told.get(&ends).is_some() {
                continue;
            }
            self.remember(ends, Instant::now());
            let process = self.owner(found);
            let connect = connect(found.local, found.remote);
            let taken = ports.contains(&found.local.port());
            self.tell(process, if taken { EventKind::Accept(connect) } else { EventKind::Connect(connect) });
        }
    }
}

/// When all sockets were listed, and how long it took.
struct Listed {
    at: Instant,
    took: Duration,
}

/// What was known when packets were spared.
struct Spared {
    /// Connections that had been asked for …
    opened: u64,
    /// … that had been told …
    connects: u64,
    /// … and that no list had shown.
    unlisted: u64,
    /// Connections that had been asked for at the last list.
    listed: u64,
}

impl Spared {
    /// Whether connections have been asked for since the last list, and it may be made again.
    fn is_due(&mut self, counts: Counts, last: &Listed) -> bool {
        let due = counts.opened != self.listed && last.at.elapsed() >= last.took * LISTING_SHARE;
        if due {
            self.listed = counts.opened;
        }
        due
    }
}

/// Reads what a socket holds, or a round of it.
fn drain(tap: &Tap, round: usize, buffer: &mut [u8], into: &mut Vec<(Packet, bool)>) -> std::io::Result<()> {
    for _ in 0..round {
        match tap.receive(buffer) {
            Ok(packet) => into.extend(packet),
            Err(nix::Error::EAGAIN) => break,
            // An interface that went down says so once, and so does one that is gone.
            Err(nix::Error::EINTR | nix::Error::ENETDOWN | nix::Error::ENODEV | nix::Error::ENXIO) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn connect(local: SocketAddr, remote: SocketAddr) -> Connect {
    Connect { transport: Transport::Tcp, local: Some(local), remote }
}

fn ephemeral() -> (u16, u16) {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ports = text.split_ascii_whitespace().filter_map(|text| text.parse().ok());
    // The kernel's default, Documentation/networking/ip-sysctl.rst.
    (ports.next().unwrap_or(32_768), ports.next().unwrap_or(60_999))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn connections_that_were_told_are_bounded_and_counted() {
        let (output, _events) = sync_channel(1);
        let socket = std::os::fd::OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let report = Arc::new(Report::default());
        let taps = Taps::of(socket).unwrap();
        let mut watch = Watch::new(taps, Diag::open().unwrap(), Outbox::new(output), report.clone(), Arc::default());
        let ends = |number: u32| (SocketAddr::from(([10, 0, 0, 1], 1)), SocketAddr::from((number.to_be_bytes(), 443)));
        assert!(watch.is_first(ends(0)));
        assert!(!watch.is_first(ends(0)));
        assert_eq!(report.network.snapshot().filtered, 1);
        for number in 1..TOLD.get() as u32 + 5 {
            assert!(watch.is_first(ends(number)));
        }
        assert_eq!((watch.told.len(), watch.forgotten), (TOLD.get(), 5));
    }
}
