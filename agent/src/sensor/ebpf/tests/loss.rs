//! The balance of every family, under load and at the end.

use super::*;
use std::process::Command;

fn storm(count: usize) {
    for _ in 0..count {
        assert!(Command::new("/bin/true").status().unwrap().success());
    }
}

#[test]
fn a_full_ring_is_counted_and_the_balance_is_exact() {
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
    assert!(exec.ring_full > 0, "{exec:?}");
    assert!(exec.seen >= 100, "{exec:?}");
    assert_eq!(exec.lost(), exec.ring_full);
}

#[test]
fn everything_that_was_submitted_is_delivered() {
    let mut running = Running::start(everything());
    storm(300);
    running.sensor.stop();
    running.seen.extend(running.input.try_iter().flatten());
    let count = |pick: fn(&EventKind) -> bool| running.seen.iter().filter(|event| pick(&event.kind)).count() as u64;
    for (name, events) in [
        ("exec", count(|kind| matches!(kind, EventKind::Exec(_)))),
        ("fork", count(|kind| matches!(kind, EventKind::Fork { .. }))),
        ("exit", count(|kind| matches!(kind, EventKind::Exit { .. }))),
        ("connect", count(|kind| matches!(kind, EventKind::Connect(_)))),
        ("accept", count(|kind| matches!(kind, EventKind::Accept(_)))),
        ("listen", count(|kind| matches!(kind, EventKind::Listen { .. }))),
        ("dns", count(|kind| matches!(kind, EventKind::Dns(_)))),
    ] {
        let counters = running.counters(name);
        assert!(balanced(&counters), "{name}: {counters:?}");
        assert_eq!((counters.submitted, counters.lost()), (events, 0), "{name}: {counters:?}");
    }
    assert!(running.counters("exec").submitted >= 300);
    assert!(running.seen.windows(2).filter(|two| two[0].time > two[1].time).count() < running.seen.len() / 100);
}

#[test]
fn a_cgroup_beyond_its_rate_is_filtered_by_name() {
    let options = Options { process_rate: 1, process_burst: 5, ..everything() };
    let mut running = Running::start(options);
    storm(50);
    running.sensor.stop();
    let filtered = running.sensor.filtered();
    let exec = filtered.iter().find(|(name, _)| *name == "exec").unwrap();
    let rate = exec.1.by_name().find(|(name, _)| *name == "rate").unwrap().1;
    assert!(rate >= 30, "{rate} of 50");
    assert!(balanced(&running.counters("exec")));
}

#[test]
fn a_stopped_sensor_sees_nothing_more() {
    let mut running = Running::start(everything());
    storm(1);
    running.wait("exec", |event| matches!(event.kind, EventKind::Exec(_)).then_some(()));
    running.sensor.stop();
    let before = running.counters("exec");
    storm(3);
    assert_eq!(running.counters("exec"), before);
    assert!(!running.sensor.state().whole);
    running.sensor.stop();
}
