//! Asking the node which pods are here: the kubelet links each container's log from
//! `/var/log/containers/<pod>_<namespace>_<container>-<id>.log` to
//! `/var/log/pods/<namespace>_<pod>_<uid>/<container>/<restart>.log`
//! (pkg/kubelet/kuberuntime/legacy.go and helpers.go). Only names are read, and where links lead;
//! no log is ever opened. Sandboxes ("pause" containers) have no log, so they get no name.
//!
//! *Caveats*: the kubelet makes the link a moment after the container's start, so a new container has
//! no name for that long. A static pod's uid is the hash of its file.

use super::ecs::Answer;
use super::{Description, TaskNames};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use tasuki_api::kubernetes::{PodName, cluster, env, node};

/// Where the kubelet links logs.
pub const LINKS: &str = "/var/log/containers";
/// Links that one reading looks at, at most: 500 pods of 16 containers.
const MAX_LINKS: usize = 8_192;
/// A name of this length the kubelet may have cut: ext4 takes no longer one.
const LONGEST: usize = 255;

/// Where the agent's own pod is, as the downward API says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// The cluster's name.
    pub cluster: String,
    /// The own pod: text of a [`PodName`].
    pub pod: String,
    /// The node's name; `None` in a sidecar, which speaks for its own pod only.
    pub node: Option<String>,
    /// The directory of links.
    pub links: PathBuf,
}

/// The environment does not say where the agent is.
#[derive(Debug, thiserror::Error)]
#[error("{variable} {problem}; the agent's pod gets it from the downward API")]
pub struct HereError {
    /// Environment variable.
    pub variable: &'static str,
    /// What is wrong.
    pub problem: &'static str,
}

impl Here {
    /// Reads the environment; `None` outside Kubernetes, which is where there is no pod uid.
    ///
    /// # Errors
    /// Where a variable is missing or is not what Kubernetes allows.
    pub fn from_env(variable: impl Fn(&str) -> Option<String>) -> Option<Result<Self, HereError>> {
        let get = |name: &'static str| variable(name).filter(|value| !value.is_empty());
        let uid = get(env::UID)?;
        let part = |name: &'static str, good: fn(&str) -> bool| match get(name) {
            Some(value) if good(&value) => Ok(value),
            Some(_) => Err(HereError { variable: name, problem: "is no name that Kubernetes gives" }),
            None => Err(HereError { variable: name, problem: "is not set" }),
        };
        let read = || {
            if !is_uid(&uid) {
                return Err(HereError { variable: env::UID, problem: "is no uid" });
            }
            let (namespace, name) = (part(env::NAMESPACE, is_label)?, part(env::NAME, is_subdomain)?);
            let cluster = part(env::CLUSTER, |name| !name.contains('/') && !name.contains(char::is_whitespace))?;
            let node = get(env::NODE).map(|_| part(env::NODE, is_subdomain)).transpose()?;
            let pod = PodName { cluster: &cluster, namespace: &namespace, uid: &uid, name: &name }.to_string();
            Ok(Self { pod, node, links: PathBuf::from(LINKS), cluster })
        };
        Some(read())
    }
}

/// What a reading of the links gave, beside names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Containers with a name.
    pub containers: usize,
    /// Pods with a container.
    pub pods: usize,
    /// Entries whose name or target is not what a kubelet writes.
    pub refused: usize,
    /// Entries beyond the bound.
    pub beyond: usize,
}

