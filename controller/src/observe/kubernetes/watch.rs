//! The watches of one cluster, brought together: what is complete, what changed, what is gone.

use super::lean::LeanPod;
use super::lists::{Stream, paged, streamed};
use super::offers::Offers;
use super::project::{self, Roles, platform_of};
use crate::events::{Events, about};
use crate::scope::kubernetes::{FIELD_MANAGER, Kubernetes, code, labels, words};
use crate::scope::sidecars;
use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Event as Notice, Node, Pod, ResourceQuota};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use tasuki_core::fleet::{Change, LaunchType, Str, TaskStatus};
use tokio::sync::{mpsc, watch};

/// Objects asked for at once: a page of pods stays below a few MiB.
const PAGE: u32 = 500;
/// Notices kept of one DaemonSet.
const NOTICES: usize = 5;

/// How fresh what is known of the cluster is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubernetesStatus {
    /// When everything was last listed in full.
    pub swept_at: Option<Timestamp>,
    /// When the API server last sent something.
    pub event_at: Option<Timestamp>,
    /// Listing was tried: either it is complete, or the API server refused.
    pub tried: bool,
}

/// Follows the cluster until `changes` is closed. Watches that end begin again, later each time.
/// Somebody else's changes of what is ours are told by `events`.
pub async fn watch(
    scope: Kubernetes,
    changes: mpsc::Sender<Change>,
    status: watch::Sender<KubernetesStatus>,
    events: Events,
) {
    let config = watcher::Config::default().page_size(PAGE);
    let agents = Api::<DaemonSet>::namespaced(scope.client.clone(), &scope.agent_namespace);
    let notices = Api::<Notice>::namespaced(scope.client.clone(), &scope.agent_namespace);
    let refused = config.clone().fields("reason=FailedCreate,involvedObject.kind=DaemonSet");
    let mut nodes = paged(Api::<Node>::all(scope.client.clone()), config.clone());
    let ours = config.clone().labels(&format!("{}={}", labels::NAME, labels::AGENT_NAME));
    // There are two of them at most, and who wrote into them matters.
    let mut sets: Stream<DaemonSet> = watcher(agents, ours).default_backoff().boxed();
    let mut notices = paged(notices, refused);
    let (mut offers, mut quotas) = match scope.live_sidecars {
        true => {
            let maps = Api::<ConfigMap>::namespaced(scope.client.clone(), &scope.agent_namespace);
            let map = config.clone().fields(&format!("metadata.name={}", sidecars::MAP));
            (paged(maps, map), paged(Api::<ResourceQuota>::all(scope.client.clone()), config.clone()))
        }
        false => (futures_util::stream::pending().boxed(), futures_util::stream::pending().boxed()),
    };
    let mut pods = streamed(Api::<LeanPod>::all(scope.client.clone()), config);
    let mut seen = Seen::new(scope, changes, status, events);
    seen.send(Change::Cluster(Box::new(seen.scope.as_cluster()))).await;
    while seen.open {
        // A pod is placed by its node and its DaemonSet: those are listed before.
        let ready = seen.nodes.complete && seen.sets.complete;
        tokio::select! {
            () = seen.changes.closed() => return,
            Some(event) = nodes.next() => seen.node(event).await,
            Some(event) = sets.next() => seen.set(event).await,
            Some(event) = notices.next() => seen.notice(event).await,
            Some(event) = offers.next() => seen.offer(event).await,
            Some(event) = quotas.next() => seen.quota(event).await,
            Some(event) = pods.next(), if ready => seen.pod(event).await,
            else => return,
        }
    }
}

/// What of one kind is there.
#[derive(Default)]
struct Listed {
    names: HashSet<Str>,
    /// A list under way.
    listing: Option<HashSet<Str>>,
    began: Option<Timestamp>,
    complete: bool,
}

impl Listed {
    fn begin(&mut self) {
        (self.listing, self.began) = (Some(HashSet::new()), Some(Timestamp::now()));
    }
    fn put(&mut self, name: &Str) {
        if let Some(listing) = &mut self.listing {
            listing.insert(name.clone());
        }
        self.names.insert(name.clone());
    }
    /// The list is complete.
    fn done(&mut self) {
        if let Some(listing) = self.listing.take() {
            self.names = listing;
        }
        self.complete = true;
    }
}

