//! From an event and what is known of the world to facts.

use super::programs;
use super::world::{Subject, World};
use crate::detect::Class;
use crate::detect::facts::{Fact, Facts};
use crate::detect::indicators::Indicators;
use crate::event::{Connect, Credentials, Event, EventKind, Exec, FileEvent, FileOperation, Stdio, Transport};
use crate::process::hash::{Answer, Sha256};
use crate::process::table::base_name;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A finding in a container makes what follows within this time worth a closer look.
const CONTEXT_NS: u64 = 3_600 * 1_000_000_000;
/// Ancestors within which a shell's terminal may hide a socket.
const NEAR: usize = 4;
const SETUID: u32 = 0o4000;

/// The facts of an event. `hash` is that of the program, where it is known.
pub fn facts<'a>(
    world: &mut World,
    indicators: &Indicators,
    class: Class,
    event: &'a Event,
    subject: &'a Subject,
    hash: Option<Sha256>,
) -> Facts<'a> {
    let mut facts = Facts::default();
    facts.set(Fact::Category, class.category());
    place(&mut facts, world, event, subject);
    process(&mut facts, world, event, subject);
    match &event.kind {
        EventKind::Exec(exec) => {
            program(&mut facts, world, event, exec, subject);
            shell(&mut facts, world, exec, subject);
            hashed(&mut facts, indicators, hash);
        }
        EventKind::Credentials { old, new } => credentials(&mut facts, old, new, subject),
        EventKind::Connect(connect) => connection(&mut facts, world, indicators, connect, "outbound", subject),
        EventKind::Accept(connect) => connection(&mut facts, world, indicators, connect, "inbound", subject),
        EventKind::Listen { transport, local } => {
            facts.set(Fact::Transport, transport_name(*transport));
            facts.set(Fact::LocalIp, local.ip().to_canonical().to_string());
            facts.set(Fact::LocalPort, u32::from(local.port()));
        }
        EventKind::Dns(packet) => {
            facts.set(Fact::DnsServer, packet.server.ip().to_canonical().to_string());
            dns(&mut facts, indicators, packet.answer, subject);
        }
        EventKind::File(file) => self::file(&mut facts, file, subject),
        EventKind::Existing(_) | EventKind::Fork { .. } | EventKind::Exit { .. } => {}
    }
    facts
}

fn place<'a>(facts: &mut Facts<'a>, world: &mut World, event: &Event, subject: &'a Subject) {
    facts.set(Fact::ContainerPresent, subject.container.is_some());
    facts.set_some(Fact::ContainerId, subject.place.container_id());
    if let Some(description) = &subject.description {
        facts.set(Fact::ContainerName, description.name.as_str());
        facts.set_some(Fact::ContainerImage, description.image.as_deref());
        if let Some(task) = &description.task {
            facts.set(Fact::TaskArn, task.arn.as_str());
            let family = task.definition.as_deref().and_then(|definition| definition.split(':').next());
            facts.set_some(Fact::ServiceName, task.service.as_deref().or(family));
        }
    }
    if let Some(container) = &subject.container
        && let Some(first) = world.containers.state(container).first_process
    {
        let age = event.time.saturating_sub(first.start) / 1_000_000_000;
        facts.set(Fact::ContainerAge, i64::try_from(age).unwrap_or(i64::MAX));
    }
}

fn process<'a>(facts: &mut Facts<'a>, world: &mut World, event: &'a Event, subject: &'a Subject) {
    let Some((key, entry)) = subject.key.zip(subject.entry.as_ref()) else { return };
    facts.set(Fact::Pid, key.pid);
    facts.set(Fact::Uid, entry.uid);
    facts.set(Fact::Euid, entry.euid);
    facts.set_some(Fact::UserName, user(world, subject, entry.uid));
    facts.set(Fact::Image, entry.program.path.as_str());
    facts.set(Fact::ImageName, entry.program.name());
    // An exec event has the arguments whole; the table keeps their beginning.
    let arguments = match &event.kind {
        EventKind::Exec(exec) => exec.arguments.as_slice(),
        _ => entry.program.arguments.as_slice(),
    };
    facts.set(Fact::CommandLine, arguments.join(" "));
    facts.set(Fact::ArgumentCount, i64::try_from(arguments.len()).unwrap_or(i64::MAX));
    facts.set_list(Fact::Arguments, arguments.iter().map(String::as_str));
    if let Some((parent_key, parent)) = subject.ancestors.first() {
        facts.set(Fact::ParentPid, parent_key.pid);
        facts.set(Fact::ParentImage, parent.program.path.as_str());
        facts.set(Fact::ParentName, parent.program.name());
        facts.set(Fact::ParentCommandLine, parent.program.arguments.join(" "));
    }
    facts.set_list(Fact::AncestorNames, subject.ancestors.iter().map(|(_, entry)| entry.program.name()));
    let manager = subject.inside().any(|(_, entry)| programs::is_package_manager(&entry.program));
    facts.set(Fact::PackageManager, manager);
    facts.set_list(Fact::SuspiciousContext, context(world, event, subject));
}

