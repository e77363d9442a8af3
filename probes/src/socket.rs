//! TCP by the state of its sockets: asked for (SYN_SENT), taken (SYN_RECV to ESTABLISHED),
//! listening (LISTEN).

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use core::mem::size_of;
use tasuki_probe_abi::{Actor, Address, Family, Filter, Kind, SocketRecord, TCP};

use crate::count::{Outcome, count};
use crate::kernel::{actor, current, header, offset, read, setting};
use crate::limit::is_repeat;
use crate::output::{NETWORK, submit};
use crate::owner;

// include/net/tcp_states.h
const ESTABLISHED: i32 = 1;
const SYN_SENT: i32 = 2;
const SYN_RECV: i32 = 3;
const LISTEN: i32 = 10;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// `inet_sock_set_state(sock, old, new)`. Needs 5.8.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn socket_state(ctx: BtfTracePointContext) -> i32 {
    let sock: *const u8 = ctx.arg(0);
    let sock = sock as u64;
    let old: i32 = ctx.arg(1);
    let new: i32 = ctx.arg(2);
    // sk_protocol became a field of its own in 5.6.
    if read::<u16>(sock, offset!(sock_protocol)) != u16::from(TCP) {
        return 0;
    }
    match (old, new) {
        (_, SYN_SENT) => count(Family::Connect, connect(sock)),
        (SYN_RECV, ESTABLISHED) => count(Family::Accept, accept(sock)),
        (_, LISTEN) => count(Family::Listen, listen(sock)),
        _ => {}
    }
    0
}

#[inline(always)]
fn connect(sock: u64) -> Outcome {
    let who = actor(current());
    let remote = remote(sock);
    send(Family::Connect, Kind::Connect, who, local(sock), remote)
}

/// Runs in whatever task the packet interrupted: the owner is the one that called listen().
#[inline(always)]
fn accept(sock: u64) -> Outcome {
    let local = local(sock);
    let who = owner::of_port(read(sock, offset!(sock_net)), local.port);
    send(Family::Accept, Kind::Accept, who, local, remote(sock))
}

#[inline(always)]
fn listen(sock: u64) -> Outcome {
    let who = actor(current());
    let local = local(sock);
    owner::set_port(read(sock, offset!(sock_net)), local.port, who);
    send(Family::Listen, Kind::Listen, who, local, Address::default())
}

#[inline(always)]
fn send(family: Family, kind: Kind, who: Actor, local: Address, remote: Address) -> Outcome {
    let own = setting!(own_pid);
    if own != 0 && who.pid == own {
        return Outcome::Filtered(Filter::Own);
    }
    if matches!(family, Family::Connect) && is_repeat(&who, TCP, &remote) {
        return Outcome::Filtered(Filter::Duplicate);
    }
    submit(
        &NETWORK,
        SocketRecord {
            header: header(kind, size_of::<SocketRecord>(), who),
            local,
            remote,
            transport: TCP,
            reserved: [0; 7],
        },
    )
}

/// An IPv4 address as the kernel keeps it, in network order, and a port in the processor's.
#[inline(always)]
pub fn v4(address: u32, port: u16) -> Address {
    let mut out = Address { bytes: [0; 16], port, family: 4 };
    let bytes = address.to_ne_bytes();
    out.bytes[0] = bytes[0];
    out.bytes[1] = bytes[1];
    out.bytes[2] = bytes[2];
    out.bytes[3] = bytes[3];
    out
}

/// The other side of a socket.
#[inline(always)]
pub fn remote(sock: u64) -> Address {
    let port = u16::from_be(read::<u16>(sock, offset!(sock_dport)));
    match read::<u16>(sock, offset!(sock_family)) {
        AF_INET => v4(read(sock, offset!(sock_daddr)), port),
        AF_INET6 => Address { bytes: read(sock, offset!(sock_v6_daddr)), port, family: 6 },
        _ => Address::default(),
    }
}

/// This side of a socket.
#[inline(always)]
fn local(sock: u64) -> Address {
    let port = read::<u16>(sock, offset!(sock_num));
    match read::<u16>(sock, offset!(sock_family)) {
        AF_INET => v4(read(sock, offset!(sock_saddr)), port),
        AF_INET6 => Address { bytes: read(sock, offset!(sock_v6_saddr)), port, family: 6 },
        _ => Address::default(),
    }
}
