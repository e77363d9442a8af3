//! The record of a DNS message over UDP, seen from the asking side: a question as it leaves for
//! port 53, an answer as it reaches who asked. `datagram` or, where that cannot be had, `packet`
//! makes it.

use core::mem::size_of;
use tasuki_probe_abi::{Actor, Address, DNS_PAYLOAD, DnsRecord, Filter, Kind};

use crate::count::Outcome;
use crate::kernel::{header, opaque, setting};
use crate::output::{DNS, wake};

const PORT: u16 = 53;
/// Of an answer so much is enough: the question and, where it is short, the first addresses.
const ENOUGH: u32 = 64;
/// Length of a UDP header, bytes (RFC 768).
pub const UDP_HEADER: u32 = 8;

/// Whether these ports are those of a question that was sent, or of an answer that was received.
#[inline(always)]
pub fn is_asked(answer: bool, source: u16, destination: u16) -> bool {
    if answer { source == PORT } else { destination == PORT }
}

/// One message, without what it says.
pub struct Message {
    /// The asking process.
    pub who: Actor,
    pub answer: bool,
    pub sender: Address,
    pub receiver: Address,
    /// Bytes that it has.
    pub length: u32,
    /// Bytes of them that can be read.
    pub readable: u32,
}

/// Sends the record. `copy` puts so many bytes (1 to [`DNS_PAYLOAD`]) of the message at a place,
/// and says whether it could.
#[inline(always)]
pub fn send(message: &Message, copy: impl FnOnce(*mut u8, u32) -> bool) -> Outcome {
    let own = setting!(own_pid);
    if own != 0 && message.who.pid == own {
        return Outcome::Filtered(Filter::Own);
    }
    let wanted = if message.length > DNS_PAYLOAD as u32 { DNS_PAYLOAD as u32 } else { message.length };
    if message.readable < wanted && !(message.answer && message.readable >= ENOUGH) {
        return Outcome::Unreadable;
    }
    // Reserved whole: these hooks can be preempted, so a shared scratch buffer would not do.
    let Some(mut entry) = DNS.reserve::<DnsRecord>(0) else { return Outcome::RingFull };
    let record = entry.as_mut_ptr();
    let (server, client) =
        if message.answer { (message.sender, message.receiver) } else { (message.receiver, message.sender) };
    let captured = if message.readable > DNS_PAYLOAD as u32 { DNS_PAYLOAD as u32 } else { message.readable };
    // SAFETY: the ring gave the room for a whole record, and each field is written once.
    let got = unsafe {
        (&raw mut (*record).header).write(header(Kind::Dns, size_of::<DnsRecord>(), message.who));
        (&raw mut (*record).server).write(server);
        (&raw mut (*record).client).write(client);
        (&raw mut (*record).length).write(message.length as u16);
        (&raw mut (*record).answer).write(u8::from(message.answer));
        (&raw mut (*record).reserved).write([0; 3]);
        let payload = (&raw mut (*record).payload).cast();
        // 1 to 512 whatever `captured` is, in a form that the verifier can follow.
        let bounded = (opaque(u64::from(captured).wrapping_sub(1)) & (DNS_PAYLOAD as u64 - 1)) + 1;
        captured > 0 && copy(payload, bounded as u32)
    };
    // SAFETY: as above.
    unsafe { (&raw mut (*record).captured).write(if got { captured as u16 } else { 0 }) };
    entry.submit(wake());
    Outcome::Submitted
}