/// The name of a user where the process lives; asked only where this machine may be read.
pub fn user(world: &mut World, subject: &Subject, uid: u32) -> Option<String> {
    let entry = subject.entry.as_ref()?;
    if !world.is_live() || subject.container.is_none() {
        return None;
    }
    let namespace = entry.mount_namespace;
    let here = subject.inside().filter(|(_, other)| other.mount_namespace == namespace).map(|(key, _)| key.pid);
    world.users.name(namespace, here, uid)
}

fn context(world: &mut World, event: &Event, subject: &Subject) -> Vec<&'static str> {
    let Some(container) = &subject.container else { return Vec::new() };
    let mut reasons = Vec::new();
    let state = world.containers.state(container).clone();
    let mut inside = subject.inside();
    if state.first_process.is_some_and(|first| inside.all(|(key, _)| key != first)) {
        reasons.push("exec_session");
    }
    // The process itself may be the service that writes its own files; what it starts may not be.
    if subject.inside().skip(1).any(|(key, _)| world.listens(key)) {
        reasons.push("service_ancestor");
    }
    if subject.inside().any(|(_, entry)| entry.program.new_binary) {
        reasons.push("new_binary");
    }
    if state.last_finding.is_some_and(|last| event.time.saturating_sub(last) < CONTEXT_NS) {
        reasons.push("earlier_finding");
    }
    reasons
}

fn program<'a>(facts: &mut Facts<'a>, world: &World, event: &Event, exec: &'a Exec, subject: &'a Subject) {
    facts.set_some(Fact::Cwd, exec.cwd.as_deref());
    facts.set_some(Fact::Script, exec.script.as_deref());
    facts.set(Fact::CwdProcFd, exec.cwd.as_deref().is_some_and(is_descriptor_path));
    facts.set(Fact::PreviousEuid, exec.previous_euid);
    facts.set(Fact::Memfd, exec.memfd);
    let unlinked = exec.file.is_some_and(|file| file.links == 0 && file.inode != 0);
    let deleted = unlinked || exec.executable.as_deref().is_some_and(|path| path.ends_with(" (deleted)"));
    facts.set(Fact::Deleted, deleted);
    for (name, value) in &exec.environment {
        match name.as_str() {
            "LD_PRELOAD" => facts.set(Fact::LdPreload, value.as_str()),
            "LD_LIBRARY_PATH" => facts.set(Fact::LdLibraryPath, value.as_str()),
            _ => {}
        }
    }
    facts.set(Fact::MinerArguments, programs::is_miner(&exec.filename, &exec.arguments));
    let upper = exec.file.and_then(|file| file.upper);
    facts.set_some(Fact::UpperLayer, upper);
    facts.set(Fact::Written, subject.write.is_some() || upper == Some(true));
    if let Some(write) = &subject.write {
        facts.set_some(Fact::Writer, write.writer.as_deref());
        facts.set(Fact::WriterPackageManager, write.package_manager);
    }
    let started = subject
        .description
        .as_ref()
        .and_then(|description| description.started_at)
        .or_else(|| Some(world.epoch(first_start(facts, event)?)));
    if let (Some(file), Some(started)) = (exec.file.filter(|file| file.ctime != 0), started) {
        facts.set(Fact::WrittenWeak, subject.container.is_some() && file.ctime > started);
    }
    let setuid_root = exec.file.is_some_and(|file| file.mode & SETUID != 0 && file.owner == 0);
    facts.set(Fact::Setuid, setuid_root);
    let became_root = exec.credentials.euid == 0 && exec.previous_euid != 0;
    facts.set(Fact::Elevated, became_root);
}

