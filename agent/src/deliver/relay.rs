//! The loop between spool and gateway.
//!
//! ```text
//!             ┌────────── refused with `enroll`, session lost ──────────┐
//!             ▼                                                         │
//!  start ─▶ Enrolling ──ok──▶ Enrolled ──▶ heartbeat each interval · findings as they come · policy
//!             │  ▲                │  │
//!             │  │                │  └─ the gateway ended the connection: a heartbeat within a second
//!             └──┘ back-off       └──── no answer: back-off, the session stays, the spool keeps all
//! ```
//!
//! One request at a time. Each wait is drawn at random, so that a fleet that lost its gateway does not
//! come back in one moment. A gateway that starts again is found soon: nobody covers anything until it was told so.

use super::backoff::Backoff;
use super::client::{Client, ClientError, sha256_hex};
use super::http::{Http, chain};
use super::origin::{Origin, OriginError};
use super::presign::{Binding, PresignError, presign, sts_host};
use super::spool::{Spool, Waiting};
use super::{Config, Shared};
use crate::control::{HeartbeatSource, PolicyKeeper};
use jiff::Timestamp;
use rand::Rng as _;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tasuki_api::agent::{Enrollment, FindingBatch, HeartbeatReply, Identity, MAX_BODY, enrollment_text};
use tokio::time::Instant;
use ulid::Ulid;

/// Findings in one batch, as the protocol says.
const BATCH: usize = 100;

