//! One run of one action: what its steps share.

use super::outcome::Stop;
use crate::act::budget::Priority;
use crate::observe::reads::Reads;
use crate::scope::{Api, Scope};
use crate::store::{Intent, Store};
use jiff::Timestamp;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tasuki_core::action::Action;
use tasuki_core::fleet::{Change, Service};
use ulid::Ulid;

/// One run of one action.
pub(super) struct Run<'a> {
    pub(super) scope: Arc<Scope>,
    pub(super) store: &'a Store,
    pub(super) action: &'a Action,
    pub(super) priority: Priority,
    trail: Mutex<Trail>,
}

/// What a run leaves behind: for the action log, and for the fleet.
#[derive(Default)]
pub(super) struct Trail {
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
    pub(super) request_ids: Vec<String>,
    pub(super) changes: Vec<Change>,
}

impl<'a> Run<'a> {
    pub(super) fn new(scope: Arc<Scope>, store: &'a Store, action: &'a Action, priority: Priority) -> Self {
        Self { scope, store, action, priority, trail: Mutex::default() }
    }

    pub(super) fn reads(&self) -> Reads<'_> {
        Reads { scope: &self.scope, priority: self.priority }
    }

    pub(super) fn before(&self, text: impl Into<String>) {
        self.trail().before = Some(text.into());
    }
    pub(super) fn after(&self, text: impl Into<String>) {
        self.trail().after = Some(text.into());
    }
    pub(super) fn request_id(&self, id: Option<&str>) {
        self.trail().request_ids.extend(id.map(str::to_owned));
    }
    pub(super) fn change(&self, change: Change) {
        self.trail().changes.push(change);
    }
    pub(super) fn into_trail(self) -> Trail {
        self.trail.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call that must not happen twice: its intent is in the journal before, and out of it
    /// after, whatever the answer was. `marker` is how the call is recognised by looking.
    pub(super) async fn journaled<T>(
        &self,
        api: Api,
        marker: &str,
        call: impl AsyncFnOnce(Ulid) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        let intent = Intent {
            id: Ulid::new(),
            action: self.action.clone(),
            call: api.name.to_owned(),
            marker: marker.to_owned(),
        };
        self.store.open_intent(&intent, Timestamp::now()).await?;
        let result = call(intent.id).await;
        self.store.close_intent(intent.id).await?;
        result
    }

    /// Reads one service of the action's cluster; the fleet is told what was read.
    ///
    /// # Errors
    /// [`Stop::Changed`] where it does not exist or is being deleted.
    pub(super) async fn service(&self, name: &str) -> Result<Service, Stop> {
        match self.find_service(name).await? {
            Some(service) if service.active => Ok(service),
            Some(_) => Err(Stop::Changed(format!("service {name} is being deleted"))),
            None => Err(Stop::Changed(format!("service {name} does not exist"))),
        }
    }

    /// Reads one service, if it exists.
    pub(super) async fn find_service(&self, name: &str) -> Result<Option<Service>, Stop> {
        let found = self.reads().services(&self.action.cluster, &[name.into()]).await?.into_iter().next();
        match &found {
            Some(service) => self.change(Change::Service(Box::new(service.clone()))),
            None if name.starts_with("arn:") => self.change(Change::ServiceGone(name.into())),
            None => {}
        }
        Ok(found)
    }

    fn trail(&self) -> MutexGuard<'_, Trail> {
        self.trail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
