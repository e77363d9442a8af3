//! The two clocks: events carry time since boot, findings carry time of day.

fn read(clock: libc::clockid_t) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that lives for the call, which the kernel fills.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    // It fails only for clocks that do not exist; both exist since Linux 2.6.39.
    if result == 0 { time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec) } else { 0 }
}

/// Nanoseconds since boot, suspended time included, as events carry it.
pub fn since_boot() -> u64 {
    u64::try_from(read(libc::CLOCK_BOOTTIME)).unwrap_or(0)
}

/// Time of day minus time since boot, nanoseconds.
pub fn boot_offset() -> i64 {
    read(libc::CLOCK_REALTIME).saturating_sub(read(libc::CLOCK_BOOTTIME))
}
