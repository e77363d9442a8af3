//! The packet sockets.
//!
//! For a socket that sees what leaves, the kernel copies each packet before it asks the filter. On loopback that is for
//! nothing, since everything that leaves comes in there too: half of what a service pays that talks to a proxy beside it
//! (docs/benchmarks.md). So one socket sees what comes in, on every interface, and each interface but loopback has one
//! for what goes out.
//!
//! **Guarantees.** Where that cannot be had (a kernel before 4.20, very many interfaces, a socket that is refused), one
//! socket sees everything. **Caveat.** What leaves by an interface that has just come is not seen for some milliseconds.

use super::filter::{self, LOOPBACK, Sees};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::ifaddrs::getifaddrs;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Interfaces that have a socket of their own at most: a node with a thousand pods has one socket for all.
const INTERFACES: usize = 64;
/// `RTMGRP_LINK` of include/uapi/linux/rtnetlink.h: interfaces that come, go or change.
const LINKS: u32 = 1;

/// The sockets, and what tells of interfaces.
pub struct Taps {
    /// What comes in; everything where `outgoing` is `None`.
    incoming: OwnedFd,
    /// What goes out, by interface.
    outgoing: Option<BTreeMap<u32, OwnedFd>>,
    links: Socket,
}

impl Taps {
    /// Opens them. Needs CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        let mut links = Socket::new(NETLINK_ROUTE)?;
        links.bind(&SocketAddr::new(0, LINKS))?;
        links.set_non_blocking(true)?;
        let mut taps = match filter::open(Sees::Incoming) {
            Ok(incoming) => Self { incoming, outgoing: Some(BTreeMap::new()), links },
            Err(_) => Self { incoming: filter::open(Sees::Everything)?, outgoing: None, links },
        };
        taps.follow()?;
        Ok(taps)
    }

    /// One socket, of whatever kind, instead of them.
    #[cfg(test)]
    pub fn of(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { incoming: socket, outgoing: None, links: Socket::new(NETLINK_ROUTE)? })
    }

    /// Every packet socket: what goes out first, so that questions are read before their answers.
    pub fn sockets(&self) -> impl Iterator<Item = &OwnedFd> {
        self.outgoing.iter().flat_map(BTreeMap::values).chain([&self.incoming])
    }

    /// What becomes readable when interfaces change.
    pub fn links(&self) -> BorrowedFd<'_> {
        self.links.as_fd()
    }

    /// Interfaces have changed: those that came get a socket, those that went lose theirs.
    ///
    /// # Errors
    /// Where not even one socket for everything can be had.
    pub fn follow(&mut self) -> io::Result<()> {
        // What they say is not read: the list of interfaces says it too. An overflow ends it as well.
        while self.links.recv(&mut &mut [0_u8; 64][..], 0).is_ok() {}
        let Some(outgoing) = &mut self.outgoing else { return Ok(()) };
        if renew(outgoing).is_err() {
            self.incoming = filter::open(Sees::Everything)?;
            self.outgoing = None;
        }
        Ok(())
    }
}

fn renew(outgoing: &mut BTreeMap<u32, OwnedFd>) -> io::Result<()> {
    let interfaces = interfaces()?;
    if interfaces.len() > INTERFACES {
        return Err(io::Error::other("too many interfaces"));
    }
    outgoing.retain(|interface, _| interfaces.contains(interface));
    for interface in interfaces {
        let Entry::Vacant(place) = outgoing.entry(interface) else { continue };
        match filter::open(Sees::Outgoing(interface)) {
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
