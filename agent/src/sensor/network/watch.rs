//! The sensor's thread: packets become events, and a list of all sockets fills the gaps. Where packets are spared, it
//! is the list that connections over loopback are told by.

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
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Connections that are remembered as told, about 100 bytes each.
const TOLD: NonZeroUsize = NonZeroUsize::new(8192).unwrap();
/// A second SYN of the same two ends within this time is a repetition: Linux repeats after 1, 3, 7 s.
const REPETITION: Duration = Duration::from_secs(10);
/// Linux asks for a connection for 127 s at most (`tcp_syn_retries`): one that is listed for the first time within this
/// time after it was told is the same.
const ASKING: Duration = Duration::from_secs(130);
/// How often all sockets are listed at least.
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
    /// Connections that packets told.
    told: LruCache<Ends, Instant>,
    /// Connections that the last list showed, at most two times [`LISTED`](super::diag::LISTED).
    established: HashMap<Ends, Established>,
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
            established: HashMap::new(),
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
            // Before packets are read: of what was asked for until now, nothing is told later but what is listed.
            let (counts, connects) = (self.load.look(), self.connects);
            let mut packets = Vec::new();
            for tap in self.taps.all() {
                drain(tap, ROUND, &mut buffer, &mut packets)?;
            }
            self.on_packets(packets);
            if let Some(counts) = counts {
                let was = self.spared.is_some();
                let is = self.spare(&mut buffer)?;
                if is && !was {
                    self.spared = Some(Spared { last: (counts.opened, connects), early: 0 });
                }
                // At a change what no socket has seen meanwhile is in the list, too.
                if is != was || self.spared.as_ref().is_some_and(|spared| spared.is_due(counts, &listed)) {
                    listed = self.list();
                    self.count_unlisted(counts, connects);
                }
                if !is {
                    self.spared = None;
                }
            }
            if listed.at.elapsed() >= RECONCILE {
                listed = self.list();
            }
            self.outbox.flush();
            self.count();
            if links_changed {
                let gone = self.taps.follow()?;
                self.take_last(gone, &mut buffer)?;
            }
        }
        self.outbox.flush();
        Ok(())
    }

    /// Lets packets be looked at one by one, or not, as the load is. Whether they are spared now.
    fn spare(&mut self, buffer: &mut [u8]) -> std::io::Result<bool> {
        match self.taps.spare(self.load.is_busy()) {
            Ok(old) => self.take_last(old, buffer)?,
            Err(error) if self.taps.is_spared() => tracing::warn!(%error, "packets cannot be looked at again yet"),
            Err(error) => tracing::debug!(%error, "packets are looked at, though they are many"),
        }
        let spared = self.taps.is_spared();
        self.report.spared.store(spared, Ordering::Relaxed);
        Ok(spared)
    }

    /// Reads what sockets hold that go, and closes them.
    fn take_last(&mut self, taps: Vec<Tap>, buffer: &mut [u8]) -> std::io::Result<()> {
        let mut packets = Vec::new();
        for tap in &taps {
            drain(tap, FULL, buffer, &mut packets)?;
        }
        self.taps.close(taps);
        self.on_packets(packets);
        Ok(())
    }

    /// Counts the connections that had been asked for when `counts` were read, and `connects` been told, and that
    /// no packet and no list has told since.
    fn count_unlisted(&mut self, counts: Counts, connects: u64) {
        let Some(spared) = &mut self.spared else { return };
        let unlisted = spared.balance(counts.opened, connects, self.connects);
        self.report.unlisted.fetch_add(unlisted, Ordering::Relaxed);
    }

    /// Tells what the list of all sockets shows; when, and how long it took.
    fn list(&mut self) -> Listed {
        let at = Instant::now();
        self.reconcile();
        Listed { at, took: at.elapsed() }
    }

    fn count(&mut self) {
        // Which family the lost packets were of, nobody knows; connections are the graver loss.
        let dropped = self.taps.drops();
        self.report.network.add_ring_full(dropped.packets);
        self.report.dns.add_ring_full(dropped.datagrams);
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
        // What a list told may have its packet still to be read.
        let listed = self.established.get(&ends).and_then(|known| known.told);
        let told = self.told.get(&ends).copied().max(listed);
        if told.is_some_and(|told| now.duration_since(told) < REPETITION) {
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

    /// Tells what no packet told: sockets that listen, and connections from before the start, whose packets were
    /// lost, or that no packet socket could see.
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
        let listeners: HashMap<u16, Found> = listening.iter().map(|found| (found.local.port(), *found)).collect();
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
        let mut before = std::mem::take(&mut self.established);
        let now = Instant::now();
        for found in established {
            let ends = (found.local, found.remote);
            // A list can show one twice.
            if self.established.contains_key(&ends) {
                continue;
            }
            let inode = found.inode;
            // One that nobody has accepted yet has no inode. Another inode is another connection of the same ends.
            let known = before.remove(&ends).filter(|known| known.inode == 0 || inode == 0 || known.inode == inode);
            if let Some(known) = known {
                self.established.insert(ends, Established { inode: known.inode.max(inode), ..known });
                continue;
            }
            // From now on the list knows it.
            let by_packet = self.told.pop(&ends).is_some_and(|told| now.duration_since(told) < ASKING);
            self.established.insert(ends, Established { inode, told: (!by_packet).then_some(now) });
            if by_packet {
                continue;
            }
            let listener = listeners.get(&found.local.port()).copied();
            let process = self.owner(if inode == 0 { listener.unwrap_or(found) } else { found });
            let connect = connect(found.local, found.remote);
            let kind = if listener.is_some() { EventKind::Accept(connect) } else { EventKind::Connect(connect) };
            self.tell(process, kind);
        }
    }
}

