//! Processor time.

use std::time::Duration;

/// Processor time that this thread has had so far: what work costs, on a busy machine too. Zero where the system does
/// not say.
pub fn of_thread() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is that of a timespec that lives as long as the call.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    match (answer, u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec)) {
        (0, Ok(seconds), Ok(nanoseconds)) => Duration::new(seconds, nanoseconds),
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_it() {
        let before = of_thread();
        let mut sum = 0_u64;
        while of_thread() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(of_thread() > before && before > Duration::ZERO);
    }
}
