//! Questions to the kernel about sockets (sock_diag).
//!
//! One exact question costs a few microseconds, however many sockets there are; a list of all costs
//! about one for each.

use crate::event::Transport;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Sockets of one kind that a list holds at most.
pub const LISTED: usize = 16_384;
/// `INET_DIAG_NOCOOKIE` twice.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// A socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// This side.
    pub local: SocketAddr,
    /// The other side; port 0 where there is none.
    pub remote: SocketAddr,
    /// Inode; 0 where no descriptor exists (yet).
    pub inode: u32,
    /// Owner.
    pub uid: u32,
}

impl From<&InetResponseHeader> for Found {
    fn from(header: &InetResponseHeader) -> Self {
        let id = &header.socket_id;
        Self {
            local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
            remote: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
            inode: header.inode,
            uid: header.uid,
        }
    }
}

/// A connection to sock_diag.
pub struct Diag {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Diag {
    /// Opens it. Needs no privilege.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, buffer: vec![0; 32 << 10] })
    }

    /// The TCP socket with these two ends.
    pub fn connection(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<Found> {
        self.one(Transport::Tcp, local, remote)
    }

    /// The TCP socket that listens for connections to this address.
    pub fn listener(&mut self, local: SocketAddr) -> Option<Found> {
        let nobody: IpAddr = match local {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.one(Transport::Tcp, local, SocketAddr::new(nobody, 0))
    }

    /// The UDP socket that gets what `remote` sends to `local`.
    pub fn datagrams(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<Found> {
        // udp_dump_one() looks up the receiver of a packet from source to destination: the ends
        // are the other way round than for TCP.
        self.one(Transport::Udp, remote, local)
    }

    fn one(&mut self, transport: Transport, source: SocketAddr, destination: SocketAddr) -> Option<Found> {
        let request = request(transport, source, destination, StateFlags::all());
        self.send(request, NLM_F_REQUEST).ok()?;
        let mut found = None;
        self.receive(|answer| {
            found = found.or(answer);
            true
        })
        .ok()?;
        found.filter(|found| found.inode != 0)
    }

    /// All sockets of a transport in these states, IPv4 and IPv6; at most [`LISTED`] each.
    pub fn list(&mut self, transport: Transport, states: StateFlags) -> io::Result<Vec<Found>> {
        let mut all = Vec::new();
        for any in ["0.0.0.0:0", "[::]:0"] {
            let Ok(any) = any.parse() else { continue };
            self.send(request(transport, any, any, states.clone()), NLM_F_REQUEST | NLM_F_DUMP)?;
            self.receive(|answer| match answer {
                Some(found) => {
                    if all.len() < 2 * LISTED {
                        all.push(found);
                    }
                    false
                }
                None => true,
            })?;
        }
        Ok(all)
    }

    fn send(&mut self, request: InetRequest, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut bytes = vec![0; message.header.length as usize];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(|_| ())
    }

    /// Hands each answer over, `None` for the end or an error, until told that this was the last.
    fn receive(&mut self, mut answer: impl FnMut(Option<Found>) -> bool) -> io::Result<()> {
        loop {
            let count = self.socket.recv(&mut self.buffer.as_mut_slice(), 0)?;
            let mut rest = self.buffer.get(..count).unwrap_or_default();
            while !rest.is_empty() {
                let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                let found = match message.payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                        Some(Found::from(&response.header))
                    }
                    _ => None,
                };
                if answer(found) {
                    return Ok(());
                }
                // Messages are aligned to four bytes.
                let length = (message.header.length as usize).next_multiple_of(4).max(16);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

fn request(transport: Transport, source: SocketAddr, destination: SocketAddr, states: StateFlags) -> InetRequest {
    InetRequest {
        family: if source.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: match transport {
            Transport::Tcp => IPPROTO_TCP,
            Transport::Udp => IPPROTO_UDP,
        },
        extensions: ExtensionFlags::empty(),
        states,
        socket_id: SocketId {
            source_port: source.port(),
            destination_port: destination.port(),
            source_address: source.ip(),
            destination_address: destination.ip(),
            interface_id: 0,
            cookie: NO_COOKIE,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;

    fn inode(descriptor: &impl AsRawFd) -> u32 {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd())).unwrap();
        link.display().to_string().trim_start_matches("socket:[").trim_end_matches(']').parse().unwrap()
    }

    #[test]
    fn both_ends_of_a_connection_and_its_listener_are_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let server = listener.local_addr().unwrap();
            let client = TcpStream::connect(server).unwrap();
            let (accepted, client_address) = listener.accept().unwrap();
            let mut diag = Diag::open().unwrap();
            assert_eq!(diag.connection(client_address, server).unwrap().inode, inode(&client));
            assert_eq!(diag.connection(server, client_address).unwrap().inode, inode(&accepted));
            assert_eq!(diag.listener(server).unwrap().inode, inode(&listener));
            let listed = diag.list(Transport::Tcp, StateFlags::LISTEN).unwrap();
            assert!(listed.iter().any(|found| found.inode == inode(&listener) && found.local == server));
            assert_eq!(
                diag.connection(server, SocketAddr::new(server.ip(), 1)).map(|found| found.inode),
                Some(inode(&listener))
            );
        }
    }

    #[test]
    fn a_datagram_socket_is_found_by_its_own_side() {
        let mut diag = Diag::open().unwrap();
        for own in ["127.0.0.1:0", "0.0.0.0:0"] {
            let socket = UdpSocket::bind(own).unwrap();
            let local = SocketAddr::new("127.0.0.1".parse().unwrap(), socket.local_addr().unwrap().port());
            let found = diag.datagrams(local, "127.0.0.1:53".parse().unwrap());
            assert_eq!(found.unwrap().inode, inode(&socket));
        }
        assert_eq!(diag.datagrams("127.0.0.1:1".parse().unwrap(), "127.0.0.1:53".parse().unwrap()), None);
    }
}
