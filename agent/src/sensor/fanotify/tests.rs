//! Real marks on file systems of the tests' own. Needs root.

use super::*;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};

/// A tmpfs of the test's own, gone with it.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), folder.path(), Some("tmpfs"), flags, None::<&str>).unwrap();
        Self(folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

fn start(skip_own: bool) -> (FanotifySensor, Receiver<Vec<Event>>, Arc<RecentProcesses>) {
    let (output, input) = sync_channel(64);
    let recent = Arc::new(RecentProcesses::default());
    let options = Options { recent: Arc::clone(&recent), hierarchy: Hierarchy::of_host(), skip_own };
    let sensor = FanotifySensor::start(options, output).expect("fanotify needs root");
    (sensor, input, recent)
}

fn wait(input: &Receiver<Vec<Event>>, end: &str) -> Event {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let batch = input.recv_timeout(deadline.saturating_duration_since(Instant::now())).expect("a file event");
        let found = batch.into_iter().find(|event| match &event.kind {
            EventKind::File(file) => file.path.ends_with(end),
            _ => false,
        });
        if let Some(found) = found {
            return found;
        }
    }
}

#[test]
fn a_write_is_seen_with_path_file_and_actor() {
    let mounted = Mounted::new();
    let (sensor, input, _) = start(true);
    sensor.watch_filesystem(mounted.0.path()).unwrap();
    // The shell stays until it is told to go, so that it can be asked for.
    let mut shell = Command::new("/bin/sh")
        .args(["-c", "echo payload > dropped; read line"])
        .current_dir(mounted.0.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let event = wait(&input, "/dropped");
    let key = start_of(shell.id()).unwrap();
    drop(shell.stdin.take());
    shell.wait().unwrap();
    assert_eq!(event.process, Some(key));
    assert!(event.cgroup.is_some());
    let EventKind::File(file) = event.kind else { panic!("{:?}", event.kind) };
    let path = mounted.0.path().join("dropped");
    assert_eq!(file.operation, FileOperation::Write);
    assert_eq!(file.path, path.to_str().unwrap());
    assert_eq!(file.file, Some(file_id(&std::fs::metadata(&path).unwrap())));
}

#[test]
fn a_process_that_is_gone_is_told_by_another_sensor_or_given_up() {
    let (output, _input) = sync_channel(1);
    let recent = Arc::new(RecentProcesses::default());
    let mut worker = Worker {
        group: Some(Arc::new(Fanotify::init(InitFlags::FAN_CLASS_NOTIF, EventFFlags::O_RDONLY).unwrap())),
        shared: Arc::default(),
        own: None,
        options: Options { recent: Arc::clone(&recent), hierarchy: Hierarchy::of_host(), skip_own: false },
        output,
        waiting: VecDeque::new(),
    };
    let gone = || {
        let mut child = Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    };
    let (told, untold) = (gone(), gone());
    assert_eq!(worker.actor(told), None, "reaped, and nobody knows it");
    let event = |path: &str| Event {
        time: 1,
        process: None,
        cgroup: None,
        kind: EventKind::File(Box::new(FileEvent {
            operation: FileOperation::Write,
            path: path.to_owned(),
            target: None,
            file: None,
        })),
    };
    for (pid, path) in [(told, "/told"), (untold, "/untold")] {
        worker.waiting.push_back(Waiting { pid, since: Instant::now(), event: event(path) });
    }
    let mut events = Vec::new();
    worker.settle(false, &mut events);
    assert!(events.is_empty(), "both still wait");
    let key = ProcessKey::new(told, 10_000_000);
    let fork = EventKind::Fork { child: key };
    recent.learn(&[Event { time: 0, process: None, cgroup: Some(CgroupId(5)), kind: fork }]);
    worker.settle(false, &mut events);
    assert_eq!(events, [Event { process: Some(key), cgroup: Some(CgroupId(5)), ..event("/told") }]);
    // The end of the sensor, like the end of patience, lets the other one go without a name.
    worker.settle(true, &mut events);
    assert_eq!(events[1..], [event("/untold")]);
    assert_eq!(worker.shared.unknown.load(Ordering::Relaxed), 1);
    assert_eq!(worker.actor(told), Some((key, Some(CgroupId(5)))));
}

#[test]
fn the_balance_holds_and_own_writes_are_filtered() {
    let mounted = Mounted::new();
    let (mut sensor, input, _) = start(true);
    sensor.watch_filesystem(mounted.0.path()).unwrap();
    std::fs::write(mounted.0.path().join("ours"), "x").unwrap();
    let status = Command::new("/bin/sh").args(["-c", "echo x > theirs"]).current_dir(mounted.0.path()).status();
    assert!(status.unwrap().success());
    wait(&input, "/theirs");
    sensor.stop();
    let counters = sensor.families()[0].counters;
    assert_eq!(counters, Counters { seen: 2, submitted: 1, filtered: 1, ..Counters::default() });
    assert!(sensor.watch_filesystem(mounted.0.path()).is_err(), "a stopped sensor watches nothing");
}

#[test]
fn an_overflow_of_the_kernels_queue_is_counted_as_loss() {
    let mounted = Mounted::new();
    // Nobody takes events, so that the reader stands still after its first batch.
    let (output, input) = sync_channel(0);
    let options = Options { recent: Arc::default(), hierarchy: Hierarchy::of_host(), skip_own: false };
    let mut sensor = FanotifySensor::start(options, output).unwrap();
    sensor.watch_filesystem(mounted.0.path()).unwrap();
    let limit: usize =
        std::fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events").unwrap().trim().parse().unwrap();
    for number in 0..limit + 600 {
        std::fs::write(mounted.0.path().join(number.to_string()), "").unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while sensor.families()[0].counters.ring_full == 0 && Instant::now() < deadline {
        let _ = input.recv_timeout(Duration::from_secs(1));
    }
    assert!(sensor.families()[0].counters.ring_full > 0);
    drop(input);
    sensor.stop();
    let counters = sensor.families()[0].counters;
    assert_eq!(counters.seen, counters.submitted + counters.filtered + counters.ring_full);
}

#[test]
fn a_path_that_does_not_exist_is_named() {
    let (sensor, _input, _) = start(true);
    let error = sensor.watch_filesystem(Path::new("/no/such/place")).unwrap_err();
    assert!(error.to_string().contains("/no/such/place"), "{error}");
}

/// As a container has it: an overlay that is the root of a mount namespace of its own.
#[test]
fn the_path_is_the_containers_own() {
    const BUSYBOX: &str = "/usr/bin/busybox";
    assert!(Path::new(BUSYBOX).exists(), "this test needs: apt-get install -y busybox-static");
    let base = Mounted::new();
    let part = |name: &str| base.0.path().join(name);
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(part(name)).unwrap();
    }
    std::fs::create_dir(part("lower/old")).unwrap();
    std::fs::create_dir(part("lower/app")).unwrap();
    std::fs::copy(BUSYBOX, part("lower/busybox")).unwrap();
    let layers = format!("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", base.0.path().display());
    let none = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("overlay"), &part("merged"), Some("overlay"), none, Some(layers.as_str())).unwrap();
    let (sensor, input, _) = start(true);
    sensor.watch_filesystem(&part("merged")).unwrap();
    let script =
        "/sbin/pivot_root . old && exec /busybox sh -c '/busybox umount -l /old; echo x > /app/dropped; read line'";
    let mut container = Command::new("unshare")
        .args(["--mount", "/bin/sh", "-c", script])
        .current_dir(part("merged"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let event = wait(&input, "/dropped");
    drop(container.stdin.take());
    let status = container.wait().unwrap();
    nix::mount::umount2(&part("merged"), nix::mount::MntFlags::MNT_DETACH).unwrap();
    // `read` ends with 1 at the end of its input.
    assert_eq!(status.code(), Some(1));
    assert_eq!(event.process.map(|process| process.pid), Some(container.id()));
    let EventKind::File(file) = event.kind else { panic!("{:?}", event.kind) };
    assert_eq!(file.path, "/app/dropped");
    assert_eq!(file.file.unwrap().upper, Some(true));
}

/// A container is met by its exec; what it wrote is handed on before, with its writer, although the
/// writer is gone and the reader has not looked.
#[test]
fn a_container_that_is_met_is_watched_and_its_writes_come_before_what_runs_next() {
    let (mut sensor, input, recent) = start(true);
    let roots = sensor.roots();
    let script =
        "mount -t tmpfs own /tmp; echo ready; read line; echo x > /tmp/dropped & wait; echo written; read line";
    let mut container = Command::new("unshare")
        .args(["--mount", "/bin/sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = std::io::BufReader::new(container.stdout.take().unwrap());
    let mut line = |expected: &str| {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(line.trim(), expected);
    };
    line("ready");
    let existing = super::super::snapshot::existing(None).unwrap();
    recent.learn(&existing);
    roots.meet(&existing);
    std::io::Write::write_all(container.stdin.as_mut().unwrap(), b"go\n").unwrap();
    line("written");
    roots.catch_up();
    let event = wait(&input, "/tmp/dropped");
    let EventKind::File(file) = &event.kind else { panic!("{:?}", event.kind) };
    assert_eq!(file.operation, FileOperation::Write);
    // The root of this "container" is the host's own, and is not watched.
    let outside = tempfile::tempdir().unwrap();
    let written = Command::new("/bin/sh").args(["-c", "echo x > hosts"]).current_dir(outside.path()).status().unwrap();
    assert!(written.success());
    drop(container.stdin.take());
    container.wait().unwrap();
    sensor.stop();
    let others: Vec<_> = input.try_iter().flatten().collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(sensor.families()[0].problem.as_deref(), Some("the sensor was stopped"));
}