struct Seen {
    scope: Kubernetes,
    events: Events,
    /// Who else wrote into which DaemonSet, as far as it was told.
    meddlers: HashSet<(String, String)>,
    changes: mpsc::Sender<Change>,
    status: watch::Sender<KubernetesStatus>,
    open: bool,
    nodes: Listed,
    sets: Listed,
    pods: Listed,
    /// What is known of namespaces: offers, quotas, trials.
    namespaces: Offers,
    /// Those of them that were told as services.
    told: HashSet<Str>,
    /// Their two lists were complete once, or refused.
    offers_listed: bool,
    quotas_listed: bool,
    /// The map was not in the list that is under way.
    is_map_missing: bool,
    platforms: HashMap<String, (LaunchType, Str)>,
    daemons: BTreeMap<String, DaemonSet>,
    roles: Roles,
    notices: BTreeMap<String, Vec<(Timestamp, Str)>>,
    /// Pods of the agent's own, as text: when their DaemonSet changes its role, so do they. Parsed, those of a thousand
    /// nodes take ten times as much memory.
    own: HashMap<Str, Box<[u8]>>,
}

impl Seen {
    fn new(
        scope: Kubernetes,
        changes: mpsc::Sender<Change>,
        status: watch::Sender<KubernetesStatus>,
        events: Events,
    ) -> Self {
        let live = scope.live_sidecars;
        Self {
            scope,
            events,
            meddlers: HashSet::new(),
            changes,
            status,
            open: true,
            nodes: Listed::default(),
            sets: Listed::default(),
            pods: Listed::default(),
            namespaces: Offers::default(),
            told: HashSet::new(),
            // Nothing is waited for that never comes.
            offers_listed: !live,
            quotas_listed: !live,
            is_map_missing: false,
            platforms: HashMap::new(),
            daemons: BTreeMap::new(),
            roles: Roles::new(),
            notices: BTreeMap::new(),
            own: HashMap::new(),
        }
    }

    async fn send(&mut self, change: Change) {
        self.open &= self.changes.send(change).await.is_ok();
    }

    fn heard(&self) {
        self.status.send_modify(|status| status.event_at = Some(Timestamp::now()));
    }

