//! DNS messages among all packets of all sockets: for kernels where `datagram` cannot be had.
//! Always allows.

use aya_ebpf::{
    helpers::generated::{bpf_get_socket_cookie, bpf_sk_fullsock, bpf_skb_load_bytes},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use tasuki_probe_abi::{Address, Family, UDP};

use crate::count::count;
use crate::dns::{self, Message, UDP_HEADER};
use crate::kernel::{actor, current};
use crate::owner;
use crate::socket::v4;

const ALLOW: i32 = 1;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: u32 = 40;
/// More fragments or an offset: what follows is not a whole UDP message (RFC 791).
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// include/linux/net.h
const SOCK_RAW: u32 = 3;

/// Packets that leave a socket of the cgroup. Needs 4.10.
#[cgroup_skb(egress)]
pub fn packet_out(ctx: SkBuffContext) -> i32 {
    look(&ctx, false);
    ALLOW
}

/// Packets that reach a socket of the cgroup. Needs 4.10.
#[cgroup_skb(ingress)]
pub fn packet_in(ctx: SkBuffContext) -> i32 {
    look(&ctx, true);
    ALLOW
}

/// Whether the packet is a UDP message, or the start of one: where its IP header ends, and whether
/// it is IPv6. Looks at the packet in place, since every packet of every connection comes here.
#[inline(always)]
fn datagram(ctx: &SkBuffContext) -> Option<(u32, bool)> {
    // SAFETY: the context is live.
    let (start, end) = unsafe { ((*ctx.skb.skb).data as usize, (*ctx.skb.skb).data_end as usize) };
    // The packet begins at its network header in these hooks, and the kernel has both headers in one piece.
    if start + IPV4_HEADER > end {
        return None;
    }
    let header = start as *const u8;
    // SAFETY: so many bytes were found to be there.
    let (first, six, four) = unsafe { (*header, *header.add(6), *header.add(9)) };
    match first >> 4 {
        4 if four == UDP => {
            // SAFETY: as above; `six` is the first byte of the fragment's place.
            let place = u16::from_be_bytes([six, unsafe { *header.add(7) }]);
            (place & FRAGMENT_OFFSET == 0).then_some((u32::from(first & 15) * 4, false))
        }
        6 if six == UDP => Some((IPV6_HEADER, true)),
        _ => None,
    }
}

#[inline(always)]
fn port(ctx: &SkBuffContext, offset: u32) -> u16 {
    u16::from_be(ctx.load::<u16>(offset as usize).unwrap_or_default())
}

/// Whether a raw socket is given a copy of what another socket receives, as that of an agent beside the application is.
#[inline(always)]
fn is_copy(ctx: &SkBuffContext) -> bool {
    // SAFETY: the context is live, and the helper's answer is looked at before it is used.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return false;
        }
        let socket = bpf_sk_fullsock(socket);
        !socket.is_null() && (*socket).type_ == SOCK_RAW
    }
}

#[inline(always)]
fn look(ctx: &SkBuffContext, answer: bool) {
    let Some((transport, six)) = datagram(ctx) else { return };
    let (source, destination) = (port(ctx, transport), port(ctx, transport + 2));
    if !dns::is_asked(answer, source, destination) || (answer && is_copy(ctx)) {
        return;
    }
    // SAFETY: the context is live.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    // An answer comes in an interrupt, in whatever task that met.
    let who = if answer {
        owner::of_socket(cookie)
    } else {
        let who = actor(current());
        owner::set_socket(cookie, who);
        who
    };
    let body = transport + UDP_HEADER;
    let length = ctx.len().saturating_sub(body);
    let (from, to) = if six { (8, 24) } else { (12, 16) };
    let message = Message {
        who,
        answer,
        sender: address(ctx, six, from, source),
        receiver: address(ctx, six, to, destination),
        length,
        readable: length,
    };
    // SAFETY: the context is live, and the caller gives the room.
    let copy = |to: *mut u8, count| unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), body, to.cast(), count) == 0 };
    count(Family::Dns, dns::send(&message, copy));
}

#[inline(always)]
fn address(ctx: &SkBuffContext, six: bool, at: u32, port: u16) -> Address {
    if six {
        return Address { bytes: ctx.load(at as usize).unwrap_or_default(), port, family: 6 };
    }
    v4(ctx.load(at as usize).unwrap_or_default(), port)
}
