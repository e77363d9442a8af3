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

fn worker(recent: &Arc<RecentProcesses>) -> (Worker, Receiver<Vec<Event>>) {
    let (output, input) = sync_channel(1);
    let group = Fanotify::init(InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_NONBLOCK, EventFFlags::O_RDONLY).unwrap();
    let options = Options { recent: Arc::clone(recent), hierarchy: Hierarchy::of_host(), skip_own: false };
    let (group, shared, waiting) = (Some(Arc::new(group)), Arc::default(), VecDeque::new());
    (Worker { group, shared, own: None, options, output, waiting }, input)
}

fn event(path: &str) -> Event {
    let (operation, path) = (FileOperation::Write, path.to_owned());
    let kind = EventKind::File(Box::new(FileEvent { operation, path, target: None, file: None }));
    Event { time: boottime(), process: None, cgroup: None, kind }
}

fn waiting(worker: &Worker, pid: u32, event: Event) -> Waiting {
    let round = worker.shared.round.load(Ordering::Acquire);
    Waiting { pid, since: Instant::now(), round, living: worker.living(pid), event }
}

fn gone() -> u32 {
    let mut child = Command::new("/bin/true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

fn fork_of(child: ProcessKey) -> Event {
    Event { time: 0, process: None, cgroup: Some(CgroupId(5)), kind: EventKind::Fork { child } }
}

#[test]
fn a_process_that_is_gone_is_told_by_another_sensor_or_given_up() {
    let recent = Arc::new(RecentProcesses::default());
    let (mut worker, _input) = worker(&recent);
    let (told, untold) = (gone(), gone());
    let written = [event("/told"), event("/untold")];
    for (pid, event) in [told, untold].into_iter().zip(&written) {
        let one = waiting(&worker, pid, event.clone());
        assert_eq!(one.living, None, "reaped");
        worker.waiting.push_back(one);
    }
    let mut events = Vec::new();
    worker.settle(|_, told| told, &mut events);
    assert!(events.is_empty(), "both still wait");
    let key = ProcessKey::new(told, 10_000_000);
    recent.learn(&[fork_of(key)]);
    worker.settle(|_, told| told, &mut events);
    assert_eq!(events, [Event { process: Some(key), cgroup: Some(CgroupId(5)), ..written[0].clone() }]);
    // The end of the sensor, like the end of patience, lets the other one go without a name.
    worker.settle(|_, _| true, &mut events);
    assert_eq!(events[1..], written[1..]);
    assert_eq!(worker.shared.unknown.load(Ordering::Relaxed), 1);
}

#[test]
fn a_living_process_counts_as_told_only_once_it_was_told_itself() {
    let recent = Arc::new(RecentProcesses::default());
    let (mut worker, _input) = worker(&recent);
    let own = start_of(std::process::id()).unwrap();
    // Another process had this id before.
    recent.learn(&[fork_of(ProcessKey { start: own.start.saturating_sub(10_000_000), ..own })]);
    let one = waiting(&worker, own.pid, event("/written"));
    assert_eq!(one.living.unwrap().0, own);
    worker.waiting.push_back(one);
    let mut events = Vec::new();
    worker.settle(|_, told| told, &mut events);
    assert!(events.is_empty(), "what is known is another process");
    recent.learn(&[fork_of(own)]);
    worker.settle(|_, told| told, &mut events);
    assert_eq!((events[0].process, events[0].cgroup), (Some(own), Some(CgroupId(5))));
    // Nobody tells of it: it goes under the name that it has.
    let recent = Arc::new(RecentProcesses::default());
    worker.options.recent = recent;
    let one = waiting(&worker, own.pid, event("/untold"));
    worker.waiting.push_back(one);
    worker.settle(|_, _| true, &mut events);
    assert_eq!(events[1].process, Some(own));
    assert_eq!(worker.shared.unknown.load(Ordering::Relaxed), 0);
}

#[test]
fn a_reader_merges_what_was_read_before_its_round_and_what_its_batch_runs() {
    let recent = Arc::new(RecentProcesses::default());
    let (worker, _input) = worker(&recent);
    let shared = Arc::clone(&worker.shared);
    let queue = Arc::new(Queue(Mutex::new(worker)));
    let roots = Roots::new(Arc::clone(&queue), Arc::clone(&shared));
    let own = start_of(std::process::id()).unwrap();
    recent.learn(&[fork_of(own)]);
    let put = |path: &str| {
        let mut worker = queue.lock();
        let one = waiting(&worker, own.pid, event(path));
        worker.waiting.push_back(one);
    };
    let paths = |batch: &[Event]| -> Vec<String> {
        let path = |event: &Event| match &event.kind {
            EventKind::File(file) => file.path.clone(),
            EventKind::Exec(_) => "exec".to_owned(),
            other => panic!("{other:?}"),
        };
        batch.iter().map(path).collect()
    };
    let round = roots.begin();
    put("/early");
    assert!(queue.lock().look(false).waiting, "the sensor's own thread leaves it to the reader");
    let mut batch = Vec::new();
    let mut turn = roots.turn(round);
    turn.merge(&mut batch);
    turn.end(true);
    assert!(batch.is_empty(), "the rings may hold what its process did before: {batch:?}");
    let round = roots.begin();
    put("/run");
    put("/late");
    let exec = crate::event::Exec { executable: Some("/run".to_owned()), ..Default::default() };
    let exec = EventKind::Exec(Box::new(exec));
    batch.push(Event { time: boottime(), process: Some(own), cgroup: None, kind: exec });
    let mut turn = roots.turn(round);
    turn.merge(&mut batch);
    assert_eq!(paths(&batch), ["/early", "/run", "exec"]);
    turn.end(true);
    assert_eq!(shared.submitted.load(Ordering::Acquire), 2);
    // A batch that nobody takes: what was merged is lost, and counted.
    let mut turn = roots.turn(roots.begin());
    batch.clear();
    turn.merge(&mut batch);
    assert_eq!(paths(&batch), ["/late"]);
    // The file sensor's end need not wait for the turn's.
    shared.stop.store(true, Ordering::Release);
    turn.yield_to_stop();
    drop(queue.0.try_lock().unwrap());
    turn.end(false);
    assert_eq!(shared.overflows.load(Ordering::Acquire), 1);
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
    // The kernel's queue, those that wait for their process to be told, and some that are in hand.
    for number in 0..limit + WAITING + 4096 {
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

/// A container is met by its exec.
#[test]
fn a_container_that_is_met_is_watched() {
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