/// Reads the links. In a sidecar nothing is read: all that it sees is its own pod's.
///
/// # Errors
/// Where the directory cannot be read.
pub fn ask(here: &Here) -> std::io::Result<(Answer, Reading)> {
    let mut reading = Reading::default();
    let mut answer = Answer { tasks: vec![here.pod.clone()], ..Answer::default() };
    let Some(node_name) = &here.node else { return Ok((answer, reading)) };
    let mut pods: BTreeMap<String, Arc<TaskNames>> = BTreeMap::new();
    let names = |arn: String| TaskNames {
        arn,
        cluster: Some(cluster(&here.cluster)),
        launch_type: Some("KUBERNETES".to_owned()),
        node: Some(node(&here.cluster, node_name)),
        ..TaskNames::default()
    };
    for (count, entry) in std::fs::read_dir(&here.links)?.flatten().enumerate() {
        if count >= MAX_LINKS {
            reading.beyond += 1;
            continue;
        }
        let file = entry.file_name();
        let target = std::fs::read_link(entry.path()).ok();
        let Some(link) = file.to_str().zip(target.as_deref()).and_then(|(file, target)| Link::parse(file, target))
        else {
            reading.refused += 1;
            continue;
        };
        let pod = PodName { cluster: &here.cluster, namespace: link.namespace, uid: link.uid, name: link.pod };
        let task = pods.entry(link.uid.to_owned()).or_insert_with(|| Arc::new(names(pod.to_string()))).clone();
        match link.id {
            Some(id) => answer.containers.push(Description {
                id: id.to_owned(),
                name: link.container.to_owned(),
                task: Some(task),
                ..Description::default()
            }),
            None => answer.pods.push((link.uid.to_owned(), task)),
        }
    }
    reading.containers = answer.containers.len();
    reading.pods = pods.len();
    answer.tasks.extend(pods.into_values().map(|pod| pod.arn.clone()).filter(|pod| *pod != here.pod));
    Ok((answer, reading))
}

/// What a link says.
#[derive(Debug, PartialEq, Eq)]
struct Link<'a> {
    pod: &'a str,
    namespace: &'a str,
    container: &'a str,
    uid: &'a str,
    /// Absent where the name was so long that the kubelet cut it.
    id: Option<&'a str>,
}

impl<'a> Link<'a> {
    /// Reads file name and target, which must agree.
    fn parse(file: &'a str, target: &'a Path) -> Option<Self> {
        let mut parts = target.components().rev().map(|part| part.as_os_str().to_str());
        let (log, container, directory) = (parts.next()??, parts.next()??, parts.next()??);
        let mut fields = directory.split('_');
        let (namespace, pod, uid) = (fields.next()?, fields.next()?, fields.next()?);
        let number = log.strip_suffix(".log")?;
        let plain = fields.next().is_none()
            && is_label(namespace)
            && is_subdomain(pod)
            && is_uid(uid)
            && is_label(container)
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit());
        let named = file.strip_suffix(".log")?;
        let rest = named.strip_prefix(pod)?.strip_prefix('_')?.strip_prefix(namespace)?.strip_prefix('_');
        let of = |id| Self { pod, namespace, container, uid, id };
        if !plain {
            return None;
        }
        match rest.and_then(|rest| rest.strip_prefix(container)?.strip_prefix('-')) {
            Some(id) if is_container_id(id) => Some(of(Some(id))),
            // Only what is as long as a name can be was cut.
            _ if file.len() >= LONGEST => Some(of(None)),
            _ => None,
        }
    }
}

fn is_container_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// An uid of the API server, or the hash by which the kubelet knows a static pod.
pub fn is_uid(text: &str) -> bool {
    let hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    match text.len() {
        32 => hex(text),
        36 => text.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && text.split('-').all(hex),
        _ => false,
    }
}

/// RFC 1123 label, as Kubernetes has it: namespaces and containers.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// RFC 1123 subdomain, as Kubernetes has it: pods and nodes.
fn is_subdomain(text: &str) -> bool {
    let part = |part: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    (1..=253).contains(&text.len()) && text.split('.').all(part)
}

