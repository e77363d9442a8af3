//! Building a finding: every text that came from outside is capped here, once.

use crate::detect::{Fact, Facts, Match};
use crate::event::{Event, EventKind, Transport};
use crate::pipeline::gather::operation_name;
use crate::pipeline::world::{Subject, World};
use crate::process::table::{MAX_LINEAGE, cut};
use crate::workload::{Description, Place};
use jiff::Timestamp;
use std::hash::{DefaultHasher, Hash, Hasher};
use tasuki_api::finding::{
    Agent, Ancestor, Container, Dns, File, Finding, Network, Process, Resource, ResponseTaken, Rule,
};
use tasuki_api::kubernetes::PodName;
use ulid::Ulid;

/// Bytes of a path, name or argument in a finding.
const MAX_TEXT: usize = 1_024;
/// Bytes of all arguments of a process in a finding.
const MAX_ARGUMENTS: usize = 4_096;
/// Bytes of all arguments of an ancestor.
const MAX_ANCESTOR_ARGUMENTS: usize = 512;

/// Makes ids: from the event's time and a number that never repeats, so that a replay of the same
/// bytes makes the same ids.
#[derive(Debug)]
pub struct Ids {
    seed: u64,
    made: u64,
}

impl Ids {
    /// Ids that depend on `seed` and on how many were made before.
    pub fn new(seed: u64) -> Self {
        Self { seed, made: 0 }
    }

    fn next(&mut self, time: Timestamp) -> Ulid {
        self.made += 1;
        let half = |which: u8| {
            let mut hasher = DefaultHasher::new();
            (self.seed, self.made, which).hash(&mut hasher);
            hasher.finish()
        };
        let random = (u128::from(half(0)) << 64) | u128::from(half(1));
        Ulid::from_parts(u64::try_from(time.as_millisecond()).unwrap_or(0), random)
    }
}

fn text(from: &str) -> String {
    cut(from, MAX_TEXT).to_owned()
}

fn arguments(from: &[String], limit: usize) -> Vec<String> {
    let mut room = limit;
    let mut kept = Vec::new();
    for argument in from {
        if room == 0 {
            break;
        }
        let part = cut(argument, room);
        room = room.saturating_sub(part.len() + 1);
        kept.push(part.to_owned());
        if kept.len() == 256 {
            break;
        }
    }
    kept
}

/// Time of day of an event.
pub fn timestamp(world: &World, time: u64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(world.epoch(time))).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A finding about a match.
pub fn finding(
    world: &mut World,
    ids: &mut Ids,
    agent: &Agent,
    event: &Event,
    subject: &Subject,
    facts: &Facts<'_>,
    found: &Match,
) -> Finding {
    let seen = timestamp(world, event.time);
    let rule = &found.rule;
    Finding {
        id: ids.next(seen),
        kind: rule.kind.clone(),
        severity: rule.severity,
        title: rule.title.clone(),
        first_seen: seen,
        last_seen: seen,
        count: 1,
        resource: resource(&subject.place, subject.description.as_deref()),
        process: process(world, event, subject, facts),
        network: network(facts, event),
        dns: dns(event, subject),
        file: match &event.kind {
            EventKind::File(file) => Some(File {
                path: text(&file.path),
                operation: operation_name(file.operation).to_owned(),
                target: file.target.as_deref().map(text),
            }),
            _ => None,
        },
        evidence: found.evidence.clone(),
        rule: Rule {
            id: rule.id.clone(),
            title: rule.title.clone(),
            tags: rule.tags.clone(),
            references: rule.references.clone(),
            next_checks: rule.next.clone(),
        },
        agent: agent.clone(),
        response: ResponseTaken::default(),
    }
}

/// Where it happened, as far as is known now.
pub fn resource(place: &Place, description: Option<&Description>) -> Resource {
    let mut resource = Resource::default();
    if let Some(id) = place.container_id() {
        resource.container = Some(Container { name: "unknown".to_owned(), id: id.to_owned(), ..Container::default() });
    }
    let Some(description) = description else { return resource };
    resource.container = Some(Container {
        name: text(&description.name),
        id: description.id.clone(),
        image: description.image.as_deref().map(text),
        image_digest: description.image_digest.as_deref().map(text),
    });
    if let Some(task) = &description.task {
        resource.task = Some(task.arn.clone());
        resource.cluster.clone_from(&task.cluster);
        resource.service.clone_from(&task.service);
        resource.task_definition.clone_from(&task.definition);
        resource.launch_type.clone_from(&task.launch_type);
        resource.node.clone_from(&task.node);
        if let Some(pod) = PodName::parse(&task.arn) {
            resource.namespace = Some(pod.namespace.to_owned());
            resource.pod = Some(pod.name.to_owned());
        }
        // arn:partition:ecs:region:account:task/…
        let mut parts = task.arn.split(':').skip(3);
        resource.region = parts.next().filter(|part| !part.is_empty()).map(str::to_owned);
        resource.account = parts.next().filter(|part| !part.is_empty()).map(str::to_owned);
    }
    resource
}