/// A connection that a list showed.
#[derive(Clone, Copy, Debug)]
struct Established {
    /// 0 until somebody has accepted it.
    inode: u32,
    /// When the list told it; `None` where a packet did.
    told: Option<Instant>,
}

/// When all sockets were listed, and how long it took.
struct Listed {
    at: Instant,
    took: Duration,
}

/// What is known while packets are spared.
#[derive(Debug)]
struct Spared {
    /// Connections that had been asked for when the last list was begun, and connects that had been told after it.
    last: (u64, u64),
    /// Connects that were told by the last list, and perhaps asked for only after it had begun.
    early: u64,
}

impl Spared {
    /// Whether connections have been asked for since the last list, and it may be made again.
    fn is_due(&self, counts: Counts, last: &Listed) -> bool {
        self.last.0 != counts.opened && last.at.elapsed() >= last.took * LISTING_SHARE
    }

    /// Of the connections that were asked for between the last list and this one, how many nobody told. `before`
    /// and `told` are the connects that had been told when this list was begun, and after it.
    fn balance(&mut self, opened: u64, before: u64, told: u64) -> u64 {
        let at_hand = told - before;
        let (asked, known) = std::mem::replace(&mut self.last, (opened, told));
        let asked = opened.saturating_sub(asked);
        let told = told - known + self.early;
        // What is left of them can only have been told too early by this list: nothing older makes up for a loss.
        self.early = told.saturating_sub(asked).min(at_hand);
        asked.saturating_sub(told)
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

    #[test]
    fn of_connections_that_were_asked_for_those_that_nobody_told_are_counted() {
        let mut spared = Spared { last: (100, 7), early: 0 };
        // Asked for, told before the list was begun, and told after it; not told.
        for (asked, before, told, lost) in [
            (103, 7, 10, 0),
            (105, 10, 11, 1),
            // Two were told that were asked for after the list had begun.
            (106, 11, 14, 0),
            (108, 14, 14, 0),
            // One that was told twice makes up for nothing that is lost later.
            (108, 15, 15, 0),
            (109, 15, 15, 1),
        ] {
            assert_eq!(spared.balance(asked, before, told), lost, "{asked}");
        }
    }

    #[test]
    fn what_a_list_told_first_is_not_told_by_its_packets_too() {
        let (output, events) = sync_channel(1024);
        let report = Arc::new(Report::default());
        let taps = Taps::open().unwrap();
        let mut watch = Watch::new(taps, Diag::open().unwrap(), Outbox::new(output), report, Arc::default());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(address).unwrap();
        // Nobody has accepted it yet.
        watch.list();
        let mut packets = Vec::new();
        for tap in watch.taps.all() {
            drain(tap, FULL, &mut vec![0; SNAP], &mut packets).unwrap();
        }
        let ends = |packet: &Packet| [packet.source, packet.destination].contains(&address);
        assert!(packets.iter().filter(|(packet, _)| ends(packet)).count() >= 2, "{packets:?}");
        watch.on_packets(packets);
        let server = listener.accept().unwrap();
        watch.list();
        watch.outbox.flush();
        let own = std::process::id();
        let mut told = Vec::new();
        for event in events.try_iter().flatten() {
            let (name, connect) = match event.kind {
                EventKind::Connect(connect) => ("connect", connect),
                EventKind::Accept(connect) => ("accept", connect),
                _ => continue,
            };
            if connect.remote == address || connect.local == Some(address) {
                told.push((name, event.process.map(|process| process.pid)));
            }
        }
        told.sort_unstable();
        assert_eq!(told, [("accept", Some(own)), ("connect", Some(own))]);
        drop((client, server));
    }
}
