//! Which core the tracer runs on.
//!
//! A process that starts one program after the other and waits for each stops at every step, and each stop wakes the
//! tracer, and then the process again, on a core that has fallen asleep meanwhile: that costs more than what the tracer
//! does. So while every exec is met on one core, the tracer stays there. It leaves as soon as one is met elsewhere,
//! nothing stops any more, or it has to wait for its turn: another core may be free.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Execs in a row that were met on one core before the tracer goes there.
const ROW: u32 = 32;
/// Share of [`SPAN`] that the tracer may wait for its turn on the core: a quarter. In a loop of short programs it is some 7 %.
const WAITED: u32 = 4;
/// Time over which its waiting is added up.
const SPAN: Duration = Duration::from_millis(100);
/// So long after it had to wait it goes nowhere.
const PAUSE: Duration = Duration::from_secs(60);

/// Where the calling thread runs.
pub struct Affinity {
    /// Where it may run by itself; `None` where there is nothing to choose.
    anywhere: Option<CpuSet>,
    /// The last core on which an exec was met, and how many in a row.
    row: (u32, u32),
    /// Since when it stays where it is, and how long it had waited in its life by then.
    stays: Option<(Instant, Duration)>,
    not_before: Instant,
    statistics: Option<File>,
}

impl Affinity {
    /// Of the calling thread, which stays nowhere yet.
    pub fn new() -> Self {
        let anywhere = sched_getaffinity(None).ok().filter(|cores| cores.count() > 1);
        let statistics = File::open("/proc/thread-self/schedstat").ok();
        Self { anywhere, row: (0, 0), stays: None, not_before: Instant::now(), statistics }
    }

    /// An exec was met on this core.
    pub fn met(&mut self, core: u32) {
        if core != self.row.0 {
            self.leave();
            self.row = (core, 0);
        }
        self.row.1 = self.row.1.saturating_add(1);
        if self.stays.is_none() && self.row.1.is_multiple_of(ROW) {
            self.stay(core);
        }
    }

    fn stay(&mut self, core: u32) {
        let now = Instant::now();
        let Some(anywhere) = &self.anywhere else { return };
        let (core, Some(waited)) = (core as usize, self.waited()) else { return };
        if now < self.not_before || core >= CpuSet::MAX_CPU || !anywhere.is_set(core) {
            return;
        }
        let mut one = CpuSet::new();
        one.set(core);
        if sched_setaffinity(None, &one).is_ok() {
            self.stays = Some((now, waited));
        }
    }

    /// Called from time to time; `calm` where nothing has stopped for a while.
    pub fn look(&mut self, now: Instant, calm: bool) {
        let Some((since, before)) = self.stays else { return };
        if calm {
            return self.leave();
        }
        let span = now.duration_since(since);
        if span < SPAN {
            return;
        }
        match self.waited() {
            Some(waited) if waited.saturating_sub(before) <= span / WAITED => self.stays = Some((now, waited)),
            _ => {
                self.not_before = now + PAUSE;
                self.leave();
            }
        }
    }

    fn leave(&mut self) {
        self.row.1 = 0;
        if self.stays.take().is_some()
            && let Some(anywhere) = &self.anywhere
        {
            // Was allowed when it was read; the kernel leaves out what no longer is.
            let _ = sched_setaffinity(None, anywhere);
        }
    }

    /// How long this thread has waited for a processor in its life: the second number of
    /// Documentation/scheduler/sched-stats.rst. `None` where the kernel does not count it.
    fn waited(&self) -> Option<Duration> {
        let mut text = [0_u8; 64];
        let count = self.statistics.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..count)?).ok()?;
        Some(Duration::from_nanos(text.split_ascii_whitespace().nth(1)?.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
    }

    #[test]
    fn the_thread_goes_where_everything_stops_and_leaves_again() {
        let all = cores();
        // On one core there is nothing to choose.
        let [first, second, ..] = all[..] else { return };
        let mut affinity = Affinity::new();
        let met = |affinity: &mut Affinity, on: usize, times: u32| (0..times).for_each(|_| affinity.met(on as u32));
        met(&mut affinity, second, ROW - 1);
        assert_eq!(cores(), all);
        met(&mut affinity, second, 1);
        assert_eq!(cores(), [second]);
        met(&mut affinity, first, 1);
        assert_eq!(cores(), all, "something stopped elsewhere");
        met(&mut affinity, first, ROW);
        assert_eq!(cores(), [first]);
        let waited = affinity.waited().unwrap();
        // A second later, without a moment of waiting.
        affinity.stays = Some((Instant::now() - Duration::from_secs(1), waited));
        affinity.look(Instant::now(), false);
        assert_eq!(cores(), [first]);
        affinity.look(Instant::now() + Duration::from_secs(3600), true);
        assert_eq!(cores(), all, "nothing stops any more");
    }

    #[test]
    fn where_it_has_to_wait_it_goes_and_stays_away_for_a_while() {
        let all = cores();
        let [first, _, ..] = all[..] else { return };
        let mut affinity = Affinity::new();
        (0..ROW).for_each(|_| affinity.met(first as u32));
        assert_eq!(cores(), [first]);
        // It has waited for longer than it lives.
        affinity.stays = Some((Instant::now() - SPAN, Duration::ZERO));
        affinity.statistics = Some(statistics("5 7000000000 3"));
        affinity.look(Instant::now(), false);
        assert_eq!(cores(), all);
        (0..2 * ROW).for_each(|_| affinity.met(first as u32));
        assert_eq!(cores(), all);
    }

    #[test]
    fn without_the_kernels_count_it_goes_nowhere() {
        let all = cores();
        let mut affinity = Affinity::new();
        affinity.statistics = Some(statistics("nothing"));
        (0..2 * ROW).for_each(|_| affinity.met(all[0] as u32));
        assert_eq!(cores(), all);
    }

    fn statistics(text: &str) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(text.as_bytes(), 0).unwrap();
        file
    }
}
