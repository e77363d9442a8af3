//! The sensor's thread: packets become events, and a list of all sockets fills the gaps.

use super::Report;
use super::diag::{Diag, Found};
use super::filter::{self, LOOPBACK, OUTGOING, SNAP};
use super::owner::Owners;
use super::packet::{self, Kind, Packet};
use super::taps::Taps;
use crate::event::{Connect, DnsPacket, Event, EventKind, ProcessKey, Transport};
use crate::sensor::outbox::{Outbox, boottime};
use lru::LruCache;
use netlink_packet_sock_diag::inet::StateFlags;
use nix::sys::socket::{LinkAddr, recvfrom};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Connections that are remembered as told, about 100 bytes each.
const TOLD: NonZeroUsize = NonZeroUsize::new(8192).unwrap();
/// A second SYN of the same two ends within this time is a repetition: Linux repeats after 1, 3, 7 s.
const REPETITION: Duration = Duration::from_secs(10);
/// How often all sockets are listed.
const RECONCILE: Duration = Duration::from_secs(5);
/// How soon a stop is obeyed.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
/// Packets between two looks at the clock.
const ROUND: usize = 256;

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
            ephemeral: ephemeral(),
        }
    }

    pub fn run(mut self) -> std::io::Result<()> {
        let mut buffer = vec![0; SNAP];
        self.reconcile();
        let mut reconciled = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let links_changed = {
                let links = self.taps.links();
                let mut all = vec![PollFd::new(&links, PollFlags::IN)];
                all.extend(self.taps.sockets().map(|socket| PollFd::new(socket, PollFlags::IN)));
                let _ = poll(&mut all, Some(&PAUSE));
                all.first().is_some_and(|links| !links.revents().is_empty())
            };
            let sockets: Vec<i32> = self.taps.sockets().map(AsRawFd::as_raw_fd).collect();
            for socket in sockets {
                self.drain(socket, &mut buffer)?;
            }
            if reconciled.elapsed() >= RECONCILE {
                self.reconcile();
                reconciled = Instant::now();
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

    /// Reads what a packet socket holds, or a round of it.
    fn drain(&mut self, socket: i32, buffer: &mut [u8]) -> std::io::Result<()> {
        for _ in 0..ROUND {
            match recvfrom::<LinkAddr>(socket, buffer) {
                Ok((count, from)) => self.on_packet(buffer.get(..count).unwrap_or_default(), from),
                Err(nix::Error::EAGAIN) => break,
                // An interface that went down says so once, and so does one that is gone.
                Err(nix::Error::EINTR | nix::Error::ENETDOWN | nix::Error::ENODEV | nix::Error::ENXIO) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn count(&mut self) {
        // Which family the lost packets were of, nobody knows; connections are the graver loss.
        self.report.network.add_ring_full(self.taps.sockets().map(filter::drops).sum());
        self.report.skipped.store(self.owners.skipped, Ordering::Relaxed);
        self.report.evictions.store(self.owners.evictions + self.forgotten, Ordering::Relaxed);
    }

    fn on_packet(&mut self, bytes: &[u8], from: Option<LinkAddr>) {
        let Some(packet) = packet::parse(bytes) else { return };
        // Ours is what leaves this host, and what stays within it.
        let ours = from.is_some_and(|from| from.pkttype() == OUTGOING || from.hatype() == LOOPBACK);
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
