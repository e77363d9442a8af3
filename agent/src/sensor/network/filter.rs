//! The sockets that see others' packets, and their classic BPF filters: DNS, SYN and SYN-ACK, nothing else.
//!
//! The kernel drops all other packets before they are copied. IPv6 extension headers are not followed,
//! nor are later fragments seen.

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

/// `ARPHRD_LOOPBACK` of include/uapi/linux/if_arp.h.
pub const LOOPBACK: u16 = 772;
/// `PACKET_OUTGOING` of include/uapi/linux/if_packet.h.
pub const OUTGOING: u8 = 4;
/// Bytes of a packet that are kept: 512 of DNS behind any header.
pub const SNAP: usize = 1024;

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// Ancillary loads: `SKF_AD_OFF` of include/uapi/linux/filter.h and the offsets behind it.
const PROTOCOL: u32 = (-0x1000_i32) as u32;
const PACKET_TYPE: u32 = PROTOCOL + 4;
const HARDWARE_TYPE: u32 = PROTOCOL + 28;

const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_HALF_X: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_IND) as u16;
const LOAD_BYTE_X: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_IND) as u16;
const HEADER_LENGTH: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// (code, jump if true, jump if false, constant): jumps count instructions behind the next one.
type Instruction = (u16, u8, u8, u32);

const DROP: Instruction = (RETURN, 0, 0, 0);
const KEEP: Instruction = (RETURN, 0, 0, SNAP as u32);

/// Port 53 on either side, in the header that stands at `header`.
#[rustfmt::skip]
const fn port_53(load_half: u16, header: u32) -> [Instruction; 6] {
    [
        /* 0 */ (load_half, 0, 0, header),
        /* 1 */ (EQUAL, 3, 0, 53),                      // → 5
        /* 2 */ (load_half, 0, 0, header + 2),
        /* 3 */ (EQUAL, 1, 0, 53),                      // → 5
        /* 4 */ DROP,
        /* 5 */ KEEP,
    ]
}

/// Decides by the protocol, which stands at `protocol`, and by the header behind the IP header: SYN,
/// and port 53.
#[rustfmt::skip]
const fn transport(load_byte: u16, load_half: u16, protocol: u32, header: u32) -> [Instruction; 12] {
    let [port_0, port_1, port_2, port_3, drop, keep] = port_53(load_half, header);
    [
        /*  0 */ (LOAD_BYTE, 0, 0, protocol),
        /*  1 */ (EQUAL, 4, 0, 17),                     // UDP → 6
        /*  2 */ (EQUAL, 0, 7, 6),                      // not TCP → 10
        /*  3 */ (load_byte, 0, 0, header + 13),
        /*  4 */ (ANY_BIT, 6, 0, 0x02),                 // SYN → 11
        /*  5 */ (ANY_BIT, 0, 4, 0x08),                 // TCP without PSH carries no whole message → 10
        /*  6 */ port_0, port_1, port_2, port_3,
        /* 10 */ drop,
        /* 11 */ keep,
    ]
}

/// The whole filter. Where headers stand at fixed places the kernel reads them in line; behind IPv4
/// options each look is a call, and it is every packet that is looked at.
#[rustfmt::skip]
fn program() -> Vec<Instruction> {
    let mut program = vec![
        // Loopback shows each packet twice: on its way out, and in. The second is enough.
        /*  0 */ (LOAD_WORD, 0, 0, PACKET_TYPE),
        /*  1 */ (EQUAL, 0, 3, OUTGOING as u32),        // → 5
        /*  2 */ (LOAD_WORD, 0, 0, HARDWARE_TYPE),
        /*  3 */ (EQUAL, 0, 1, LOOPBACK as u32),        // → 5
        /*  4 */ DROP,
        /*  5 */ (LOAD_WORD, 0, 0, PROTOCOL),
        /*  6 */ (EQUAL, 0, 30, 0x0800),                // not IPv4 → 37
        // IPv4: no later fragments.
        /*  7 */ (LOAD_HALF, 0, 0, 6),
        /*  8 */ (ANY_BIT, 0, 1, 0x1fff),               // → 10
        /*  9 */ DROP,
        /* 10 */ (LOAD_BYTE, 0, 0, 0),
        /* 11 */ (EQUAL, 0, 12, 0x45),                  // options → 24
    ];
    /* 12 */ program.extend(transport(LOAD_BYTE, LOAD_HALF, 9, 20));
    /* 24 */ program.push((HEADER_LENGTH, 0, 0, 0));
    /* 25 */ program.extend(transport(LOAD_BYTE_X, LOAD_HALF_X, 9, 0));
    /* 37 */ program.extend([(EQUAL, 1, 0, 0x86dd), DROP]);
    /* 39 */ program.extend(transport(LOAD_BYTE, LOAD_HALF, 6, 40));
    program
}

/// In front of [`program`] where only what leaves counts.
const ONLY_OUTGOING: [Instruction; 3] = [(LOAD_WORD, 0, 0, PACKET_TYPE), (EQUAL, 1, 0, OUTGOING as u32), DROP];

/// What a packet socket is to see.
#[derive(Clone, Copy, Debug)]
pub enum Sees {
    /// Both ways, on all interfaces.
    Everything,
    /// What comes in, on all interfaces. Since Linux 4.20.
    Incoming,
    /// What goes out by the interface with this index.
    Outgoing(u32),
}

