//! exec, fork, exit.

use super::*;
use crate::event::Stdio;
use crate::sensor::snapshot;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio as Io};

#[test]
fn an_exec_is_seen_with_arguments_file_and_lineage() {
    let folder = tempfile::tempdir().unwrap();
    let path = program(&folder, "tasuki-exec");
    let mut running = Running::start(everything());
    let mut child = Command::new(&path)
        .args(["first", "second word"])
        .current_dir(folder.path())
        .env("LD_LIBRARY_PATH", "/nowhere")
        .stdin(Io::piped())
        .stdout(Io::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let (key, exec, event) = running.exec("exec", |exec| exec.filename.ends_with("tasuki-exec"));
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(key.pid, pid);
    assert_eq!(exec.arguments, [path.to_str().unwrap(), "first", "second word"]);
    assert!(!exec.truncated);
    assert_eq!(exec.filename, path.to_str().unwrap());
    assert_eq!(exec.executable.as_deref(), path.to_str());
    assert_eq!(exec.cwd.as_deref(), folder.path().to_str());
    assert_eq!(exec.environment, [("LD_LIBRARY_PATH".to_owned(), "/nowhere".to_owned())]);
    assert_eq!(exec.script, None);
    assert_eq!(exec.name, "tasuki-exec");
    assert_eq!(exec.parent.pid, std::process::id());
    assert_eq!(exec.namespace_pid, pid);
    let file = exec.file.unwrap();
    assert_eq!((file.device, file.inode, file.size), (metadata.dev(), metadata.ino(), metadata.size()));
    assert_eq!((u64::from(file.links), file.mode, file.owner), (metadata.nlink(), metadata.mode(), metadata.uid()));
    assert_eq!(file.ctime, metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec());
    assert!(!exec.memfd);
    assert_eq!(exec.stdio[0], Stdio::Pipe);
    assert_eq!(exec.stdio[1], Stdio::Other);
    assert_eq!((exec.credentials.uid, exec.credentials.euid, exec.previous_euid), (0, 0, 0));
    assert_ne!(exec.credentials.capabilities, 0);
    let namespace = |kind: &str| std::fs::metadata(format!("/proc/self/ns/{kind}")).unwrap().ino();
    assert_eq!((exec.mount_namespace, exec.pid_namespace), (namespace("mnt"), namespace("pid")));
    assert_eq!(event.cgroup.map(|id| id.0), running.sensor.hierarchy().of_process(std::process::id()));
    // The fork came before, and leads to the same process.
    let forked = running.wait("fork", |event| match event.kind {
        EventKind::Fork { child } if child == key => event.process,
        _ => None,
    });
    assert_eq!(forked, exec.parent);
    let code = running.wait("exit", |event| match event.kind {
        EventKind::Exit { code } if event.process == Some(key) => Some(code),
        _ => None,
    });
    assert_eq!(code, 0);
}

#[test]
fn a_script_is_seen_with_its_interpreter() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tasuki-script");
    std::fs::write(&path, "#!/bin/sh\nexit 3\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut running = Running::start(everything());
    let status = Command::new(&path).arg("argument").status().unwrap();
    assert_eq!(status.code(), Some(3));
    let (key, exec, _) = running.exec("script", |exec| exec.filename.ends_with("tasuki-script"));
    assert_eq!(exec.script.as_deref(), path.to_str());
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    assert_eq!(exec.executable.as_deref(), shell.to_str());
    assert_eq!(exec.arguments, ["/bin/sh", path.to_str().unwrap(), "argument"]);
    let code = running.wait("exit", |event| match event.kind {
        EventKind::Exit { code } if event.process == Some(key) => Some(code),
        _ => None,
    });
    assert_eq!(code, 3 << 8, "as wait() gives it");
}

#[test]
fn a_memfd_is_told_from_a_file() {
    let memory = memfd_create(c"tasuki-memory", MFdFlags::empty()).unwrap();
    let mut file = std::fs::File::from(memory);
    file.write_all(&std::fs::read("/bin/true").unwrap()).unwrap();
    let mut running = Running::start(everything());
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    assert!(Command::new(&path).status().unwrap().success());
    let (_, exec, _) = running.exec("memfd exec", |exec| exec.filename == path);
    assert!(exec.memfd);
    assert_eq!(exec.executable.as_deref(), Some("/memfd:tasuki-memory (deleted)"));
    assert_eq!(exec.file.unwrap().links, 0);
}

#[test]
fn a_shell_on_a_socket_shows_the_peer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = listener.local_addr().unwrap();
    let socket = OwnedFd::from(TcpStream::connect(peer).unwrap());
    let (unix, _other) = UnixStream::pair().unwrap();
    let mut running = Running::start(everything());
    let status = Command::new("/bin/sh")
        .args(["-c", "exit 0", "tasuki-reverse"])
        .stdin(Io::from(socket.try_clone().unwrap()))
        .stdout(Io::from(socket))
        .stderr(Io::from(OwnedFd::from(unix)))
        .status()
        .unwrap();
    assert!(status.success());
    let (_, exec, _) = running.exec("shell", |exec| exec.arguments.iter().any(|argument| argument == "tasuki-reverse"));
    assert_eq!(exec.stdio, [Stdio::Socket(Some(peer)), Stdio::Socket(Some(peer)), Stdio::Unix]);
}

