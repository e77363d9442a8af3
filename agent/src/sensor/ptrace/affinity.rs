//! Which core the tracer runs on.
//!
//! A process that starts one program after the other and waits for each stops at every step, and each stop wakes the
//! tracer, and then the process again, on a core that has fallen asleep meanwhile: that costs more than what the tracer
//! does. So while every exec is met on one core, the tracer stays there. It leaves as soon as one is met elsewhere, none
//! is met any more, or it has to wait for its turn: another core may be free.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Execs in a row that were met on one core before the tracer goes there.
const ROW: u32 = 32;
/// How long the tracer may wait for its turn on the core, on average. In a loop of short programs that has the core for
/// itself it is some 10 µs.
const WAITED: Duration = Duration::from_micros(200);
/// Time over which its waiting is added up, and without an exec after which it leaves.
const SPAN: Duration = Duration::from_millis(100);
/// So long after it had to wait it goes nowhere.
const PAUSE: Duration = Duration::from_secs(60);

/// How long and how often a thread waited for a processor in its life.
#[derive(Clone, Copy, Debug, Default)]
struct Waited {
    time: Duration,
    times: u32,
}

/// Where the calling thread runs.
pub struct Affinity {
    /// Where it may run by itself; `None` where there is nothing to choose.
    anywhere: Option<CpuSet>,
    /// The last core on which an exec was met, and how many in a row.
    row: (u32, u32),
    /// Since when it stays where it is, and what it had waited by then.
    stays: Option<(Instant, Waited)>,
    /// Whether an exec was met since then.
    needed: bool,
    not_before: Instant,
    statistics: Option<File>,
}

impl Affinity {
    /// Of the calling thread, which stays nowhere yet.
    pub fn new() -> Self {
        let anywhere = sched_getaffinity(None).ok().filter(|cores| cores.count() > 1);
        let statistics = File::open("/proc/thread-self/schedstat").ok();
        Self { anywhere, row: (0, 0), stays: None, needed: false, not_before: Instant::now(), statistics }
    }

    /// An exec was met on this core.
    pub fn met(&mut self, core: u32) {
        if core != self.row.0 {
            self.leave();
            self.row = (core, 0);
        }
        self.row.1 = self.row.1.saturating_add(1);
        self.needed = true;
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

    /// Called from time to time.
    pub fn look(&mut self, now: Instant) {
        let Some((since, before)) = self.stays else { return };
        if now.duration_since(since) < SPAN {
            return;
        }
        if !std::mem::take(&mut self.needed) {
            return self.leave();
        }
        let fits = |after: Waited| {
            after.time.saturating_sub(before.time) <= WAITED * after.times.saturating_sub(before.times).max(1)
        };
        match self.waited() {
            Some(waited) if fits(waited) => self.stays = Some((now, waited)),
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

    /// Of this thread: the second and third number of Documentation/scheduler/sched-stats.rst. `None` where the kernel
    /// does not count them.
    fn waited(&self) -> Option<Waited> {
        let mut text = [0_u8; 64];
        let count = self.statistics.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..count)?).ok()?;
        let mut numbers = text.split_ascii_whitespace().map(|text| text.parse::<u64>().ok()).skip(1);
        let (time, times) = (numbers.next()??, numbers.next()??);
        Some(Waited { time: Duration::from_nanos(time), times: times as u32 })
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
        if affinity.waited().is_none() {
            return;
        }
        let met = |affinity: &mut Affinity, on: usize, times: u32| (0..times).for_each(|_| affinity.met(on as u32));
        met(&mut affinity, second, ROW - 1);
        assert_eq!(cores(), all);
        met(&mut affinity, second, 1);
        assert_eq!(cores(), [second]);
        met(&mut affinity, first, 1);
        assert_eq!(cores(), all, "something stopped elsewhere");
        met(&mut affinity, first, ROW);
        assert_eq!(cores(), [first]);
        // A second later, 100 µs each time.
        affinity.stays =
            Some((Instant::now() - Duration::from_secs(1), Waited { time: Duration::from_secs(2), times: 50 }));
        affinity.statistics = Some(statistics("5 2001000000 60"));
        affinity.look(Instant::now());
        assert_eq!(cores(), [first]);
        affinity.look(Instant::now() + SPAN);
        assert_eq!(cores(), all, "no program was started any more");
    }

    #[test]
    fn where_it_has_to_wait_it_goes_and_stays_away_for_a_while() {
        let all = cores();
        let [first, _, ..] = all[..] else { return };
        let mut affinity = Affinity::new();
        if affinity.waited().is_none() {
            return;
        }
        (0..ROW).for_each(|_| affinity.met(first as u32));
        assert_eq!(cores(), [first]);
        // A millisecond each time.
        affinity.stays = Some((Instant::now() - SPAN, Waited { time: Duration::from_secs(2), times: 50 }));
        affinity.statistics = Some(statistics("5 2010000000 60"));
        affinity.look(Instant::now());
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
