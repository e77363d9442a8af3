//! Destinations that a task names itself: UDP connect() and sendto(), and TCP connect() where the
//! socket tracepoint is missing. Always allows.

use aya_ebpf::{bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext};
use core::mem::size_of;
use tasuki_probe_abi::{Address, Family, Filter, Kind, SocketRecord, TCP, UDP};

use crate::count::{Outcome, count};
use crate::kernel::{actor, current, header, setting};
use crate::limit::is_repeat;
use crate::output::{NETWORK, submit};
use crate::socket::v4;

const ALLOW: i32 = 1;

/// Needs 4.17.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    met(ctx.sock_addr, false);
    ALLOW
}

/// Needs 4.17.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    met(ctx.sock_addr, true);
    ALLOW
}

/// Needs 4.18.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    met(ctx.sock_addr, false);
    ALLOW
}

/// Needs 4.18.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    met(ctx.sock_addr, true);
    ALLOW
}

#[inline(always)]
fn met(ctx: *mut bpf_sock_addr, six: bool) {
    // SAFETY: the kernel gives a live context; each field is read with its own width, as the
    // verifier asks.
    let (protocol, port) = unsafe { (load(&raw const (*ctx).protocol), load(&raw const (*ctx).user_port)) };
    let transport = if protocol == u32::from(UDP) {
        UDP
    } else if protocol == u32::from(TCP) && setting!(tcp_from_cgroup) != 0 {
        TCP
    } else {
        return;
    };
    let port = u16::from_be(port as u16);
    let remote = if six {
        let mut bytes = [0; 16];
        for index in 0..4 {
            // SAFETY: as above.
            let word = unsafe { load(&raw const (*ctx).user_ip6[index]) }.to_ne_bytes();
            bytes[index * 4] = word[0];
            bytes[index * 4 + 1] = word[1];
            bytes[index * 4 + 2] = word[2];
            bytes[index * 4 + 3] = word[3];
        }
        Address { bytes, port, family: 6 }
    } else {
        // SAFETY: as above.
        v4(unsafe { load(&raw const (*ctx).user_ip4) }, port)
    };
    count(Family::Connect, send(transport, remote));
}

/// A read that the compiler neither widens nor merges: the verifier rewrites context loads one by one.
#[inline(always)]
unsafe fn load(field: *const u32) -> u32 {
    // SAFETY: the caller's pointer is into the context.
    unsafe { core::ptr::read_volatile(field) }
}

#[inline(always)]
fn send(transport: u8, remote: Address) -> Outcome {
    let who = actor(current());
    let own = setting!(own_pid);
    if own != 0 && who.pid == own {
        return Outcome::Filtered(Filter::Own);
    }
    if is_repeat(&who, transport, &remote) {
        return Outcome::Filtered(Filter::Duplicate);
    }
    submit(
        &NETWORK,
        SocketRecord {
            header: header(Kind::Connect, size_of::<SocketRecord>(), who),
            local: Address::default(),
            remote,
            transport,
            reserved: [0; 7],
        },
    )
}
