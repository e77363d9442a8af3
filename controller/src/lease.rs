//! Who leads: one process at a time, by a Lease of Kubernetes.
//!
//! ```text
//!            free or expired                 renewed every RENEW
//!  waiting ──────────────────▶ held by me ─────────────────────────┐
//!     ▲                          │  ▲                              │
//!     │ held by another          │  └──────────────────────────────┘
//!     └──────────────────────────┴── taken by another, or not renewed for GIVE_UP: lost
//! ```
//!
//! *Guarantees*: every write carries the resourceVersion that it was decided on, so two processes
//! never both believe a write of theirs. A holder calls itself lost before its lease can run out
//! for others. *Caveats*: what a holder sent before it was lost may still arrive; every action is
//! decided on a state that it re-reads, so a late one does no harm.

use crate::scope::kubernetes::{FIELD_MANAGER, Kubernetes, is_conflict};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::api::{Api, ObjectMeta, PostParams};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a lease holds without being renewed.
pub const DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed, and asked for by those who wait.
pub const RENEW: Duration = Duration::from_secs(5);
/// Without a renewal for this long a holder gives up: before others may take it.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Whatever a lease says of itself, nobody waits longer for it.
const LONGEST: Duration = Duration::from_secs(60);
/// A request that takes longer is no renewal.
const REQUEST: Duration = Duration::from_secs(4);

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take it: it is free, or its holder let it run out.
    Acquire,
    /// Renew it: it is ours.
    Renew,
    /// Wait: another one holds it.
    Yield,
}

/// What `id` is to do about a lease that it has seen stand unchanged for `unchanged` by its own
/// clock. Times inside the lease are not compared with ours: clocks differ.
pub fn evaluate(spec: Option<&LeaseSpec>, id: &str, unchanged: Duration) -> Step {
    let Some(spec) = spec else { return Step::Acquire };
    match spec.holder_identity.as_deref() {
        None | Some("") => Step::Acquire,
        Some(holder) if holder == id => Step::Renew,
        Some(_) => {
            let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let holds = Duration::from_secs(seconds.unwrap_or(DURATION.as_secs()).clamp(1, LONGEST.as_secs()));
            if unchanged < holds { Step::Yield } else { Step::Acquire }
        }
    }
}

