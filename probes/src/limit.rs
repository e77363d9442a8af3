//! In-kernel limits: a share of events per cgroup, and one report per task and destination.

use aya_ebpf::{macros::map, maps::LruHashMap};
use tasuki_probe_abi::{Actor, Address};

use crate::kernel::{now, setting};

/// Tokens of one cgroup, in nanoseconds of "time that may be spent" so that no division is lost.
#[derive(Clone, Copy)]
#[repr(C)]
struct Bucket {
    credit: u64,
    last: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct BucketKey {
    cgroup: u64,
    family: u64,
}

/// A cgroup that falls out is given a full bucket when it comes back.
#[map]
static BUCKETS: LruHashMap<BucketKey, Bucket> = LruHashMap::with_max_entries(4096, 0);

#[derive(Clone, Copy)]
#[repr(C)]
struct Destination {
    start: u64,
    pid: u32,
    transport: u32,
    address: Address,
    reserved: u32,
}

/// When a task last asked for a destination. One that falls out is reported again.
#[map]
static DESTINATIONS: LruHashMap<Destination, u64> = LruHashMap::with_max_entries(16384, 0);

/// Whether the cgroup may send one more event of this family. Two CPUs that race may let one
/// event too many through: a limit, not an account.
#[inline(always)]
pub fn within_rate(cgroup: u64, family: u32) -> bool {
    let rate = setting!(process_rate);
    if rate == 0 {
        return true;
    }
    let price = 1_000_000_000 / rate;
    let most = price * setting!(process_burst);
    let time = now();
    let key = BucketKey { cgroup, family: u64::from(family) };
    if let Some(bucket) = BUCKETS.get_ptr_mut(&key) {
        // SAFETY: the map gave the pointer.
        let bucket = unsafe { &mut *bucket };
        let mut credit = bucket.credit + time.saturating_sub(bucket.last);
        if credit > most {
            credit = most;
        }
        bucket.last = time;
        let enough = credit >= price;
        bucket.credit = if enough { credit - price } else { credit };
        return enough;
    }
    // A full map must not silence anyone.
    let _ = BUCKETS.insert(&key, &Bucket { credit: most.saturating_sub(price), last: time }, 0);
    true
}

/// Whether this task asked for this destination within the window; remembers it if not.
#[inline(always)]
pub fn is_repeat(actor: &Actor, transport: u8, remote: &Address) -> bool {
    let window = setting!(connect_window);
    if window == 0 {
        return false;
    }
    let time = now();
    let key = Destination {
        start: actor.start,
        pid: actor.pid,
        transport: u32::from(transport),
        address: *remote,
        reserved: 0,
    };
    if let Some(last) = DESTINATIONS.get_ptr_mut(&key) {
        // SAFETY: the map gave the pointer.
        let last = unsafe { &mut *last };
        if time.saturating_sub(*last) < window {
            return true;
        }
        *last = time;
        return false;
    }
    let _ = DESTINATIONS.insert(&key, &time, 0);
    false
}
