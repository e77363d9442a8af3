//! Who a socket belongs to, for hooks that run in somebody else's task.

use aya_ebpf::{macros::map, maps::LruHashMap};
use tasuki_probe_abi::Actor;

#[derive(Clone, Copy)]
#[repr(C)]
struct Port {
    /// Address of the network namespace.
    network: u64,
    port: u64,
}

/// The process that called listen(); forgotten when newer listeners need the room.
#[map]
static LISTENERS: LruHashMap<Port, Actor> = LruHashMap::with_max_entries(4096, 0);

/// The process that last sent through a socket, by socket cookie.
#[map]
static SENDERS: LruHashMap<u64, Actor> = LruHashMap::with_max_entries(8192, 0);

/// Owner of a listening port; all zero where unknown.
#[inline(always)]
pub fn of_port(network: u64, port: u16) -> Actor {
    // SAFETY: the value is copied out at once; a race gives another whole process's or a mixed
    // one only while the same port changes hands.
    unsafe { LISTENERS.get(&Port { network, port: u64::from(port) }) }.copied().unwrap_or_default()
}

/// Remembers the owner of a listening port.
#[inline(always)]
pub fn set_port(network: u64, port: u16, who: Actor) {
    let _ = LISTENERS.insert(&Port { network, port: u64::from(port) }, &who, 0);
}

/// Who last sent through the socket; all zero where unknown.
#[inline(always)]
pub fn of_socket(cookie: u64) -> Actor {
    // SAFETY: as in `of_port`.
    unsafe { SENDERS.get(&cookie) }.copied().unwrap_or_default()
}

/// Remembers who sent through the socket.
#[inline(always)]
pub fn set_socket(cookie: u64, who: Actor) {
    let _ = SENDERS.insert(&cookie, &who, 0);
}
