//! DNS messages where the kernel sends and hands over datagrams: nothing else pays for it, while
//! `packet` makes every packet of every connection dearer (docs/decisions/0016).
//!
//! What is not in the packet's own buffer cannot be read here, and is counted: questions sent in parts or without
//! copying (MSG_MORE, MSG_ZEROCOPY, splice), and of an answer what its network card put into pages.

use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel,
    macros::{fentry, map},
    maps::PerCpuArray,
    programs::FEntryContext,
};
use tasuki_probe_abi::{Address, Family, UDP};

use crate::count::count;
use crate::dns::{self, Message, UDP_HEADER};
use crate::kernel::{actor, current, offset, pointer, read};
use crate::socket::v4;

/// Runs of `sent4`, `sent6` and `received`: the agent looks at them once, after a datagram of its own. A function that
/// the compiler has put into its caller can be attached to and is never met.
#[map]
static RUNS: PerCpuArray<u64> = PerCpuArray::with_max_entries(3, 0);

#[inline(always)]
fn ran(program: u32) {
    if let Some(runs) = RUNS.get_ptr_mut(program) {
        // SAFETY: the map gave the pointer. A run that a preempted one overwrites does not matter.
        unsafe { *runs += 1 };
    }
}

/// `ip_send_skb(net, skb)`: a datagram is whole, in the task that sends it. Needs 5.8, and 6.4 on ARM.
#[fentry(function = "ip_send_skb")]
pub fn sent4(ctx: FEntryContext) -> i32 {
    let packet: *const u8 = ctx.arg(1);
    ran(0);
    sent(packet as u64)
}

/// `ip6_send_skb(skb)`. Needs what `sent4` needs.
#[fentry(function = "ip6_send_skb")]
pub fn sent6(ctx: FEntryContext) -> i32 {
    let packet: *const u8 = ctx.arg(0);
    ran(1);
    sent(packet as u64)
}

/// `skb_consume_udp(sock, skb, length)`: a datagram was copied to the task that receives it; the
/// length is negative where it stays in the queue (MSG_PEEK). Needs what `sent4` needs.
#[fentry(function = "skb_consume_udp")]
pub fn received(ctx: FEntryContext) -> i32 {
    let sock: *const u8 = ctx.arg(0);
    let packet: *const u8 = ctx.arg(1);
    let length: i32 = ctx.arg(2);
    ran(2);
    if length > 0 {
        look(packet as u64, sock as u64, true);
    }
    0
}

#[inline(always)]
fn sent(packet: u64) -> i32 {
    look(packet, pointer(packet, offset!(skb_sock)), false);
    0
}

#[inline(always)]
fn look(packet: u64, sock: u64, answer: bool) {
    // Echo requests and raw sockets send by the same functions.
    if read::<u16>(sock, offset!(sock_protocol)) != u16::from(UDP) {
        return;
    }
    let head = pointer(packet, offset!(skb_head));
    let datagram = head.wrapping_add(u64::from(read::<u16>(packet, offset!(skb_transport_header))));
    let [source, destination, length, _]: [u16; 4] = read(datagram, 0);
    let (source, destination) = (u16::from_be(source), u16::from_be(destination));
    if !dns::is_asked(answer, source, destination) {
        return;
    }
    let body = datagram.wrapping_add(u64::from(UDP_HEADER));
    let length = u32::from(u16::from_be(length)).saturating_sub(UDP_HEADER);
    let end = head.wrapping_add(u64::from(read::<u32>(packet, offset!(skb_tail))));
    let held = end.saturating_sub(body);
    let network = head.wrapping_add(u64::from(read::<u16>(packet, offset!(skb_network_header))));
    let message = Message {
        who: actor(current()),
        answer,
        sender: address(network, false, source),
        receiver: address(network, true, destination),
        length,
        readable: if held < u64::from(length) { held as u32 } else { length },
    };
    // SAFETY: the helper checks the address that it reads itself, and the caller gives the room.
    let copy = |to: *mut u8, count| unsafe { bpf_probe_read_kernel(to.cast(), count, body as *const _) == 0 };
    count(Family::Dns, dns::send(&message, copy));
}

/// The sender's or the receiver's address in an IP header (RFC 791, RFC 8200).
#[inline(always)]
fn address(header: u64, receiver: bool, port: u16) -> Address {
    if read::<u8>(header, 0) >> 4 == 6 {
        return Address { bytes: read(header, if receiver { 24 } else { 8 }), port, family: 6 };
    }
    v4(read(header, if receiver { 16 } else { 12 }), port)
}