/// Opens a packet socket behind the filter. Needs CAP_NET_RAW.
pub fn packets(sees: Sees) -> io::Result<OwnedFd> {
    // Without a protocol it sees nothing yet.
    let socket = socket(AddressFamily::Packet, SockType::Datagram, FLAGS, None)?;
    let first: &[_] = if matches!(sees, Sees::Outgoing(_)) { &ONLY_OUTGOING } else { &[] };
    attach(&socket, first.iter().copied().chain(program()))?;
    if matches!(sees, Sees::Incoming) {
        set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
    }
    let interface = if let Sees::Outgoing(interface) = sees { interface } else { 0 };
    // SAFETY: zeroed is a valid value of this plain C struct.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = interface as i32;
    // SAFETY: `address` outlives the call, which reads as many bytes as it is told.
    let result = unsafe {
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length)
    };
    if result == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Opens a socket that is given a copy of each UDP datagram that comes in and is DNS. Of IPv4 it reads the
/// IP header too, of IPv6 it does not. Needs CAP_NET_RAW.
pub fn datagrams(family: AddressFamily) -> io::Result<OwnedFd> {
    let socket = socket(family, SockType::Raw, FLAGS, SockProtocol::Udp)?;
    let (load, first) =
        if family == AddressFamily::Inet { (LOAD_HALF_X, Some((HEADER_LENGTH, 0, 0, 0))) } else { (LOAD_HALF, None) };
    attach(&socket, first.into_iter().chain(port_53(load, 0)))?;
    if family == AddressFamily::Inet6 {
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    Ok(socket)
}

fn attach(socket: &OwnedFd, program: impl Iterator<Item = Instruction>) -> io::Result<()> {
    let mut program: Vec<_> = program.map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // `filter` points to `program`, which outlives the call.
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)?;
    // Best effort: the kernel caps it at net.core.rmem_max.
    let _ = setsockopt(socket, sockopt::RcvBuf, &(2 << 20));
    Ok(())
}

fn set<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` outlives the call, which reads as many bytes as it is told.
    let result = unsafe {
        let length = size_of::<T>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Packets that the kernel dropped because the packet socket's buffer was full, since the last call.
pub fn dropped_packets(socket: &OwnedFd) -> u64 {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    if get(socket, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut statistics) {
        u64::from(statistics.tp_drops)
    } else {
        0
    }
}

/// Datagrams that the kernel dropped because the raw socket's buffer was full, since it was opened.
pub fn dropped_datagrams(socket: &OwnedFd) -> u64 {
    // `SK_MEMINFO_VARS` values of include/uapi/linux/sock_diag.h, of which `SK_MEMINFO_DROPS` is the last.
    let mut values = [0_u32; 9];
    if get(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut values) { u64::from(values[8]) } else { 0 }
}

fn get<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &mut T) -> bool {
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` and `length` outlive the call, which writes at most `length` bytes.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, std::ptr::from_mut(value).cast(), &raw mut length)
    };
    result == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::MsgFlags;
    use std::os::unix::net::UnixDatagram;

    /// Whether the kernel lets these bytes through a filter.
    fn passes(program: &[Instruction], bytes: &[u8]) -> bool {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        let receiver = OwnedFd::from(receiver);
        attach(&receiver, program.iter().copied()).unwrap();
        // Who sends is not told what a filter drops.
        sender.send(bytes).unwrap();
        let mut buffer = [0; 128];
        nix::sys::socket::recv(receiver.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok()
    }

    fn four(options: usize, fragment: u16, protocol: u8, header: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 20 + options];
        bytes[0] = 0x45 + (options / 4) as u8;
        bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
        bytes[9] = protocol;
        bytes.extend(header);
        bytes
    }

    fn six(protocol: u8, header: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 40];
        (bytes[0], bytes[6]) = (0x60, protocol);
        bytes.extend(header);
        bytes
    }

    fn header(source: u16, destination: u16, flags: u8) -> Vec<u8> {
        let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        bytes.resize(20, 0);
        bytes[13] = flags;
        bytes
    }

    #[test]
    fn each_part_of_the_filter_passes_syn_and_dns_and_nothing_else() {
        let program = program();
        // What comes before looks at what only a packet has; each part ends by itself.
        let (v4, v6) = (&program[7..37], &program[39..]);
        for (protocol, source, destination, flags, kept) in [
            (6, 40_000, 443, 0x02, true),
            (6, 443, 40_000, 0x12, true),
            (6, 40_000, 443, 0x18, false),
            (6, 40_000, 53, 0x10, false),
            (6, 40_000, 53, 0x18, true),
            (6, 53, 40_000, 0x18, true),
            (17, 40_000, 53, 0, true),
            (17, 53, 40_000, 0, true),
            (17, 40_000, 443, 0x02, false),
            (1, 40_000, 53, 0x02, false),
        ] {
            let header = header(source, destination, flags);
            let said = format!("{protocol} {source} {destination} {flags:x}");
            assert_eq!(passes(v4, &four(0, 0, protocol, &header)), kept, "{said}");
            assert_eq!(passes(v4, &four(12, 0, protocol, &header)), kept, "{said}, with options");
            assert_eq!(passes(v4, &four(0, 0x4000, protocol, &header)), kept, "{said}, not to be cut");
            assert!(!passes(v4, &four(0, 0x00b9, protocol, &header)), "{said}, a later fragment");
            assert_eq!(passes(v6, &six(protocol, &header)), kept, "{said}, IPv6");
        }
        for (source, kept) in [(53, true), (54, false)] {
            assert_eq!(passes(&port_53(LOAD_HALF, 0), &header(source, 1, 0)), kept);
            assert_eq!(passes(&port_53(LOAD_HALF, 0), &header(1, source, 0)), kept);
        }
    }
}
