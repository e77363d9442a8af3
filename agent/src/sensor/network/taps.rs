//! The sockets that others' packets are read from.
//!
//! For a socket that sees what leaves, the kernel copies each packet before it asks the filter. On loopback that is for
//! nothing, since everything that leaves comes in there too: half of what a service pays that talks to a proxy beside it
//! (docs/benchmarks.md). So one socket sees what comes in, on every interface, and each interface but loopback has one
//! for what goes out.
//!
//! Where packets are very many ([`load`](super::load)), what comes in is no longer looked at packet by packet: raw
//! sockets are given the UDP datagrams, and TCP does not meet them at all. Connections over loopback are then found by
//! listing sockets.
//!
//! **Guarantees.** Where that cannot be had (a kernel before 4.20, very many interfaces, a socket that is refused), one
//! socket sees everything. **Caveat.** What leaves by an interface that has just come is not seen for some milliseconds.

use super::filter::{self, LOOPBACK, OUTGOING, Sees};
use super::packet::{self, Packet};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::cmsg_space;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockaddrIn6, recv, recvfrom, recvmsg};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, IoSliceMut};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Interfaces that have a socket of their own at most: a node with a thousand pods has one socket for all.
const INTERFACES: usize = 64;
/// `RTMGRP_LINK` of include/uapi/linux/rtnetlink.h: interfaces that come, go or change.
const LINKS: u32 = 1;

/// What a socket gives.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Packets, from their IP header on.
    Packets,
    /// UDP datagrams with their IPv4 header.
    Datagrams4,
    /// UDP datagrams that came by IPv6, without its header.
    Datagrams6,
}

/// One socket.
pub struct Tap {
    socket: OwnedFd,
    kind: Kind,
    /// What the kernel has counted as dropped when it was last asked.
    dropped: u64,
}

impl Tap {
    fn packets(sees: Sees) -> io::Result<Self> {
        Ok(Self { socket: filter::packets(sees)?, kind: Kind::Packets, dropped: 0 })
    }

    fn datagrams() -> io::Result<Vec<Self>> {
        let tap =
            |family, kind| -> io::Result<Self> { Ok(Self { socket: filter::datagrams(family)?, kind, dropped: 0 }) };
        let mut taps = vec![tap(AddressFamily::Inet, Kind::Datagrams4)?];
        match tap(AddressFamily::Inet6, Kind::Datagrams6) {
            Ok(tap) => taps.push(tap),
            // A kernel without IPv6 has none to see.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            Err(error) => return Err(error),
        }
        Ok(taps)
    }