    /// What a watch gave, where it gave something; a refusal becomes known to the fleet.
    async fn given<K>(&mut self, kind: &str, event: Result<Event<K>, watcher::Error>) -> Option<Event<K>> {
        let error = match event {
            Ok(event) => {
                self.heard();
                return Some(event);
            }
            Err(error) => error,
        };
        let refusal = match &error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => Some((code(error), words(error))),
            watcher::Error::WatchError(status) => Some((Some(status.code), status.message.clone())),
            watcher::Error::NoResourceVersion => None,
        };
        let (code, detail) = refusal.unwrap_or((None, error.to_string()));
        tracing::warn!(kind, code, detail, "a watch ended; it begins again");
        if matches!(code, Some(401 | 403)) {
            let (scope, api) = (self.scope.scope(), format!("list,watch {kind}"));
            self.send(Change::Denied { scope, api, detail }).await;
            self.status.send_modify(|status| status.tried = true);
        }
        None
    }

    async fn node(&mut self, event: Result<Event<Node>, watcher::Error>) {
        match self.given("nodes", event).await {
            Some(Event::Init) => self.nodes.begin(),
            Some(Event::Apply(node) | Event::InitApply(node)) => {
                let Some(seen) = project::node(&self.scope, &node) else { return };
                self.platforms.insert(node.name_any(), platform_of(&node));
                self.nodes.put(&seen.arn);
                self.send(Change::NodeRead { read_at: Timestamp::now(), node: Box::new(seen) }).await;
            }
            Some(Event::Delete(node)) => {
                let Some(seen) = project::node(&self.scope, &node) else { return };
                self.platforms.remove(&node.name_any());
                self.nodes.names.remove(&seen.arn);
                self.send(Change::NodeGone(seen.arn)).await;
            }
            Some(Event::InitDone) => {
                self.nodes.done();
                self.swept().await;
            }
            None => {}
        }
    }

    async fn set(&mut self, event: Result<Event<DaemonSet>, watcher::Error>) {
        match self.given("daemonsets", event).await {
            Some(Event::Init) => {
                self.sets.begin();
                self.daemons.clear();
            }
            Some(Event::Apply(mut set) | Event::InitApply(mut set)) => {
                self.tell_meddlers(&set);
                set.metadata.managed_fields = None;
                self.daemons.insert(set.name_any(), set);
                if self.sets.listing.is_none() {
                    self.tell_daemons().await;
                }
            }
            Some(Event::Delete(set)) => {
                self.daemons.remove(&set.name_any());
                self.notices.remove(&set.name_any());
                self.meddlers.retain(|(of, _)| *of != set.name_any());
                self.tell_daemons().await;
            }
            Some(Event::InitDone) => {
                self.tell_daemons().await;
                self.sets.done();
                self.swept().await;
            }
            None => {}
        }
    }

    /// A DaemonSet of ours that somebody else has changed is told once, and not put back: two who put back fight.
    fn tell_meddlers(&mut self, set: &DaemonSet) {
        let Some(monitor) = set.annotations().get(labels::MONITOR).filter(|_| project::role_of(set).is_some()) else {
            return;
        };
        let name = set.name_any();
        for manager in project::meddlers(set, FIELD_MANAGER) {
            let note = format!(
                "DaemonSet {name}: {manager} has changed its spec, which is Tasuki's own. It is left so until the agent's \
                 next version; take it out of what {manager} manages"
            );
            if self.meddlers.insert((name.clone(), manager)) {
                tracing::warn!(set = name, "{note}");
                self.events.warning(about("RuntimeMonitor", monitor, ""), "DaemonSetChanged", &note);
            }
        }
    }

    /// Of each role the newest DaemonSet that is not being deleted; then the pods whose role that changes.
    async fn tell_daemons(&mut self) {
        let alive = self.daemons.values().filter(|set| set.metadata.deletion_timestamp.is_none());
        let mut newest: BTreeMap<&'static str, &DaemonSet> = BTreeMap::new();
        for set in alive {
            let Some(role) = project::role_of(set) else { continue };
            let held = newest.entry(role).or_insert(set);
            if set.metadata.creation_timestamp > held.metadata.creation_timestamp {
                *held = set;
            }
        }
        let told = newest.iter().filter_map(|(role, set)| {
            let events = self.refusals(set);
            project::daemon(&self.scope, set, role, events)
        });
        let told: Vec<_> = told.collect();
        let roles: Roles = newest.iter().map(|(role, set)| (set.name_any(), *role)).collect();
        let names: HashSet<Str> = told.iter().map(|(service, _)| service.arn.clone()).collect();
        let gone: Vec<Str> = self.sets.names.difference(&names).cloned().collect();
        for arn in gone {
            self.sets.names.remove(&arn);
            self.send(Change::ServiceGone(arn)).await;
        }
        for (service, definition) in told {
            self.sets.put(&service.arn);
            self.send(Change::Definition(Box::new(definition))).await;
            self.send(Change::Service(Box::new(service))).await;
        }
        if roles != self.roles {
            self.roles = roles;
            let own: Vec<Box<[u8]>> = self.own.values().cloned().collect();
            for pod in own.iter().filter_map(|text| serde_json::from_slice(text).ok()) {
                self.tell_pod(&pod).await;
            }
        }
    }

    /// Why a DaemonSet cannot make its pods, as long as it lacks some; the newest first.
    fn refusals(&self, set: &DaemonSet) -> Vec<Str> {
        let lacks = set.status.as_ref().is_some_and(|s| s.current_number_scheduled < s.desired_number_scheduled);
        let notices = self.notices.get(&set.name_any()).filter(|_| lacks);
        notices.into_iter().flatten().map(|(_, text)| text.clone()).collect()
    }

    async fn notice(&mut self, event: Result<Event<Notice>, watcher::Error>) {
        let Some(Event::Apply(notice) | Event::InitApply(notice)) = self.given("events", event).await else { return };
        let Some(name) = notice.involved_object.name.filter(|name| self.daemons.contains_key(name)) else { return };
        let last = notice.last_timestamp.as_ref().map(|time| time.0);
        let at = last.or(notice.event_time.as_ref().map(|time| time.0)).unwrap_or_default();
        let text: Str = notice.message.unwrap_or_default().chars().take(300).collect::<String>().into();
        let held = self.notices.entry(name).or_default();
        held.retain(|(_, known)| *known != text);
        held.push((at, text));
        held.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        held.truncate(NOTICES);
        self.tell_daemons().await;
    }

    async fn offer(&mut self, event: Result<Event<ConfigMap>, watcher::Error>) {
        // A right that is missing holds nothing else up.
        let is_list = matches!(event, Err(_) | Ok(Event::InitDone));
        self.offers_listed |= is_list;
        let changed = match self.given("configmaps", event).await {
            Some(Event::Init) => {
                self.is_map_missing = true;
                return;
            }
            Some(Event::InitApply(map)) => {
                self.is_map_missing = false;
                self.namespaces.take(Some(&map))
            }
            Some(Event::Apply(map)) => self.namespaces.take(Some(&map)),
            Some(Event::Delete(_)) => self.namespaces.take(None),
            Some(Event::InitDone) => match self.is_map_missing {
                true => self.namespaces.take(None),
                false => BTreeSet::new(),
            },
            None => BTreeSet::new(),
        };
        self.tell_namespaces(changed, is_list).await;
    }

    async fn quota(&mut self, event: Result<Event<ResourceQuota>, watcher::Error>) {
        let is_list = matches!(event, Err(_) | Ok(Event::InitDone));
        self.quotas_listed |= is_list;
        let changed: BTreeSet<String> = match self.given("resourcequotas", event).await {
            Some(Event::Init) => {
                self.namespaces.list_quotas();
                return;
            }
            Some(Event::InitApply(quota)) => {
                self.namespaces.listed_quota(&quota);
                return;
            }
            Some(Event::Apply(quota)) => self.namespaces.quota(&quota, true).into_iter().collect(),
            Some(Event::Delete(quota)) => self.namespaces.quota(&quota, false).into_iter().collect(),
            Some(Event::InitDone) => self.namespaces.all_quotas_listed(),
            None => BTreeSet::new(),
        };
        self.tell_namespaces(changed, is_list).await;
    }

    async fn tell_namespaces(&mut self, changed: BTreeSet<String>, is_list: bool) {
        for namespace in changed {
            self.tell_namespace(&namespace).await;
        }
        if is_list {
            self.swept().await;
        }
    }

    /// Where a pod tries an image: how that goes. It is a task beside that.
    async fn tell_trial(&mut self, pod: &Pod, is_there: bool) {
        if self.scope.live_sidecars
            && let Some(namespace) = self.namespaces.trial(pod, is_there)
        {
            self.tell_namespace(&namespace).await;
        }
    }

    /// What a namespace is offered in sidecars.
    async fn tell_namespace(&mut self, namespace: &str) {
        match self.namespaces.service(&self.scope, namespace) {
            Some((service, definition)) => {
                self.told.insert(service.arn.clone());
                if let Some(definition) = definition {
                    self.send(Change::Definition(Box::new(definition))).await;
                }
                self.send(Change::Service(Box::new(service))).await;
            }
            None => {
                let arn: Str = tasuki_api::kubernetes::sidecar(&self.scope.cluster, namespace).into();
                if self.told.remove(&arn) {
                    self.send(Change::ServiceGone(arn)).await;
                }
            }
        }
    }

    async fn pod(&mut self, event: Result<Event<LeanPod>, watcher::Error>) {
        match self.given("pods", event).await {
            Some(Event::Init) => {
                self.pods.begin();
                self.namespaces.list_trials();
            }
            Some(Event::Apply(LeanPod(pod)) | Event::InitApply(LeanPod(pod))) => self.tell_pod(&pod).await,
            Some(Event::Delete(LeanPod(pod))) => {
                self.tell_trial(&pod, false).await;
                let Some(mut task) = self.task(&pod) else { return };
                self.pods.names.remove(&task.arn);
                self.own.remove(&task.arn);
                task.status = TaskStatus::Stopped;
                task.stopped_at = task.stopped_at.or_else(|| Some(Timestamp::now()));
                self.send(Change::Task(Box::new(task))).await;
            }
            Some(Event::InitDone) => {
                self.pods.done();
                let names = &self.pods.names;
                self.own.retain(|arn, _| names.contains(arn));
                let changed = self.namespaces.all_trials_listed();
                self.tell_namespaces(changed, true).await;
            }
            None => {}
        }
    }

    fn task(&self, pod: &Pod) -> Option<tasuki_core::fleet::Task> {
        let platform =
            |name: &str| self.platforms.get(name).cloned().unwrap_or((LaunchType::Kubernetes, Str::default()));
        project::pod_task(&self.scope, pod, &self.roles, platform)
    }

    async fn tell_pod(&mut self, pod: &Pod) {
        self.tell_trial(pod, true).await;
        let Some(task) = self.task(pod) else { return };
        self.pods.put(&task.arn);
        if pod.metadata.namespace.as_deref() == Some(&*self.scope.agent_namespace) {
            match serde_json::to_vec(&project::outline(pod)) {
                Ok(text) => drop(self.own.insert(task.arn.clone(), text.into())),
                // It keeps its role until its DaemonSet's next list.
                Err(error) => tracing::warn!(pod = %task.arn, %error, "a pod cannot be written as text"),
            }
        }
        let change = match task.status {
            TaskStatus::Stopped => Change::Task(Box::new(task)),
            _ => Change::TaskRead { read_at: Timestamp::now(), task: Box::new(task) },
        };
        self.send(change).await;
    }

    /// Everything was listed: what no list has is gone.
    async fn swept(&mut self) {
        let all = [&self.nodes, &self.sets, &self.pods];
        if !all.iter().all(|listed| listed.complete) || !self.offers_listed || !self.quotas_listed {
            return;
        }
        // What changed since a list began is among the names as well.
        let Some(read_at) = all.iter().filter_map(|listed| listed.began).max() else { return };
        let [nodes, mut services, tasks] = all.map(|listed| listed.names.iter().cloned().collect::<Vec<_>>());
        services.extend(self.told.iter().cloned());
        let (scope, cluster) = (self.scope.scope(), self.scope.arn());
        self.send(Change::Swept { cluster: cluster.clone(), read_at, tasks, services, nodes }).await;
        self.send(Change::ScopeSwept { scope, read_at, clusters: vec![cluster] }).await;
        self.status.send_modify(|status| {
            status.swept_at = Some(Timestamp::now());
            status.tried = true;
        });
    }
}
