//! DNS over UDP, seen from the asking side: questions as they leave a socket for port 53, answers
//! as they reach one from port 53. Always allows.

use aya_ebpf::{
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use core::mem::size_of;
use tasuki_probe_abi::{Address, DNS_PAYLOAD, DnsRecord, Family, Filter, Kind, UDP};

use crate::count::{Outcome, count};
use crate::kernel::{actor, current, header, opaque, setting};
use crate::output::{DNS, WAKE};
use crate::owner;

const ALLOW: i32 = 1;
const PORT: u16 = 53;
const UDP_HEADER: u32 = 8;
const IPV6_HEADER: u32 = 40;
/// More fragments or an offset: what follows is not a whole UDP message (RFC 791).
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Packets that leave a socket of the cgroup. Needs 4.10.
#[cgroup_skb(egress)]
pub fn dns_question(ctx: SkBuffContext) -> i32 {
    look(&ctx, false);
    ALLOW
}

/// Packets that reach a socket of the cgroup. Needs 4.10.
#[cgroup_skb(ingress)]
pub fn dns_answer(ctx: SkBuffContext) -> i32 {
    look(&ctx, true);
    ALLOW
}

#[inline(always)]
fn byte(ctx: &SkBuffContext, offset: u32) -> u8 {
    ctx.load::<u8>(offset as usize).unwrap_or_default()
}

#[inline(always)]
fn port(ctx: &SkBuffContext, offset: u32) -> u16 {
    u16::from_be(ctx.load::<u16>(offset as usize).unwrap_or_default())
}

#[inline(always)]
fn look(ctx: &SkBuffContext, answer: bool) {
    // The packet begins at its network header in these hooks.
    let first = byte(ctx, 0);
    let (six, transport) = match first >> 4 {
        4 if byte(ctx, 9) == UDP => {
            if u16::from_be(ctx.load::<u16>(6).unwrap_or_default()) & FRAGMENT_OFFSET != 0 {
                return;
            }
            (false, u32::from(first & 15) * 4)
        }
        6 if byte(ctx, 6) == UDP => (true, IPV6_HEADER),
        _ => return,
    };
    let (source, destination) = (port(ctx, transport), port(ctx, transport + 2));
    if (answer && source != PORT) || (!answer && destination != PORT) {
        return;
    }
    count(Family::Dns, send(ctx, six, transport, answer, source, destination));
}

#[inline(always)]
fn address(ctx: &SkBuffContext, six: bool, at: u32, port: u16) -> Address {
    if six {
        return Address { bytes: ctx.load(at as usize).unwrap_or_default(), port, family: 6 };
    }
    let four: [u8; 4] = ctx.load(at as usize).unwrap_or_default();
    let mut out = Address { bytes: [0; 16], port, family: 4 };
    out.bytes[0] = four[0];
    out.bytes[1] = four[1];
    out.bytes[2] = four[2];
    out.bytes[3] = four[3];
    out
}

#[inline(always)]
fn send(ctx: &SkBuffContext, six: bool, transport: u32, answer: bool, source: u16, destination: u16) -> Outcome {
    // SAFETY: the context is live.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    let who = if answer {
        owner::of_socket(cookie)
    } else {
        let who = actor(current());
        owner::set_socket(cookie, who);
        who
    };
    let own = setting!(own_pid);
    if own != 0 && who.pid == own {
        return Outcome::Filtered(Filter::Own);
    }
    let body = transport + UDP_HEADER;
    let length = ctx.len().saturating_sub(body);
    let (from, to) = if six { (8, 24) } else { (12, 16) };
    let sender = address(ctx, six, from, source);
    let receiver = address(ctx, six, to, destination);
    // Reserved whole: these hooks can be preempted, so a shared scratch buffer would not do.
    let Some(mut entry) = DNS.reserve::<DnsRecord>(0) else { return Outcome::RingFull };
    let record = entry.as_mut_ptr();
    let captured = if length > DNS_PAYLOAD as u32 { DNS_PAYLOAD as u32 } else { length };
    // SAFETY: the ring gave the room for a whole record, and each field is written once.
    let got = unsafe {
        (&raw mut (*record).header).write(header(Kind::Dns, size_of::<DnsRecord>(), who));
        (&raw mut (*record).server).write(if answer { sender } else { receiver });
        (&raw mut (*record).client).write(if answer { receiver } else { sender });
        (&raw mut (*record).length).write(length as u16);
        (&raw mut (*record).answer).write(u8::from(answer));
        (&raw mut (*record).reserved).write([0; 3]);
        let payload = (&raw mut (*record).payload).cast();
        // 1 to 512 whatever `captured` is, in a form that the verifier can follow.
        let bounded = (opaque(u64::from(captured).wrapping_sub(1)) & (DNS_PAYLOAD as u64 - 1)) + 1;
        captured > 0 && bpf_skb_load_bytes(ctx.skb.skb.cast(), body, payload, bounded as u32) == 0
    };
    // SAFETY: as above.
    unsafe { (&raw mut (*record).captured).write(if got { captured as u16 } else { 0 }) };
    entry.submit(WAKE);
    Outcome::Submitted
}