    /// One packet that means something, if it is one, and whether it left this host or stays within it.
    ///
    /// # Errors
    /// `EAGAIN` where there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> nix::Result<Option<(Packet, bool)>> {
        let socket = self.socket.as_raw_fd();
        let mut ours = false;
        let packet = match self.kind {
            Kind::Packets => {
                let (count, from) = recvfrom::<LinkAddr>(socket, buffer)?;
                ours = from.is_some_and(|from| from.pkttype() == OUTGOING || from.hatype() == LOOPBACK);
                packet::parse(buffer.get(..count).unwrap_or_default())
            }
            Kind::Datagrams4 => {
                let count = recv(socket, buffer, MsgFlags::empty())?;
                packet::parse(buffer.get(..count).unwrap_or_default())
            }
            Kind::Datagrams6 => {
                let mut room = cmsg_space!(libc::in6_pktinfo);
                let mut into = [IoSliceMut::new(buffer)];
                let got = recvmsg::<SockaddrIn6>(socket, &mut into, Some(&mut room), MsgFlags::empty())?;
                let receiver = got.cmsgs().into_iter().flatten().find_map(|it| match it {
                    ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr)),
                    _ => None,
                });
                let (from, count) = (got.address, got.bytes);
                from.zip(receiver).and_then(|(from, receiver)| {
                    packet::datagram(from.ip(), receiver, buffer.get(..count).unwrap_or_default())
                })
            }
        };
        Ok(packet.map(|packet| (packet, ours)))
    }

    /// Adds what the kernel has dropped since the last call.
    fn count_drops(&mut self, into: &mut Dropped) {
        if matches!(self.kind, Kind::Packets) {
            into.packets += filter::dropped_packets(&self.socket);
        } else {
            let all = filter::dropped_datagrams(&self.socket);
            into.datagrams += all.saturating_sub(std::mem::replace(&mut self.dropped, all));
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The sockets, and what tells of interfaces.
pub struct Taps {
    /// What comes in; everything where `outgoing` is `None`.
    incoming: Vec<Tap>,
    /// What goes out, by interface.
    outgoing: Option<BTreeMap<u32, Tap>>,
    links: Socket,
    /// Whether only datagrams are seen of what comes in.
    spared: bool,
    /// What sockets had dropped that are gone.
    lost: Dropped,
}

/// How many the kernel has dropped because a socket's buffer was full.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dropped {
    /// Packets, of which nobody knows what they were.
    pub packets: u64,
    /// Datagrams; until its buffer has room again a raw socket counts all of them, DNS or not.
    pub datagrams: u64,
}

impl Taps {
    /// Opens them. Needs CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        let mut links = Socket::new(NETLINK_ROUTE)?;
        links.bind(&SocketAddr::new(0, LINKS))?;
        links.set_non_blocking(true)?;
        let (incoming, outgoing) = match Tap::packets(Sees::Incoming) {
            Ok(incoming) => (incoming, Some(BTreeMap::new())),
            Err(_) => (Tap::packets(Sees::Everything)?, None),
        };
        let mut taps = Self { incoming: vec![incoming], outgoing, links, spared: false, lost: Dropped::default() };
        let gone = taps.follow()?;
        taps.close(gone);
        Ok(taps)
    }

    /// One socket, of whatever kind, instead of them.
    #[cfg(test)]
    pub fn of(socket: OwnedFd) -> io::Result<Self> {
        let incoming = vec![Tap { socket, kind: Kind::Packets, dropped: 0 }];
        Ok(Self {
            incoming,
            outgoing: None,
            links: Socket::new(NETLINK_ROUTE)?,
            spared: false,
            lost: Dropped::default(),
        })
    }

    /// Every socket: what goes out first, so that questions are read before their answers.
    pub fn all(&self) -> impl Iterator<Item = &Tap> {
        self.outgoing.iter().flat_map(BTreeMap::values).chain(&self.incoming)
    }

    /// What the kernel has dropped since the last call.
    pub fn drops(&mut self) -> Dropped {
        let mut dropped = std::mem::take(&mut self.lost);
        for tap in self.outgoing.iter_mut().flat_map(BTreeMap::values_mut).chain(&mut self.incoming) {
            tap.count_drops(&mut dropped);
        }
        dropped
    }

    /// Closes sockets that are not needed any more, and counts what they had dropped.
    pub fn close(&mut self, taps: impl IntoIterator<Item = Tap>) {
        for mut tap in taps {
            tap.count_drops(&mut self.lost);
        }
    }

    /// Whether only datagrams are seen of what comes in.
    pub fn is_spared(&self) -> bool {
        self.spared
    }

    /// Sees only datagrams of what comes in, at no cost to TCP, or packets again. Gives the sockets that are not needed
    /// any more: what they hold is to be read, of which the new ones may have a message too, and then [`Taps::close`].
    ///
    /// # Errors
    /// Where the others cannot be had: then it stays as it was.
    pub fn spare(&mut self, spared: bool) -> io::Result<Vec<Tap>> {
        // A socket that sees everything is no matter of what comes in alone.
        if spared == self.spared || (spared && self.outgoing.is_none()) {
            return Ok(Vec::new());
        }
        let others = if spared { Tap::datagrams()? } else { vec![Tap::packets(Sees::Incoming)?] };
        self.spared = spared;
        Ok(std::mem::replace(&mut self.incoming, others))
    }

    /// What becomes readable when interfaces change.
    pub fn links(&self) -> BorrowedFd<'_> {
        self.links.as_fd()
    }

    /// Interfaces have changed: those that came get a socket, those that went lose theirs. Gives the sockets that are not
    /// needed any more, as [`Taps::spare`] does.
    ///
    /// # Errors
    /// Where not even one socket for everything can be had.
    pub fn follow(&mut self) -> io::Result<Vec<Tap>> {
        // What they say is not read: the list of interfaces says it too. An overflow ends it as well.
        while self.links.recv(&mut &mut [0_u8; 64][..], 0).is_ok() {}
        let Some(outgoing) = &mut self.outgoing else { return Ok(Vec::new()) };
        let mut gone = Vec::new();
        if renew(outgoing, &mut gone).is_err() {
            let everything = vec![Tap::packets(Sees::Everything)?];
            self.spared = false;
            gone.extend(self.outgoing.take().into_iter().flat_map(BTreeMap::into_values));
            gone.extend(std::mem::replace(&mut self.incoming, everything));
        }
        Ok(gone)
    }
}

/// Puts the sockets of interfaces that are gone into `gone`.
fn renew(outgoing: &mut BTreeMap<u32, Tap>, gone: &mut Vec<Tap>) -> io::Result<()> {
    let interfaces = interfaces()?;
    if interfaces.len() > INTERFACES {
        return Err(io::Error::other("too many interfaces"));
    }
    let others: Vec<u32> = outgoing.keys().copied().filter(|interface| !interfaces.contains(interface)).collect();
    gone.extend(others.iter().filter_map(|interface| outgoing.remove(interface)));
    for interface in interfaces {
        let Entry::Vacant(place) = outgoing.entry(interface) else { continue };
        match Tap::packets(Sees::Outgoing(interface)) {
            Ok(socket) => drop(place.insert(socket)),
            // Gone meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Indices of all interfaces but loopback.
fn interfaces() -> io::Result<Vec<u32>> {
    let addresses = getifaddrs()?;
    let links = addresses.filter_map(|it| it.address?.as_link_addr().map(|link| (link.ifindex(), link.hatype())));
    Ok(links.filter(|(_, kind)| *kind != LOOPBACK).map(|(index, _)| index as u32).collect())
}
