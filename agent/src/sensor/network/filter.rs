//! A packet socket and its classic BPF filter: DNS, SYN and SYN-ACK, nothing else.
//!
//! The kernel drops all other packets before they are copied, so a busy service costs nothing but
//! the filter itself. IPv6 extension headers are not followed, nor are later fragments seen.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

/// `ARPHRD_LOOPBACK` of include/uapi/linux/if_arp.h.
pub const LOOPBACK: u16 = 772;
/// `PACKET_OUTGOING` of include/uapi/linux/if_packet.h.
pub const OUTGOING: u8 = 4;
/// Bytes of a packet that are kept: 512 of DNS behind any header.
pub const SNAP: usize = 1024;

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
const SET_X: u16 = (libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const GO: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// (code, jump if true, jump if false, constant): jumps count instructions behind the next one.
#[rustfmt::skip]
const PROGRAM: [(u16, u8, u8, u32); 29] = [
    // Loopback shows each packet twice: on its way out, and in. The second is enough.
    /*  0 */ (LOAD_WORD, 0, 0, PACKET_TYPE),
    /*  1 */ (EQUAL, 0, 2, OUTGOING as u32),
    /*  2 */ (LOAD_WORD, 0, 0, HARDWARE_TYPE),
    /*  3 */ (EQUAL, 24, 0, LOOPBACK as u32),           // → 28 drop
    /*  4 */ (LOAD_WORD, 0, 0, PROTOCOL),
    /*  5 */ (EQUAL, 0, 6, 0x0800),                     // not IPv4 → 12
    // IPv4: no later fragments.
    /*  6 */ (LOAD_HALF, 0, 0, 6),
    /*  7 */ (ANY_BIT, 20, 0, 0x1fff),                  // → 28 drop
    /*  8 */ (HEADER_LENGTH, 0, 0, 0),
    /*  9 */ (LOAD_BYTE, 0, 0, 9),
    /* 10 */ (GO, 0, 0, 4),                             // → 15
    /* 11 */ (RETURN, 0, 0, 0),
    /* 12 */ (EQUAL, 0, 15, 0x86dd),                    // → 28 drop
    /* 13 */ (SET_X, 0, 0, 40),
    /* 14 */ (LOAD_BYTE, 0, 0, 6),
    // The protocol is loaded, X is the length of the IP header.
    /* 15 */ (EQUAL, 6, 0, 17),                         // UDP → 22
    /* 16 */ (EQUAL, 0, 11, 6),                         // not TCP → 28 drop
    /* 17 */ (LOAD_BYTE_X, 0, 0, 13),
    /* 18 */ (ANY_BIT, 8, 0, 0x02),                     // SYN → 27 keep
    /* 19 */ (ANY_BIT, 0, 8, 0x08),                     // TCP without PSH carries no whole message → 28
    /* 20 */ (GO, 0, 0, 1),                             // → 22
    /* 21 */ (RETURN, 0, 0, 0),
    // Port 53 on either side.
    /* 22 */ (LOAD_HALF_X, 0, 0, 0),
    /* 23 */ (EQUAL, 3, 0, 53),                         // → 27 keep
    /* 24 */ (LOAD_HALF_X, 0, 0, 2),
    /* 25 */ (EQUAL, 1, 2, 53),                         // → 27 keep, 28 drop
    /* 26 */ (RETURN, 0, 0, 0),
    /* 27 */ (RETURN, 0, 0, SNAP as u32),
    /* 28 */ (RETURN, 0, 0, 0),
];

/// In front of [`PROGRAM`] where only what leaves counts.
const ONLY_OUTGOING: [(u16, u8, u8, u32); 3] =
    [(LOAD_WORD, 0, 0, PACKET_TYPE), (EQUAL, 1, 0, OUTGOING as u32), (RETURN, 0, 0, 0)];

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
pub fn open(sees: Sees) -> io::Result<OwnedFd> {
    // Without a protocol it sees nothing yet.
    let socket =
        socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    let first: &[_] = if matches!(sees, Sees::Outgoing(_)) { &ONLY_OUTGOING } else { &[] };
    let instruction = |&(code, jt, jf, k): &(u16, u8, u8, u32)| libc::sock_filter { code, jt, jf, k };
    let mut program: Vec<_> = first.iter().chain(&PROGRAM).map(instruction).collect();
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // `filter` points to `program`, which outlives the call.
    set(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)?;
    if matches!(sees, Sees::Incoming) {
        set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
    }
    // Best effort: the kernel caps it at net.core.rmem_max.
    let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &(2 << 20));
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

fn set<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` outlives the call, which reads as many bytes as it is told.
    let result = unsafe {
        let length = size_of::<T>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Packets that the kernel dropped because the socket's buffer was full, since the last call.
pub fn drops(socket: &OwnedFd) -> u64 {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: `statistics` and `length` outlive the call, which writes at most `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if result == 0 { u64::from(statistics.tp_drops) } else { 0 }
}