#[test]
fn the_writable_layer_of_an_overlay_is_told_from_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let part = |name: &str| folder.path().join(name);
    for name in ["base", "lower", "upper", "work", "merged"] {
        std::fs::create_dir(part(name)).unwrap();
    }
    // On a tmpfs, because the writable layer must not be an overlay itself.
    let none = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &part("base"), Some("tmpfs"), none, None::<&str>).unwrap();
    let base = part("base");
    for name in ["lower", "upper", "work"] {
        std::fs::create_dir(base.join(name)).unwrap();
    }
    std::fs::copy("/bin/true", base.join("lower/shipped")).unwrap();
    let layers = format!("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", base.display());
    nix::mount::mount(Some("overlay"), &part("merged"), Some("overlay"), none, Some(layers.as_str())).unwrap();
    std::fs::copy("/bin/true", part("merged").join("dropped")).unwrap();
    let mut running = Running::start(everything());
    let run = |name: &str| Command::new(part("merged").join(name)).status().unwrap().success();
    let ran = run("shipped") && run("dropped");
    let metadata = std::fs::metadata(part("merged").join("dropped")).unwrap();
    let detach = nix::mount::MntFlags::MNT_DETACH;
    nix::mount::umount2(&part("merged"), detach).unwrap();
    nix::mount::umount2(&base, detach).unwrap();
    assert!(ran);
    let mut find = |name: &str| {
        let path = part("merged").join(name);
        let (_, exec, _) = running.exec(name, |exec| exec.filename == path.to_str().unwrap());
        assert_eq!(exec.executable.as_deref(), path.to_str());
        exec.file.unwrap()
    };
    assert_eq!(find("shipped").upper, Some(false));
    let dropped = find("dropped");
    assert_eq!(dropped.upper, Some(true));
    assert_eq!((dropped.inode, dropped.size), (metadata.ino(), metadata.size()));
    assert_eq!(dropped.ctime, metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec());
}

#[test]
fn a_deleted_program_and_long_arguments_are_marked() {
    let folder = tempfile::tempdir().unwrap();
    let path = program(&folder, "tasuki-deleted");
    let open = std::fs::File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let mut running = Running::start(everything());
    let long = "x".repeat(5000);
    let by_descriptor = format!("/proc/self/fd/{}", open.as_raw_fd());
    let by_descriptor = by_descriptor.replace("self", &std::process::id().to_string());
    assert!(Command::new(&by_descriptor).args([&long, "tail"]).status().unwrap().success());
    let (_, exec, _) = running.exec("deleted exec", |exec| exec.filename == by_descriptor);
    assert!(exec.truncated && exec.memfd);
    assert_eq!(exec.arguments.iter().map(|one| one.len() + 1).sum::<usize>(), 4096 + 1);
    assert!(exec.executable.unwrap().ends_with("/tasuki-deleted (deleted)"));
}