fn process(world: &mut World, event: &Event, subject: &Subject, facts: &Facts<'_>) -> Option<Process> {
    let (key, entry) = subject.key.zip(subject.entry.as_ref())?;
    let (all, cwd) = match &event.kind {
        EventKind::Exec(exec) => (&exec.arguments, exec.cwd.as_deref()),
        _ => (&entry.program.arguments, None),
    };
    let lineage = subject.ancestors.iter().take(MAX_LINEAGE).map(|(key, entry)| Ancestor {
        pid: key.pid,
        executable: text(&entry.program.path),
        arguments: arguments(&entry.program.arguments, MAX_ANCESTOR_ARGUMENTS),
        uid: entry.uid,
    });
    Some(Process {
        pid: key.pid,
        namespace_pid: Some(entry.namespace_pid).filter(|pid| *pid != 0),
        name: text(entry.program.name()),
        executable: text(&entry.program.path),
        arguments: arguments(all, MAX_ARGUMENTS),
        working_directory: cwd.map(text),
        uid: entry.uid,
        euid: entry.euid,
        user: facts.text(Fact::UserName).map(text),
        started_at: Some(timestamp(world, key.start)),
        sha256: facts.text(Fact::Sha256).map(str::to_owned),
        lineage: lineage.collect(),
    })
}

fn network(facts: &Facts<'_>, event: &Event) -> Option<Network> {
    let (connect, direction) = match &event.kind {
        EventKind::Connect(connect) => (connect, "outbound"),
        EventKind::Accept(connect) => (connect, "inbound"),
        EventKind::Exec(_) => {
            // A reverse shell is about the connection that it talks through.
            let peer: std::net::SocketAddr = facts.text(Fact::ReversePeer)?.parse().ok()?;
            return Some(Network {
                transport: "tcp".to_owned(),
                direction: "outbound".to_owned(),
                remote_ip: peer.ip().to_canonical(),
                remote_port: peer.port(),
                local_ip: None,
                local_port: None,
                remote_name: None,
            });
        }
        _ => return None,
    };
    Some(Network {
        transport: if connect.transport == Transport::Tcp { "tcp" } else { "udp" }.to_owned(),
        direction: direction.to_owned(),
        remote_ip: connect.remote.ip().to_canonical(),
        remote_port: connect.remote.port(),
        local_ip: connect.local.map(|local| local.ip().to_canonical()),
        local_port: connect.local.map(|local| local.port()),
        remote_name: facts.text(Fact::RemoteName).map(text),
    })
}

fn dns(event: &Event, subject: &Subject) -> Option<Dns> {
    let (EventKind::Dns(packet), Some(message)) = (&event.kind, &subject.message) else { return None };
    Some(Dns {
        question: text(&message.question),
        question_type: message.question_type.clone(),
        answers: message.addresses.clone(),
        server: Some(packet.server),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tasuki_api::coverage::Depth;
    use tasuki_api::finding::Severity;

    /// A finding about nothing.
    pub(crate) fn finding() -> Finding {
        Finding {
            id: Ids::new(0).next(Timestamp::UNIX_EPOCH),
            kind: "T".into(),
            severity: Severity::Low,
            title: "t".into(),
            first_seen: Timestamp::UNIX_EPOCH,
            last_seen: Timestamp::UNIX_EPOCH,
            count: 1,
            resource: Resource::default(),
            process: None,
            network: None,
            dns: None,
            file: None,
            evidence: std::collections::BTreeMap::new(),
            rule: Rule::default(),
            agent: Agent { version: "0".into(), depth: Depth::Full, sensor: "replay".into() },
            response: ResponseTaken::default(),
        }
    }

    #[test]
    fn ids_are_the_same_for_the_same_seed_and_never_repeat() {
        let (mut a, mut b, mut c) = (Ids::new(1), Ids::new(1), Ids::new(2));
        let first = a.next(Timestamp::UNIX_EPOCH);
        assert_eq!(first, b.next(Timestamp::UNIX_EPOCH));
        assert_ne!(first, a.next(Timestamp::UNIX_EPOCH));
        assert_ne!(first, c.next(Timestamp::UNIX_EPOCH));
    }

    #[test]
    fn hostile_arguments_are_capped() {
        let many: Vec<String> = vec!["é".repeat(700); 300];
        let kept = arguments(&many, MAX_ARGUMENTS);
        assert!(kept.iter().map(String::len).sum::<usize>() <= MAX_ARGUMENTS);
        assert_eq!(arguments(&vec![String::from("a"); 10_000], MAX_ARGUMENTS).len(), 256);
    }
}
