//! The one writer of what [`status_of`](super::status_of) says.

use super::{Monitor, status_of};
use crate::desired::Loaded;
use crate::desired::kubernetes::{apply_status, resource};
use crate::engine::View;
use crate::scope::kubernetes::is_absent;
use jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DynamicObject};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tasuki_api::desired::Document;
use tasuki_api::status::MonitorStatus;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Field manager. Not that of `Accepted`: one manager applies all that it owns at once.
const MANAGER: &str = "tasuki-coverage";
/// The kind whose status is written.
const KIND: &str = "RuntimeMonitor";
/// Counts are written no more often than this, and so no more than 10 s late: the view and the writing take a part.
pub const PAUSE: Duration = Duration::from_secs(8);

/// Writes the status of every monitor from the engine's view: at once when a document changed, at
/// most every [`PAUSE`] when only counts did, and never when nothing did. Ends when either is closed.
pub fn write(
    client: Client,
    mut view: watch::Receiver<Arc<View>>,
    mut desired: watch::Receiver<Arc<Loaded>>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut writer = Writer { client, written: BTreeMap::new() };
        loop {
            let (seen, loaded) = (view.borrow_and_update().clone(), desired.borrow_and_update().clone());
            let failed = writer.pass(&seen, &loaded, Timestamp::now()).await;
            let pause = tokio::time::sleep(PAUSE);
            tokio::select! {
                changed = desired.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                () = pause => {}
            }
            if failed {
                continue;
            }
            tokio::select! {
                changed = desired.changed() => if changed.is_err() { return },
                changed = view.changed() => if changed.is_err() { return },
            }
        }
    })
}

struct Writer {
    client: Client,
    /// What each monitor's status says, by name and uid.
    written: BTreeMap<(String, String), MonitorStatus>,
}

impl Writer {
    /// Writes what differs. Returns whether something could not be written.
    async fn pass(&mut self, view: &View, loaded: &Loaded, now: Timestamp) -> bool {
        let monitors: BTreeMap<(String, String), i64> = loaded
            .origins
            .iter()
            .filter(|((kind, _), _)| kind == KIND)
            .map(|((_, name), origin)| ((name.clone(), origin.uid.clone()), origin.generation))
            .collect();
        self.written.retain(|key, _| monitors.contains_key(key));
        let mut failed = false;
        for (key, generation) in monitors {
            let id = (KIND.to_owned(), key.0.clone());
            let document = loaded.documents.get(&id);
            let spec = document.and_then(|document| match &**document {
                Document::RuntimeMonitor(monitor) => Some(&monitor.spec),
                _ => None,
            });
            let refused = spec.is_none() || loaded.held.contains(&id);
            // Until the fleet is known, what an earlier process wrote is the best that can be said.
            if view.at.is_none() && !refused {
                continue;
            }
            let held_back = loaded.held_back.get(&id).map(String::as_str);
            let monitor = Monitor { name: &key.0, generation, spec, refused, held_back };
            match self.one(view, monitor, &key, now).await {
                Ok(()) => {}
                // Gone in the meantime.
                Err(error) if is_absent(&error) => drop(self.written.remove(&key)),
                Err(error) => {
                    tracing::warn!(monitor = key.0, %error, "status cannot be written, trying again");
                    failed = true;
                }
            }
        }
        failed
    }

    async fn one(
        &mut self,
        view: &View,
        monitor: Monitor<'_>,
        key: &(String, String),
        now: Timestamp,
    ) -> Result<(), kube::Error> {
        let before = match self.written.get(key) {
            Some(before) => before.clone(),
            // An earlier process may have written it: its times still hold.
            None => {
                let before = self.read(monitor.name).await?;
                self.written.insert(key.clone(), before.clone());
                before
            }
        };
        let status = status_of(view, monitor, &before, now);
        if status == before {
            return Ok(());
        }
        let body = serde_json::to_value(&status).unwrap_or_default();
        apply_status(&self.client, MANAGER, KIND, monitor.name, &body).await?;
        self.written.insert(key.clone(), status);
        Ok(())
    }

    /// The part of a monitor's status that is written here.
    async fn read(&self, name: &str) -> Result<MonitorStatus, kube::Error> {
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource(KIND));
        let object = api.get(name).await?;
        let mut status: MonitorStatus = object
            .data
            .get("status")
            .and_then(|status| serde_json::from_value(status.clone()).ok())
            .unwrap_or_default();
        status.observed_generation = None;
        status.conditions.retain(|condition| condition.kind != tasuki_api::status::condition::ACCEPTED);
        Ok(status)
    }
}