#[test]
fn threads_are_filtered_and_processes_balance() {
    let mut running = Running::start(everything());
    let before = running.sensor.filtered();
    let threads = |all: &[(&str, Filtered)]| {
        let fork = all.iter().find(|(name, _)| *name == "fork").unwrap();
        fork.1.by_name().find(|(name, _)| *name == "thread").unwrap().1
    };
    std::thread::spawn(|| ()).join().unwrap();
    assert!(threads(&running.sensor.filtered()) > threads(&before));
    let mut children: Vec<_> = (0..50).map(|_| Command::new("/bin/true").spawn().unwrap()).collect();
    let pids: Vec<_> = children.iter().map(std::process::Child::id).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    for pid in pids {
        let child = running.wait("fork", |event| match event.kind {
            EventKind::Fork { child } if child.pid == pid => Some(child),
            _ => None,
        });
        running.wait("exec", |event| {
            (event.process == Some(child) && matches!(event.kind, EventKind::Exec(_))).then_some(())
        });
        running.wait("exit", |event| {
            (event.process == Some(child) && matches!(event.kind, EventKind::Exit { code: 0 })).then_some(())
        });
    }
}

#[test]
fn the_snapshot_names_a_process_as_the_hooks_do() {
    let mut running = Running::start(everything());
    let mut child = Command::new("/bin/sleep").args(["1000", "0"]).stdin(Io::null()).spawn().unwrap();
    let pid = child.id();
    let (key, exec, event) = running.exec("exec", |exec| exec.arguments == ["/bin/sleep", "1000", "0"]);
    let existing = snapshot::existing(Some(running.sensor.hierarchy())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let found = existing.into_iter().find(|event| event.process.is_some_and(|key| key.pid == pid)).unwrap();
    assert_eq!(found.process, Some(key));
    assert_eq!(found.cgroup, event.cgroup);
    let EventKind::Existing(old) = found.kind else { panic!("{:?}", found.kind) };
    assert_eq!((old.file, &old.executable, old.parent), (exec.file, &exec.executable, exec.parent));
    assert_eq!((old.mount_namespace, old.pid_namespace), (exec.mount_namespace, exec.pid_namespace));
    assert_eq!((old.namespace_pid, old.credentials), (exec.namespace_pid, exec.credentials));
    let killed = running.wait("exit", |event| match event.kind {
        EventKind::Exit { code } if event.process == Some(key) => Some(code),
        _ => None,
    });
    assert_eq!(killed, 9, "killed by signal 9");
}

/// A cgroup of the test's own.
struct Group(PathBuf);

impl Group {
    fn new(mount: &std::path::Path, name: &str) -> Self {
        let path = mount.join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Runs a program in a cgroup of the hierarchy; its events must carry the directory's inode.
fn named_by(hierarchy: Hierarchy) {
    let folder = tempfile::tempdir().unwrap();
    let path = program(&folder, "tasuki-grouped");
    let group = Group::new(hierarchy.mount.as_ref().unwrap(), "tasuki-test");
    let mut running = Running::start(Options { hierarchy: Some(hierarchy), ..everything() });
    let script = format!("echo $$ > {}/cgroup.procs && exec {}", group.0.display(), path.display());
    assert!(Command::new("/bin/sh").args(["-c", &script]).status().unwrap().success());
    let (_, _, event) = running.exec("exec", |exec| exec.filename == path.to_str().unwrap());
    let inode = std::fs::metadata(&group.0).unwrap().ino();
    assert_ne!(inode, 1, "not the root");
    assert_eq!(event.cgroup.map(|id| id.0), Some(inode));
}

#[test]
fn events_carry_the_version_2_cgroup() {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = cgroups::find_mount(&mounts, "cgroup2", None).expect("a cgroup2 mount");
    named_by(Hierarchy { controller: None, mount: Some(mount) });
}

#[test]
fn events_carry_the_version_1_cgroup() {
    let hierarchy = Hierarchy::of_host();
    if hierarchy.controller.is_some() {
        named_by(hierarchy);
    } else {
        // A host without version 1 names tasks by version 2 alone, which the other test covers.
        assert!(hierarchy.mount.is_some());
    }
}