/// When the container's first process started, as `container.age_seconds` tells.
fn first_start(facts: &Facts<'_>, event: &Event) -> Option<u64> {
    match facts.get(Fact::ContainerAge)? {
        crate::detect::facts::Value::Number(age) => {
            Some(event.time.saturating_sub(u64::try_from(*age).ok()?.saturating_mul(1_000_000_000)))
        }
        _ => None,
    }
}

/// `/proc/self/fd/7`, `/proc/12/fd/7/..`: a directory reached through a descriptor.
fn is_descriptor_path(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("/proc/") else { return false };
    let mut parts = rest.split('/');
    let process = parts.next().unwrap_or("");
    let numbered = !process.is_empty() && process.bytes().all(|byte| byte.is_ascii_digit());
    (process == "self" || process == "thread-self" || numbered) && parts.next() == Some("fd") && parts.next().is_some()
}

const fn is_socket(stdio: Stdio) -> bool {
    matches!(stdio, Stdio::Socket(_))
}

fn shell<'a>(facts: &mut Facts<'a>, world: &mut World, exec: &Exec, subject: &'a Subject) {
    let [stdin, stdout, stderr] = exec.stdio;
    facts.set(Fact::StdinSocket, is_socket(stdin));
    facts.set(Fact::StdoutSocket, is_socket(stdout));
    facts.set(Fact::StderrSocket, is_socket(stderr));
    let path = exec.executable.as_deref().unwrap_or(&exec.filename);
    let shell = programs::is_shell(path, &exec.arguments);
    facts.set(Fact::Shell, shell);
    let terminal = stdin == Stdio::Terminal;
    let talked_to = shell && programs::is_talked_to(&exec.arguments);
    let fed = matches!(stdin, Stdio::Pipe | Stdio::Socket(_) | Stdio::Terminal | Stdio::Unix);
    let dashed =
        shell && exec.arguments.iter().skip(1).any(|a| a.starts_with('-') && !a.starts_with("--") && a.contains('i'));
    facts.set(Fact::Interactive, terminal || dashed || (talked_to && fed));
    if !shell || subject.container.is_none() {
        return;
    }
    let mut socket = (is_socket(stdin) && is_socket(stdout)).then_some([stdin, stdout]);
    if socket.is_none() && terminal {
        for (key, entry) in subject.inside().skip(1).take(NEAR) {
            let at_exec = entry.program.stdio;
            let stdio = if is_socket(at_exec[0]) { Some(at_exec) } else { world.stdio_now(key) };
            if let Some([first, second, _]) = stdio.filter(|stdio| is_socket(stdio[0]) && is_socket(stdio[1])) {
                socket = Some([first, second]);
                break;
            }
        }
    }
    facts.set(Fact::ReverseShell, socket.is_some());
    if let Some([Stdio::Socket(Some(peer)), _] | [_, Stdio::Socket(Some(peer))]) = socket {
        facts.set(Fact::ReversePeer, peer.to_string());
    }
    // Looked up only for a shell that somebody talks to: it may cost a walk over descriptors.
    let starter = subject.inside().skip(1).find(|(_, e)| !programs::is_shell(&e.program.path, &e.program.arguments));
    if let Some((key, _)) = starter.filter(|_| facts.flag(Fact::Interactive)) {
        facts.set(Fact::ServiceAncestor, world.listens(key));
    }
}

fn hashed(facts: &mut Facts<'_>, indicators: &Indicators, hash: Option<Sha256>) {
    let Some(hash) = hash else { return };
    facts.set(Fact::Sha256, hex::encode(hash));
    let categories = indicators.hash(&hash);
    facts.set(Fact::Sha256Listed, !categories.is_empty());
    facts.set_list(Fact::Sha256Category, categories.into_iter().map(str::to_owned));
}

/// The program's hash, where it is known already.
pub fn known_hash(world: &mut World, event: &Event, subject: &Subject) -> Option<Sha256> {
    let EventKind::Exec(exec) = &event.kind else { return None };
    let (key, file) = subject.key.zip(exec.file.filter(|file| file.inode != 0))?;
    let path = exec.executable.as_deref().unwrap_or(&exec.filename);
    match world.hasher.ask(key.pid, subject.neighbours(), &file, path) {
        Answer::Is(hash) => Some(hash),
        Answer::Pending | Answer::Unknown => None,
    }
}

