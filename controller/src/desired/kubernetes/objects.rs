//! Objects as they were last seen, each judged once per change.

use super::accepted::{self, Verdict};
use super::definitions::Fit;
use super::watching::Change;
use crate::desired::parse::{Parsed, object, schema};
use crate::desired::problem::{Level, Problem};
use crate::desired::shape;
use crate::desired::yaml::at;
use crate::desired::{Id, Loaded, Loader, Origin};
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use tasuki_api::desired::API_VERSION;
use tasuki_api::status::DocumentStatus;

/// What kubectl keeps for itself is no part of a document.
const KUBECTL: &str = "kubectl.kubernetes.io/";

/// One object.
#[derive(Debug)]
struct Seen {
    uid: Option<String>,
    /// What was judged.
    content: Value,
    generation: i64,
    parsed: Parsed,
    /// Fields that this version does not know.
    unknown: Vec<String>,
    /// Its status, as it stands in the cluster.
    status: DocumentStatus,
}

/// Every object of every kind. Bounded by what the cluster holds.
#[derive(Debug, Default)]
pub struct Objects {
    seen: BTreeMap<Id, Seen>,
    loader: Loader,
    /// Kinds whose watch does not get through.
    troubles: BTreeMap<&'static str, String>,
    /// How the stored definitions compare with ours.
    fits: BTreeMap<&'static str, Fit>,
}

impl Objects {
    /// Takes a change. Returns whether anything has to be judged or said anew.
    pub fn take(&mut self, change: Change) -> bool {
        match change {
            Change::All(kind, objects) => {
                let mut changed = self.troubles.remove(kind).is_some();
                let names: HashSet<String> = objects.iter().map(ResourceExt::name_any).collect();
                let before = self.seen.len();
                self.seen.retain(|(of, name), _| of != kind || names.contains(name));
                changed |= before != self.seen.len();
                for object in objects {
                    changed |= self.put(kind, object);
                }
                changed
            }
            Change::One(kind, object) => self.put(kind, *object),
            Change::Gone(kind, name) => self.seen.remove(&(kind.to_owned(), name)).is_some(),
            Change::Trouble(kind, words) => self.troubles.insert(kind, words.clone()) != Some(words),
            Change::Definition(kind, fit) => self.fits.insert(kind, fit.clone()) != Some(fit),
        }
    }

    /// Whether there is an object of this kind.
    pub fn has(&self, kind: &str) -> bool {
        self.seen.keys().any(|(of, _)| of == kind)
    }

    fn put(&mut self, kind: &'static str, object: DynamicObject) -> bool {
        let id = (kind.to_owned(), object.name_any());
        // What is being deleted is gone, whoever's finalizer it still waits for.
        if object.metadata.deletion_timestamp.is_some() {
            return self.seen.remove(&id).is_some();
        }
        let status = serde_json::from_value(object.data["status"].clone()).unwrap_or_default();
        let generation = object.metadata.generation.unwrap_or_default();
        let content = content(kind, &object);
        let uid = object.metadata.uid;
        if let Some(seen) = self.seen.get_mut(&id) {
            if seen.uid == uid && seen.content == content {
                seen.status = status;
                return std::mem::replace(&mut seen.generation, generation) != generation;
            }
            // One that only has the same name has no good version before this one.
            if seen.uid != uid {
                self.loader.forget(&id);
            }
        }
        let (parsed, unknown) = judge(kind, &id.1, content.clone());
        self.seen.insert(id, Seen { uid, content, generation, parsed, unknown, status });
        true
    }

    /// What is in force now, and what is wrong.
    pub fn load(&mut self) -> Loaded {
        let parsed = self.seen.iter().map(|((kind, name), seen)| (format!("{kind}/{name}"), seen.parsed.clone()));
        let parsed = parsed.collect();
        let unreadable = self.fits.iter().filter_map(|(kind, fit)| match fit {
            Fit::Unreadable(words) => Some((kind, words)),
            Fit::Whole | Fit::Older(_) => None,
        });
        let troubles = self.troubles.iter().chain(unreadable);
        let troubles = troubles.map(|(kind, words)| warning(kind, words.clone())).collect();
        let seen = &self.seen;
        let mut loaded = self.loader.take(parsed, troubles, |id, _| seen.contains_key(id));
        let origin = |seen: &Seen| Origin { generation: seen.generation, uid: seen.uid.clone().unwrap_or_default() };
        loaded.origins = self.seen.iter().map(|(id, seen)| (id.clone(), origin(seen))).collect();
        self.hold_back(&mut loaded);
        loaded
    }

    /// Lets no monitor enforce beside a definition that is older than this program.
    fn hold_back(&self, loaded: &mut Loaded) {
        let older = self.fits.values().find_map(|fit| match fit {
            Fit::Older(words) => Some(words),
            Fit::Whole | Fit::Unreadable(_) => None,
        });
        let Some(older) = older else { return };
        let why = format!("treated as Observe, because the API server may have dropped what was written: {older}");
        let help = "run `helm upgrade` with crds.enabled=true, or `kubectl apply --server-side -f manifests/crds/` of the \
                    controller's version; then apply your documents again";
        for id in loaded.let_no_monitor_enforce(&format!("{why} ({help})")) {
            let name = format!("{}/{}", id.0, id.1);
            loaded.problems.push(Problem {
                subject: Some(name.clone()),
                path: "spec.mode".to_owned(),
                help: vec![help.to_owned()],
                ..warning(&name, why.clone())
            });
        }
        loaded.problems.sort();
    }

    /// What each object's status should say.
    pub fn verdicts(&self, loaded: &Loaded, now: Timestamp) -> BTreeMap<Id, Verdict> {
        let mut problems: BTreeMap<&str, Vec<&Problem>> = BTreeMap::new();
        for problem in &loaded.problems {
            problems.entry(&problem.file).or_default().push(problem);
        }
        let verdict = |(id, seen): (&Id, &Seen)| {
            let mine = problems.get(format!("{}/{}", id.0, id.1).as_str()).map(Vec::as_slice).unwrap_or_default();
            let held = loaded.held.contains(id);
            let wanted = accepted::status(mine, &seen.unknown, held, seen.generation, &seen.status, now);
            (id.clone(), Verdict { written: accepted::own(&seen.status) == wanted, status: wanted })
        };
        self.seen.iter().map(verdict).collect()
    }
}

fn warning(of: &str, words: String) -> Problem {
    Problem { level: Level::Warning, ..Problem::file(of, words, Vec::new()) }
}

/// What is judged of an object.
fn content(kind: &str, object: &DynamicObject) -> Value {
    let annotations: BTreeMap<_, _> =
        object.annotations().iter().filter(|(key, _)| !key.starts_with(KUBECTL)).collect();
    let mut content = json!({
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": { "name": object.name_any(), "labels": object.labels(), "annotations": annotations },
    });
    if let Some(spec) = object.data.get("spec") {
        content["spec"] = spec.clone();
    }
    content
}

fn judge(kind: &str, name: &str, mut content: Value) -> (Parsed, Vec<String>) {
    let (root, mut unknown) = (schema(kind), Vec::new());
    if let Some(spec) = content.get_mut("spec") {
        shape::prune(root, &root["properties"]["spec"], spec, &at!["spec"], &mut unknown);
    }
    let unknown = unknown.iter().map(ToString::to_string).collect();
    (object(&format!("{kind}/{name}"), content), unknown)
}