/// Asks by `ask` whenever a link comes or goes. Ends with the one who is asked.
///
/// # Errors
/// Where the directory cannot be watched; then it is read every so often only.
pub fn watch(links: &Path, ask: SyncSender<()>) -> std::io::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let changes = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(links, changes | AddWatchFlags::IN_ONLYDIR)?;
    std::thread::Builder::new().name("pods".into()).spawn(move || {
        while inotify.read_events().is_ok() {
            // Full means that a question is already on its way.
            if let Err(TrySendError::Disconnected(())) = ask.try_send(()) {
                return;
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    const UID: &str = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
    const HASH: &str = "0123456789abcdef0123456789abcdef";

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn here(links: &Path, node: Option<&str>) -> Here {
        let own = PodName { cluster: "self", namespace: "tasuki-agents", uid: UID, name: "tasuki-agent-x" };
        Here {
            cluster: "self".to_owned(),
            pod: own.to_string(),
            node: node.map(str::to_owned),
            links: links.to_owned(),
        }
    }

    fn link(directory: &Path, file: &str, target: &str) {
        symlink(target, directory.join(file)).unwrap();
    }

    #[test]
    fn a_directory_of_links_names_the_node_s_containers_and_pods() {
        let links = tempfile::tempdir().unwrap();
        let at = |file: &str, target: &str| link(links.path(), file, target);
        at(&format!("web-0_shop_app-{}.log", id('a')), &format!("/var/log/pods/shop_web-0_{UID}/app/0.log"));
        at(&format!("web-0_shop_side-car-{}.log", id('b')), &format!("/var/log/pods/shop_web-0_{UID}/side-car/12.log"));
        at(
            &format!("etcd-n.x_kube-system_etcd-{}.log", id('c')),
            &format!("/data/pods/kube-system_etcd-n.x_{HASH}/etcd/3.log"),
        );
        let (answer, reading) = ask(&here(links.path(), Some("node-a"))).unwrap();
        assert_eq!(reading, Reading { containers: 3, pods: 2, refused: 0, beyond: 0 });
        let web = format!("k8s/self/pod/shop/{UID}/web-0");
        let mut names: Vec<_> =
            answer.containers.iter().map(|c| (c.name.as_str(), &*c.task.as_ref().unwrap().arn)).collect();
        names.sort_unstable();
        let etcd = format!("k8s/self/pod/kube-system/{HASH}/etcd-n.x");
        assert_eq!(names, [("app", &*web), ("etcd", &*etcd), ("side-car", &*web)]);
        let task = answer.containers[0].task.as_ref().unwrap();
        assert_eq!((task.cluster.as_deref(), task.node.as_deref()), (Some("k8s/self"), Some("k8s/self/node/node-a")));
        let mut tasks = answer.tasks;
        tasks.sort_unstable();
        assert_eq!(tasks, [etcd, web, here(links.path(), None).pod]);
        let (alone, _) = ask(&here(links.path(), None)).unwrap();
        assert_eq!((alone.tasks.len(), alone.containers.len()), (1, 0), "a sidecar speaks for its pod only");
        assert!(ask(&here(&links.path().join("missing"), Some("n"))).is_err());
    }

    #[test]
    fn names_that_no_kubelet_writes_are_refused_and_counted() {
        let links = tempfile::tempdir().unwrap();
        let good = format!("/var/log/pods/shop_web_{UID}/app/0.log");
        let hostile = [
            (format!("web_shop_app-{}", id('a')), good.clone()),
            (format!("web_shop_app-{}.log", "a".repeat(63)), good.clone()),
            (format!("web_shop_app-{}.log", id('A')), good.clone()),
            (format!("web_shop_other-{}.log", id('1')), good.clone()),
            (format!("web_other_app-{}.log", id('2')), good.clone()),
            (format!("we\nb_shop_app-{}.log", id('3')), format!("/var/log/pods/shop_we\nb_{UID}/app/0.log")),
            (format!("web_SHOP_app-{}.log", id('4')), format!("/var/log/pods/SHOP_web_{UID}/app/0.log")),
            (format!("web_shop_app-{}.log", id('5')), "/var/log/pods/shop_web_../app/0.log".to_owned()),
            (format!("web_shop_app-{}.log", id('6')), format!("/var/log/pods/shop_web_{UID}_x/app/0.log")),
            (format!("web_shop_app-{}.log", id('7')), format!("/var/log/pods/shop_web_{UID}/app/../../../etc/shadow")),
            (format!("web_shop_app-{}.log", id('8')), format!("/var/log/pods/shop_web_{UID}/app/x.log")),
            (format!("_shop_app-{}.log", id('9')), format!("/var/log/pods/shop__{UID}/app/0.log")),
        ];
        for (file, target) in &hostile {
            link(links.path(), file, target);
        }
        std::fs::write(links.path().join(format!("web_shop_app-{}.log", id('0'))), "no link").unwrap();
        let (answer, reading) = ask(&here(links.path(), Some("n"))).unwrap();
        assert_eq!((answer.containers, reading.refused), (Vec::new(), hostile.len() + 1));
    }

    #[test]
    fn a_name_that_was_cut_still_gives_the_pod() {
        let links = tempfile::tempdir().unwrap();
        let pod = format!("{}.{}.{}", "a".repeat(60), "b".repeat(60), "c".repeat(60));
        let whole = format!("{pod}_shop_app-{}", id('d'));
        let file = format!("{}.log", &whole[..251]);
        link(links.path(), &file, &format!("/var/log/pods/shop_{pod}_{UID}/app/0.log"));
        let (answer, reading) = ask(&here(links.path(), Some("n"))).unwrap();
        assert_eq!((reading.refused, answer.containers.len()), (0, 0));
        assert_eq!(answer.pods[0].0, UID);
        assert_eq!(answer.tasks[1], format!("k8s/self/pod/shop/{UID}/{pod}"));
    }

    #[test]
    fn no_more_links_are_read_than_the_bound() {
        let links = tempfile::tempdir().unwrap();
        for number in 0..MAX_LINKS + 5 {
            let file = format!("web_shop_app-{number:064x}.log");
            link(links.path(), &file, &format!("/var/log/pods/shop_web_{UID}/app/0.log"));
        }
        let (_, reading) = ask(&here(links.path(), Some("n"))).unwrap();
        assert_eq!((reading.containers, reading.beyond), (MAX_LINKS, 5));
    }

    #[test]
    fn the_environment_says_which_pod_this_is() {
        let read = |changes: &[(&str, &str)]| {
            let variables = [
                (env::CLUSTER, "self"),
                (env::NAMESPACE, "tasuki-agents"),
                (env::NAME, "tasuki-agent-x"),
                (env::UID, UID),
                (env::NODE, "ip-10-0-0-1.ec2.internal"),
            ];
            let changes: BTreeMap<_, _> = changes.iter().copied().collect();
            Here::from_env(move |name| {
                let set = variables.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
                changes.get(name).copied().or(set).map(str::to_owned)
            })
        };
        let whole = read(&[]).unwrap().unwrap();
        assert_eq!(whole.pod, format!("k8s/self/pod/tasuki-agents/{UID}/tasuki-agent-x"));
        assert_eq!(whole.node.as_deref(), Some("ip-10-0-0-1.ec2.internal"));
        assert_eq!(read(&[(env::NODE, "")]).unwrap().unwrap().node, None, "a sidecar");
        assert!(read(&[(env::UID, "")]).is_none(), "outside Kubernetes");
        for (variable, value) in
            [(env::UID, "../../etc"), (env::CLUSTER, ""), (env::NAMESPACE, "a/b"), (env::NAME, "A"), (env::NODE, "n/m")]
        {
            let error = read(&[(variable, value)]).unwrap().unwrap_err();
            assert_eq!(error.variable, variable);
        }
    }

    #[test]
    fn a_new_link_is_told_at_once() {
        let links = tempfile::tempdir().unwrap();
        let (ask, asked) = std::sync::mpsc::sync_channel(1);
        watch(links.path(), ask).unwrap();
        link(links.path(), "x.log", "/nowhere");
        asked.recv_timeout(std::time::Duration::from_secs(30)).unwrap();
        assert!(watch(&links.path().join("missing"), std::sync::mpsc::sync_channel(1).0).is_err());
    }

    proptest! {
        #[test]
        fn no_link_makes_it_panic(file in ".{0,300}", target in "(/[^/]{0,80}){0,6}") {
            let _ = Link::parse(&file, Path::new(&target));
        }
    }
}