fn credentials(facts: &mut Facts<'_>, old: &Credentials, new: &Credentials, subject: &Subject) {
    facts.set(Fact::PreviousEuid, old.euid);
    // Set-user-id programs and daemons that dropped root for a while were root when they started;
    // CAP_SETUID (bit 7) is leave to change.
    const CAP_SETUID: u64 = 1 << 7;
    let never_root = subject.entry.as_ref().is_some_and(|entry| entry.program.euid != 0);
    let elevated = new.euid == 0 && old.euid != 0 && old.uid != 0 && old.capabilities & CAP_SETUID == 0 && never_root;
    facts.set(Fact::Elevated, elevated);
}

const fn transport_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

fn connection(
    facts: &mut Facts<'_>,
    world: &mut World,
    indicators: &Indicators,
    connect: &Connect,
    direction: &'static str,
    subject: &Subject,
) {
    let remote = connect.remote.ip().to_canonical();
    facts.set(Fact::Transport, transport_name(connect.transport));
    facts.set(Fact::Direction, direction);
    facts.set(Fact::Initiated, if direction == "outbound" { "true" } else { "false" });
    facts.set(Fact::RemoteIp, remote.to_string());
    facts.set(Fact::RemotePort, u32::from(connect.remote.port()));
    facts.set(Fact::RemotePublic, is_public(remote));
    facts.set(Fact::MinerPort, programs::MINER_PORTS.contains(&connect.remote.port()));
    if let Some(local) = connect.local {
        facts.set(Fact::LocalIp, local.ip().to_canonical().to_string());
        facts.set(Fact::LocalPort, u32::from(local.port()));
    }
    let categories = indicators.address(remote);
    facts.set(Fact::RemoteListed, !categories.is_empty());
    facts.set_list(Fact::RemoteCategory, categories.into_iter().map(str::to_owned));
    if let Some(name) = world.names.name(subject.cgroup, remote) {
        facts.set_list(Fact::RemoteNameCategory, indicators.domain(name).into_iter().map(str::to_owned));
        facts.set(Fact::RemoteName, name.to_owned());
    }
}

/// Neither private, loopback, link-local, multicast, documentation nor otherwise reserved
/// (IANA special-purpose registries).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_documentation()
                || v4.is_unspecified()
                || shared
                || a == 0
                || a >= 240)
        }
        IpAddr::V6(v6) => v6.segments()[0] & 0xe000 == 0x2000 && !matches!(v6.segments(), [0x2001, 0xdb8, ..]),
    }
}

fn dns<'a>(facts: &mut Facts<'a>, indicators: &Indicators, answer: bool, subject: &'a Subject) {
    let Some(message) = &subject.message else { return };
    facts.set(Fact::Question, message.question.as_str());
    facts.set(Fact::QuestionType, message.question_type.as_str());
    facts.set(Fact::IsAnswer, answer);
    if !(answer && subject.question_seen) {
        let categories = indicators.domain(&message.question);
        facts.set(Fact::QuestionListed, !categories.is_empty());
        facts.set_list(Fact::QuestionCategory, categories.into_iter().map(str::to_owned));
    }
    facts.set_list(Fact::Answers, message.addresses.iter().map(|address| Cow::Owned(address.to_string())));
    let metadata = |address: &IpAddr| match address.to_canonical() {
        IpAddr::V4(v4) => v4 == Ipv4Addr::new(169, 254, 169, 254),
        IpAddr::V6(v6) => v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    };
    facts.set(Fact::MetadataAnswer, answer && message.addresses.iter().any(metadata));
}

/// The name of an operation in facts and findings.
pub const fn operation_name(operation: FileOperation) -> &'static str {
    match operation {
        FileOperation::Write => "write",
        FileOperation::Create => "create",
        FileOperation::Rename => "rename",
        FileOperation::Link => "link",
        FileOperation::Symlink => "symlink",
        FileOperation::Unlink => "unlink",
        FileOperation::Chmod => "chmod",
        FileOperation::Open => "open",
    }
}

fn file<'a>(facts: &mut Facts<'a>, file: &'a FileEvent, subject: &Subject) {
    facts.set(Fact::FilePath, file.path.as_str());
    facts.set(Fact::FileName, base_name(&file.path));
    facts.set(Fact::FileOperation, operation_name(file.operation));
    facts.set_some(Fact::FileTarget, file.target.as_deref());
    facts.set_list(Fact::FilePaths, std::iter::once(file.path.as_str()).chain(file.target.as_deref()));
    facts.set(Fact::ActorKnown, subject.key.is_some() && subject.entry.is_some());
}