/// The spec that `id` writes.
fn taken(before: Option<&LeaseSpec>, step: Step, id: &str, now: Timestamp) -> LeaseSpec {
    let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
    let acquired = before.and_then(|spec| spec.acquire_time.clone()).filter(|_| step == Step::Renew);
    LeaseSpec {
        holder_identity: Some(id.to_owned()),
        lease_duration_seconds: Some(DURATION.as_secs().try_into().unwrap_or(i32::MAX)),
        acquire_time: Some(acquired.unwrap_or(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if step == Step::Renew { transitions } else { transitions.saturating_add(1) }),
        ..LeaseSpec::default()
    }
}

/// Holder and time of renewal.
type Sight = (Option<String>, Option<MicroTime>);

/// A lease by name.
#[derive(Clone)]
pub struct Lease {
    api: Api<Object>,
    name: String,
    id: String,
    /// What goes takes the lease with it.
    owner: Option<OwnerReference>,
    /// Holder and time of the lease as they were last seen, and since when.
    seen: Option<(Sight, Instant)>,
}

impl Lease {
    /// Waits until the lease is held by `identity`, which no other process may have (the pod's name
    /// and uid). Failures are logged and tried again; `waits` says for what it waits, to anybody.
    pub async fn acquire(
        cluster: &Kubernetes,
        name: &str,
        identity: &str,
        waits: &watch::Sender<&'static str>,
    ) -> Held {
        let api = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let mut lease = Self { api, name: name.to_owned(), id: identity.to_owned(), owner: None, seen: None };
        let mut said = String::new();
        loop {
            // Whose the lease is does not decide who leads.
            lease.owner = cluster.anchor(&cluster.namespace).await.unwrap_or_default();
            let tried = lease.attempt().await;
            let words = match &tried {
                Ok(None) => {
                    tracing::info!(lease = lease.name, identity, "leading");
                    return Held::keep(lease);
                }
                Ok(Some(holder)) => {
                    waits.send_replace("another controller holds the lease");
                    format!("waiting for the lease, which {holder} holds")
                }
                Err(error) => {
                    waits.send_replace("the API server does not give the lease");
                    format!("the lease cannot be had, trying again: {error}")
                }
            };
            if words != said {
                tracing::info!(lease = lease.name, "{words}");
                said = words;
            }
            tokio::time::sleep(RENEW).await;
        }
    }

    /// Takes or renews it. Answers who holds it where that is another one.
    async fn attempt(&mut self) -> Result<Option<String>, Error> {
        let work = tokio::time::timeout(REQUEST, self.attempt_now());
        work.await.unwrap_or(Err(Error::Slow))
    }

    async fn attempt_now(&mut self) -> Result<Option<String>, Error> {
        let now = Timestamp::now();
        let held = self.api.get_opt(&self.name).await?;
        let spec = held.as_ref().and_then(|lease| lease.spec.as_ref());
        let unchanged = self.unchanged(spec);
        let step = evaluate(spec, &self.id, unchanged);
        if step == Step::Yield {
            return Ok(spec.and_then(|spec| spec.holder_identity.clone()));
        }
        let spec = Some(taken(spec, step, &self.id, now));
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let written = match held {
            // The resourceVersion in it makes this a compare-and-swap.
            Some(held) => self.api.replace(&self.name, &params, &Object { spec, ..held }).await,
            None => {
                let owner_references = self.owner.clone().map(|owner| vec![owner]);
                let metadata = ObjectMeta { name: Some(self.name.clone()), owner_references, ..ObjectMeta::default() };
                self.api.create(&params, &Object { metadata, spec }).await
            }
        };
        match written {
            Ok(_) => Ok(None),
            Err(error) if is_conflict(&error) => Ok(Some("another process".to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    /// For how long the lease has stood as it does.
    fn unchanged(&mut self, spec: Option<&LeaseSpec>) -> Duration {
        let sight = spec.map(|spec| (spec.holder_identity.clone(), spec.renew_time.clone())).unwrap_or_default();
        match &self.seen {
            Some((seen, since)) if *seen == sight => since.elapsed(),
            _ => {
                self.seen = Some((sight, Instant::now()));
                Duration::ZERO
            }
        }
    }

    /// Gives it back, where it is still ours, so that the next one need not wait.
    async fn give_back(&self) -> Result<(), Error> {
        let Some(held) = self.api.get_opt(&self.name).await? else { return Ok(()) };
        let Some(spec) = held.spec.as_ref().filter(|spec| spec.holder_identity.as_deref() == Some(&self.id)) else {
            return Ok(());
        };
        let spec = LeaseSpec { holder_identity: Some(String::new()), ..spec.clone() };
        let object = Object { spec: Some(spec), ..held.clone() };
        self.api.replace(&self.name, &PostParams::default(), &object).await?;
        Ok(())
    }
}

/// Why a lease could not be had.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The API server refused, or was not reached.
    #[error("{0}")]
    Api(#[from] kube::Error),
    /// It did not answer in time.
    #[error("the API server did not answer within {} s", REQUEST.as_secs())]
    Slow,
}

/// A lease that is held, and renewed until it is lost or released.
pub struct Held {
    lease: Lease,
    lost: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Held {
    fn keep(lease: Lease) -> Self {
        let (say, lost) = watch::channel(false);
        let mut keeper = lease.clone();
        let task = tokio::spawn(async move {
            let mut renewed = Instant::now();
            loop {
                tokio::time::sleep(RENEW.min(GIVE_UP.saturating_sub(renewed.elapsed()))).await;
                match keeper.attempt().await {
                    Ok(None) => renewed = Instant::now(),
                    Ok(Some(holder)) => {
                        tracing::error!(lease = keeper.name, holder, "the lease was lost to another process");
                        break;
                    }
                    Err(error) => tracing::warn!(lease = keeper.name, %error, "the lease was not renewed"),
                }
                if renewed.elapsed() >= GIVE_UP {
                    tracing::error!(lease = keeper.name, "the lease was not renewed in time");
                    break;
                }
            }
            say.send_replace(true);
        });
        Self { lease, lost, task }
    }

    /// Ends when the lease is lost: whoever holds this must stop at once.
    pub async fn lost(&self) {
        // A task that is gone renews nothing either.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }

    /// Stops renewing and gives it back. Never fails: a lease that cannot be given back runs out.
    pub async fn release(self) {
        self.task.abort();
        if *self.lost.borrow() {
            return;
        }
        match tokio::time::timeout(REQUEST, self.lease.give_back()).await {
            Ok(Ok(())) => tracing::info!(lease = self.lease.name, "the lease was given back"),
            Ok(Err(error)) => tracing::warn!(lease = self.lease.name, %error, "the lease was not given back"),
            Err(_) => tracing::warn!(lease = self.lease.name, "the lease was not given back in time"),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests;