/// Why an enrolment failed on this side.
#[derive(Debug, thiserror::Error)]
enum EnrollError {
    #[error("the agent does not know who it is")]
    Origin(#[from] OriginError),
    #[error("the task's role could not sign")]
    Presign(#[from] PresignError),
    #[error("the gateway did not take the enrolment")]
    Gateway(#[from] ClientError),
    #[error("the task's ARN `{0}` names no Region that has an STS endpoint")]
    Arn(String),
    #[error("the identity cannot be written")]
    Write(#[from] serde_json::Error),
}

pub(super) struct Relay {
    pub config: Config,
    pub client: Client,
    pub local: Http,
    pub source: Arc<dyn HeartbeatSource>,
    pub policy: PolicyKeeper,
    pub shared: Arc<Shared>,
    pub findings_backoff: Backoff,
    pub findings_after: Instant,
}

/// Between two requests with findings: what comes meanwhile goes together. It keeps below what the
/// gateway takes from one session (25 a second).
const PACE: Duration = Duration::from_millis(50);

/// A gateway that ended its connections may have done so with each of its agents.
const AFTER_END: Duration = Duration::from_secs(1);

/// What to do after a step that failed.
enum Pause {
    /// Wait, longer each time.
    Failed,
    /// Nobody listens.
    Absent,
    /// The gateway has lost the session: enrol.
    SessionLost,
}

impl Pause {
    fn after(error: &ClientError) -> Self {
        match error.refusal() {
            Some(refusal) if refusal.enroll => Self::SessionLost,
            None if error.nobody_listens() => Self::Absent,
            _ => Self::Failed,
        }
    }
}

impl Relay {
    /// Runs until told to stop; then sends what waits, as far as `config.farewell` allows.
    pub async fn run(mut self, mut stop: tokio::sync::watch::Receiver<bool>) {
        let mut backoff = Backoff::new(self.config.backoff);
        let mut interval = Duration::from_secs(15);
        let mut next_heartbeat = Instant::now();
        let mut not_before = Instant::now();
        // A gateway that loses each session at once is asked ever more rarely.
        let mut lost = false;
        // Something between here and the gateway may end each connection: that is no news every time.
        let mut heed_end = Instant::now();
        loop {
            let waiting = !self.spool().is_empty();
            let next = if waiting { self.findings_after.min(next_heartbeat) } else { next_heartbeat };
            tokio::select! {
                () = stopped(&mut stop) => break,
                () = tokio::time::sleep_until(next.max(not_before)) => {}
                () = self.shared.arrived.notified(), if !waiting => continue,
                () = self.client.ended(), if self.client.enrolled() => {
                    let now = Instant::now();
                    if now >= heed_end {
                        heed_end = now + interval;
                        let soon = now + AFTER_END.min(interval).mul_f64(rand::rng().random_range(0.0..1.0));
                        next_heartbeat = next_heartbeat.min(soon);
                    }
                    continue;
                }
            }
            let step = tokio::select! {
                () = stopped(&mut stop) => break,
                step = self.step(&mut interval, &mut next_heartbeat) => step,
            };
            match step {
                Ok(()) => {
                    backoff.succeeded();
                    (lost, not_before) = (false, Instant::now());
                }
                Err(Pause::Absent) => {
                    heed_end = Instant::now();
                    not_before = Instant::now() + backoff.next_absent();
                }
                Err(Pause::SessionLost) if !lost => {
                    backoff.answered();
                    (lost, not_before, heed_end) = (true, Instant::now(), Instant::now());
                }
                Err(Pause::SessionLost | Pause::Failed) => {
                    backoff.answered();
                    not_before = Instant::now() + backoff.next();
                }
            }
        }
        if self.client.enrolled() && !self.spool().is_empty() {
            let farewell = self.config.farewell;
            let _ = tokio::time::timeout(farewell, async { while self.send_findings().await.is_ok_and(|n| n > 0) {} })
                .await;
        }
    }

    /// Does the one thing that is due. An error means: wait before the next.
    async fn step(&mut self, interval: &mut Duration, next_heartbeat: &mut Instant) -> Result<(), Pause> {
        if !self.client.enrolled() {
            let seconds = match self.enroll().await {
                Ok(seconds) => seconds,
                Err(error) => {
                    self.shared.enroll_failures.fetch_add(1, Ordering::Relaxed);
                    self.shared.say("enrolment failed", &chain(&error));
                    let absent = matches!(&error, EnrollError::Gateway(error) if error.nobody_listens());
                    return Err(if absent { Pause::Absent } else { Pause::Failed });
                }
            };
            *interval = bounded(seconds);
            *next_heartbeat = Instant::now();
            self.shared.enrolled.send_replace(true);
        }
        if Instant::now() >= *next_heartbeat {
            let reply = self.heartbeat().await.map_err(|error| self.failed("heartbeat", &error))?;
            *interval = bounded(reply.heartbeat_seconds);
            *next_heartbeat = Instant::now() + interval.mul_f64(rand::rng().random_range(0.9..1.1));
            if reply.policy != self.policy.hash() {
                self.fetch_policy(&reply.policy).await?;
            }
            return Ok(());
        }
        match self.send_findings().await {
            Ok(_) => {
                self.findings_backoff.succeeded();
                self.findings_after = Instant::now() + PACE;
            }
            // The gateway is there and does not take these now: heartbeats go on meanwhile.
            Err(error) if error.refusal().is_some_and(|refusal| !refusal.enroll) => {
                self.failed("findings", &error);
                self.findings_after = Instant::now() + self.findings_backoff.next();
            }
            Err(error) => return Err(self.failed("findings", &error)),
        }
        Ok(())
    }

    fn spool(&self) -> std::sync::MutexGuard<'_, Spool> {
        self.shared.spool()
    }

    /// Notes a failed exchange; gives the session up where the gateway wants that.
    fn failed(&mut self, what: &'static str, error: &ClientError) -> Pause {
        self.shared.failures.fetch_add(1, Ordering::Relaxed);
        self.shared.say(what, &chain(error));
        if error.refusal().is_some_and(|refusal| refusal.enroll) {
            self.client.forget();
            self.shared.enrolled.send_replace(false);
        }
        Pause::after(error)
    }

    async fn enroll(&mut self) -> Result<u64, EnrollError> {
        let nonce = self.client.nonce().await?;
        let (own, token) = self.config.origin.read(&self.local).await?;
        let sts = match &self.config.origin {
            Origin::Pod { .. } | Origin::Task { credentials: None, .. } => None,
            Origin::Task { credentials: Some(source), sts_endpoint, .. } => {
                let mut parts = own.arn.splitn(6, ':').skip(1);
                let (partition, region) = (parts.next().unwrap_or(""), parts.nth(1).unwrap_or(""));
                let (scheme, host) = match sts_endpoint {
                    Some(url) => {
                        let host = url.host_str().unwrap_or_default();
                        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
                        (url.scheme(), host)
                    }
                    None => ("https", sts_host(partition, region).ok_or_else(|| EnrollError::Arn(own.arn.clone()))?),
                };
                let credentials = source.credentials(&self.local).await?;
                let key_hash = sha256_hex(self.client.key().public());
                let binding = Binding { gateway: &nonce.gateway, nonce: &nonce.nonce, key_hash: &key_hash };
                Some(presign(&credentials, scheme, &host, region, binding, Timestamp::now())?)
            }
        };
        let identity = Identity {
            gateway: nonce.gateway,
            nonce: nonce.nonce,
            public_key: self.client.key().public_base64(),
            task: own.arn,
            container: own.container,
            containers: own.containers,
            address: own.address,
            kind: self.config.kind,
            version: self.config.version.clone(),
            token,
        };
        let identity = serde_json::to_string(&identity)?;
        let signature = self.client.key().sign(&enrollment_text(&identity));
        let session = self.client.enroll(&Enrollment { identity, signature, sts }).await?;
        tracing::info!(gateway = %self.config.gateway, "enrolled");
        Ok(session.heartbeat_seconds)
    }

    async fn heartbeat(&mut self) -> Result<HeartbeatReply, ClientError> {
        let mut heartbeat = self.source.heartbeat();
        heartbeat.policy = self.policy.hash().to_owned();
        {
            let spool = self.spool();
            let counters = spool.counters();
            heartbeat.usage.spooled = spool.len() as u64;
            heartbeat.usage.spool_dropped = counters.dropped
                + counters.oversize
                + counters.damaged
                + self.shared.refused.load(Ordering::Relaxed)
                + self.shared.queue_dropped.load(Ordering::Relaxed);
        }
        let before = Timestamp::now();
        heartbeat.time = before;
        let reply = self.client.heartbeat(&heartbeat).await?;
        self.shared.heartbeats.fetch_add(1, Ordering::Relaxed);
        // Half of the way there and back is the best guess of when the gateway looked at its clock.
        let middle = before + (Timestamp::now().duration_since(before) / 2);
        let skew = middle.duration_since(reply.time);
        let before = self.shared.skew_ms.swap(i64::try_from(skew.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
        if skew.abs().as_secs() >= 300 && before.abs() < 300_000 {
            tracing::warn!(seconds = skew.as_secs(), "this clock and the gateway's differ by more than 5 minutes");
        }
        Ok(reply)
    }

    async fn fetch_policy(&mut self, wanted: &str) -> Result<(), Pause> {
        let signed = self.client.policy().await.map_err(|error| self.failed("policy", &error))?;
        // A bundle that was refused is not fetched again at every heartbeat's pace for ever: the wait
        // between two heartbeats is the pace, and the problem is said once.
        if let Err(error) = self.policy.take(&signed) {
            self.shared.policy_refused.fetch_add(1, Ordering::Relaxed);
            self.shared.say("policy refused", &format!("{} (wanted {wanted})", chain(&error)));
        }
        Ok(())
    }

    /// Sends one batch. Gives how many findings the gateway settled.
    async fn send_findings(&mut self) -> Result<usize, ClientError> {
        // Room for the batch's own JSON around the findings.
        let waiting = self.spool().peek(self.shared.batch.load(Ordering::Relaxed), MAX_BODY - 1024);
        if waiting.is_empty() {
            return Ok(0);
        }
        let (batch, indices) = newest(waiting);
        let sent = self.client.findings(&FindingBatch { findings: batch }).await;
        let receipt = match sent {
            Ok(receipt) => receipt,
            Err(error) => {
                let poison = error.refusal().is_some_and(|refusal| matches!(&*refusal.code, "Malformed" | "TooLarge"));
                if poison && indices.len() > 1 {
                    // Something in it cannot be read there: halves find out which.
                    self.shared.batch.store(indices.len() / 2, Ordering::Relaxed);
                } else if poison {
                    self.shared.refused.fetch_add(1, Ordering::Relaxed);
                    let all: Vec<u64> = indices.into_values().flatten().collect();
                    self.spool().forget(&all);
                }
                return Err(error);
            }
        };
        self.shared.batch.store(BATCH, Ordering::Relaxed);
        for refused in &receipt.refused {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            self.shared.say("finding refused", &refused.reason);
        }
        let settled = receipt.stored.iter().chain(receipt.refused.iter().map(|refused| &refused.id));
        let settled: Vec<u64> = settled.filter_map(|id| indices.get(id)).flatten().copied().collect();
        self.shared.sent.fetch_add(receipt.stored.len() as u64, Ordering::Relaxed);
        self.spool().forget(&settled);
        if settled.is_empty() {
            // The gateway does not know a container yet.
            let message = "the gateway cannot place these findings yet".to_owned();
            let refusal = tasuki_api::agent::Refusal { code: "NotYet".to_owned(), message, enroll: false };
            return Err(ClientError::Refused(refusal));
        }
        Ok(settled.len())
    }
}

/// Of several reports of one finding only the newest is sent; all are settled by its receipt.
fn newest(waiting: Vec<Waiting>) -> (Vec<tasuki_api::finding::Finding>, HashMap<Ulid, Vec<u64>>) {
    let (mut batch, mut indices) = (Vec::<tasuki_api::finding::Finding>::new(), HashMap::<Ulid, Vec<u64>>::new());
    for Waiting { index, finding } in waiting {
        let known = indices.entry(finding.id).or_default();
        known.push(index);
        match batch.iter_mut().find(|earlier| earlier.id == finding.id) {
            Some(earlier) => *earlier = finding,
            None => batch.push(finding),
        }
    }
    (batch, indices)
}

async fn stopped(stop: &mut tokio::sync::watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The gateway's interval within reason.
fn bounded(seconds: u64) -> Duration {
    Duration::from_secs(seconds.clamp(1, 300))
}
