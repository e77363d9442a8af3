//! What a packet says, from its IP header on. Everything in it comes from outside.

use netlink_packet_sock_diag::constants::{IPPROTO_TCP, IPPROTO_UDP};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// DNS bytes that are kept, as `event::DnsPacket` says.
const DNS_BYTES: usize = 512;
/// A DNS header.
const DNS_HEADER: usize = 12;

/// A packet that means something here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// What it is.
    pub kind: Kind,
}

/// What a packet is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connection is asked for.
    Syn,
    /// A connection is taken.
    SynAck,
    /// A DNS message, over TCP or UDP.
    Dns { tcp: bool, payload: Vec<u8> },
}

/// Reads a packet; `None` where it is something else, or cut.
pub fn parse(bytes: &[u8]) -> Option<Packet> {
    let (source, destination, protocol, body) = match bytes.first()? >> 4 {
        4 => v4(bytes)?,
        6 => v6(bytes)?,
        _ => return None,
    };
    of_parts(source, destination, protocol, body)
}

/// Reads a UDP datagram, from its own header on.
pub fn datagram(source: Ipv6Addr, destination: Ipv6Addr, body: &[u8]) -> Option<Packet> {
    of_parts(source.to_canonical(), destination.to_canonical(), IPPROTO_UDP, body)
}

fn of_parts(source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> Option<Packet> {
    let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    let source = SocketAddr::new(source, port(0)?);
    let destination = SocketAddr::new(destination, port(2)?);
    let dns = source.port() == 53 || destination.port() == 53;
    let message = |payload: &[u8], tcp| {
        let payload = payload.get(..payload.len().min(DNS_BYTES))?;
        (dns && payload.len() >= DNS_HEADER).then(|| Kind::Dns { tcp, payload: payload.to_vec() })
    };
    let kind = match protocol {
        IPPROTO_UDP => message(body.get(8..)?, false)?,
        IPPROTO_TCP => {
            let flags = body.get(13)?;
            match (flags & 0x02 != 0, flags & 0x10 != 0) {
                (true, false) => Kind::Syn,
                (true, true) => Kind::SynAck,
                // Two bytes of length come first. A message that begins in an earlier segment is not seen.
                _ => message(body.get(usize::from(body.get(12)? >> 4) * 4 + 2..)?, true)?,
            }
        }
        _ => return None,
    };
    Some(Packet { source, destination, kind })
}

type Parts<'a> = (IpAddr, IpAddr, u8, &'a [u8]);

fn v4(bytes: &[u8]) -> Option<Parts<'_>> {
    let header = usize::from(bytes.first()? & 0xf) * 4;
    if header < 20 || u16::from_be_bytes([*bytes.get(6)?, *bytes.get(7)?]) & 0x1fff != 0 {
        return None;
    }
    // Short frames are padded: the packet's own length counts.
    let length = usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]));
    // 0: the card cuts it up later.
    let end = if length == 0 { bytes.len() } else { length.min(bytes.len()) };
    let address = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?)));
    Some((address(12)?, address(16)?, *bytes.get(9)?, bytes.get(header..end)?))
}

fn v6(bytes: &[u8]) -> Option<Parts<'_>> {
    let address = |at: usize| {
        let address = Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?);
        Some(address.to_canonical())
    };
    Some((address(8)?, address(24)?, *bytes.get(6)?, bytes.get(40..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4_packet(protocol: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, (20 + body.len()) as u8, 0, 0, 0, 0, 64, protocol, 0, 0];
        bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn syn_and_syn_ack_are_told_apart() {
        let tcp = |flags| [0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0];
        let packet = parse(&v4_packet(6, &tcp(0x02))).unwrap();
        assert_eq!(
            (packet.source.to_string(), packet.destination.to_string()),
            ("10.0.0.1:40000".into(), "10.0.0.2:443".into())
        );
        assert_eq!(packet.kind, Kind::Syn);
        assert_eq!(parse(&v4_packet(6, &tcp(0x12))).unwrap().kind, Kind::SynAck);
        assert_eq!(parse(&v4_packet(6, &tcp(0x10))), None);
    }

    #[test]
    fn dns_is_kept_up_to_512_bytes_and_padding_is_not() {
        let mut body = vec![0xff, 0xff, 0, 53, 0, 0, 0, 0];
        body.extend([7_u8; 12]);
        let mut bytes = v4_packet(17, &body);
        bytes.extend([0; 6]);
        assert_eq!(parse(&bytes).unwrap().kind, Kind::Dns { tcp: false, payload: vec![7; 12] });
        let mut six = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
        six.extend([0; 32]);
        six.extend([0, 53, 0xff, 0xff, 0, 0, 0, 0]);
        six.extend([7_u8; 900]);
        let Kind::Dns { payload, .. } = parse(&six).unwrap().kind else { panic!("no DNS") };
        assert_eq!(payload.len(), 512);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), six: bool, tcp: bool) {
            parse(&bytes);
            if bytes.len() > 10 {
                bytes[0] = if six { 0x60 } else { 0x45 };
                bytes[if six { 6 } else { 9 }] = if tcp { 6 } else { 17 };
                parse(&bytes);
            }
        }
    }
}
