//! The balance of every family of the `ebpf` sensor, under load and at the end. Needs root and BTF.
//!
//! A binary of its own: a child that another test has forked holds the programs' descriptors until
//! it execs, so that they would outlive a stop by a moment.

// Helpers of tests may stop the test; clippy knows that only of functions marked #[test].
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tasuki_agent::event::{Event, EventKind};
use tasuki_agent::sensor::Sensor;
use tasuki_agent::sensor::ebpf::{EbpfSensor, Options, RingSizes};
use tasuki_api::agent::Counters;

const DEADLINE: Duration = Duration::from_secs(20);

/// One test at a time, for the reason above.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn everything() -> Options {
    Options { connect_window: Duration::ZERO, process_rate: 0, skip_own: false, ..Options::default() }
}

fn start(options: Options) -> (EbpfSensor, Receiver<Vec<Event>>) {
    let (output, input) = sync_channel(1024);
    let sensor = EbpfSensor::start(&options, output).expect("the ebpf sensor needs root and BTF");
    assert!(sensor.state().whole, "{:?}", sensor.state().detail);
    (sensor, input)
}

fn counters(sensor: &EbpfSensor, name: &str) -> Counters {
    sensor.families().into_iter().find(|family| family.name == name).unwrap().counters
}

fn balanced(counters: &Counters) -> bool {
    counters.seen == counters.submitted + counters.filtered + counters.lost()
}

fn storm(count: usize) {
    for _ in 0..count {
        assert!(Command::new("/bin/true").status().unwrap().success());
    }
}

#[test]
fn a_full_ring_is_counted_and_the_balance_is_exact() {
    let _alone = alone();
    // Nobody takes events: the reader stands still after its first batch, and the ring fills.
    let (output, input) = sync_channel(0);
    let tiny = RingSizes { process: 4096, network: 4096, dns: 4096 };
    let options = Options { rings: Some(tiny), ..everything() };
    let mut sensor = EbpfSensor::start(&options, output).unwrap();
    storm(100);
    sensor.stop();
    drop(input);
    for family in sensor.families() {
        assert!(balanced(&family.counters), "{}: {:?}", family.name, family.counters);
        assert_eq!(family.problem.as_deref(), Some("the sensor was stopped"));
    }
    let exec = sensor.families().into_iter().find(|family| family.name == "exec").unwrap().counters;
    assert!(exec.ring_full > 0, "{exec:?} {:?}", sensor.families());
    assert!(exec.seen >= 100, "{exec:?}");
    assert_eq!(exec.lost(), exec.ring_full);
}

#[test]
fn everything_that_was_submitted_is_delivered() {
    let _alone = alone();
    let (mut sensor, input) = start(everything());
    storm(300);
    sensor.stop();
    let seen: Vec<Event> = input.try_iter().flatten().collect();
    let count = |pick: fn(&EventKind) -> bool| seen.iter().filter(|event| pick(&event.kind)).count() as u64;
    for (name, events) in [
        ("exec", count(|kind| matches!(kind, EventKind::Exec(_)))),
        ("fork", count(|kind| matches!(kind, EventKind::Fork { .. }))),
        ("exit", count(|kind| matches!(kind, EventKind::Exit { .. }))),
        ("connect", count(|kind| matches!(kind, EventKind::Connect(_)))),
        ("accept", count(|kind| matches!(kind, EventKind::Accept(_)))),
        ("listen", count(|kind| matches!(kind, EventKind::Listen { .. }))),
        ("dns", count(|kind| matches!(kind, EventKind::Dns(_)))),
    ] {
        let counted = counters(&sensor, name);
        assert!(balanced(&counted), "{name}: {counted:?}");
        assert_eq!((counted.submitted, counted.lost()), (events, 0), "{name}: {counted:?}");
    }
    assert!(counters(&sensor, "exec").submitted >= 300);
    assert!(seen.windows(2).filter(|two| two[0].time > two[1].time).count() < seen.len() / 100);
}

#[test]
fn a_cgroup_beyond_its_rate_is_filtered_by_name() {
    let options = Options { process_rate: 1, process_burst: 5, ..everything() };
    let _alone = alone();
    let (mut sensor, _input) = start(options);
    storm(50);
    sensor.stop();
    let filtered = sensor.filtered();
    let exec = filtered.iter().find(|(name, _)| *name == "exec").unwrap();
    let rate = exec.1.by_name().find(|(name, _)| *name == "rate").unwrap().1;
    assert!(rate >= 30, "{rate} of 50");
    assert!(balanced(&counters(&sensor, "exec")));
}

#[test]
fn a_stopped_sensor_sees_nothing_more() {
    let _alone = alone();
    let (mut sensor, input) = start(everything());
    storm(1);
    let end = Instant::now() + DEADLINE;
    let is_exec = |batch: Vec<Event>| batch.iter().any(|event| matches!(event.kind, EventKind::Exec(_)));
    while !input.recv_timeout(end.saturating_duration_since(Instant::now())).is_ok_and(is_exec) {
        assert!(Instant::now() < end, "no exec within {DEADLINE:?}");
    }
    sensor.stop();
    let before = counters(&sensor, "exec");
    storm(3);
    assert_eq!(counters(&sensor, "exec"), before, "{:?}", sensor.families());
    assert!(!sensor.state().whole);
    sensor.stop();
}
