//! Findings: stamped with where they happened, as ECS or Kubernetes says, then stored, then receipted.
//!
//! *Guarantees*: no field of `resource` comes from the agent, but for one id (place.rs); an id is in the
//! receipt only after the store has committed it. *Caveats*: a finding whose container ECS does not
//! know yet is in neither list of the receipt; the agent sends it again.

use super::Inner;
use super::directory::Known;
use super::evidence::shown;
use super::place::{Place, place};
use super::refuse::{Code, Refused};
use super::sessions::Session;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Instant;
use tasuki_api::agent::{AgentKind, FindingBatch, FindingReceipt, RefusedFinding};
use tasuki_api::finding::Finding;
use tasuki_core::fleet::Task;

/// Findings in one batch, as the protocol says.
const BATCH: usize = 100;
/// Largest finding, bytes of JSON. The agent caps its texts far below.
const FINDING_LIMIT: usize = 64 << 10;

/// Takes a batch of findings.
pub(super) async fn take(inner: &Inner, session: &Session, body: &[u8]) -> Result<FindingReceipt, Refused> {
    let batch: FindingBatch = serde_json::from_slice(body).map_err(|error| {
        Refused::new(Code::Malformed, format!("the findings are not readable: {}", shown(&error.to_string())))
    })?;
    if batch.findings.len() > BATCH {
        return Err(Refused::new(Code::TooLarge, format!("a batch has at most {BATCH} findings")));
    }
    let now = (inner.clock)();
    // A finding may tell of the task's own end, so a stopped task is no reason to refuse it.
    let mut known = inner.directory.task(session.task()).unwrap_or_else(|| session.enrolled.clone());
    let mut tasks = allowed(inner, session, &known);
    let unknown = |f: &Finding, tasks: &[Arc<Task>]| place(f, session.kind, &known, tasks, now) == Place::NotYet;
    let mut settled = true;
    if batch.findings.iter().any(|finding| unknown(finding, &tasks)) {
        settled = session.may_refresh(Instant::now());
        if settled {
            known = inner.directory.refresh(session.task()).await.ok().flatten().unwrap_or(known);
            tasks = allowed(inner, session, &known);
        }
    }
    let mut receipt = FindingReceipt::default();
    let mut rows = Vec::with_capacity(batch.findings.len());
    for mut finding in batch.findings {
        let refusal = match (unacceptable(&finding), place(&finding, session.kind, &known, &tasks, now)) {
            (Some(reason), _) | (None, Place::Foreign(reason)) => Some(reason),
            (None, Place::NotYet) if settled => Some("ForeignContainer: no such container where this agent may look"),
            (None, Place::NotYet | Place::Later) => continue,
            (None, Place::At(resource)) => {
                finding.resource = *resource;
                None
            }
        };
        if let Some(reason) = refusal {
            inner.tally.one("FindingRefused");
            receipt.refused.push(RefusedFinding { id: finding.id, reason: reason.to_owned() });
            continue;
        }
        not_later(&mut finding, now);
        let suppressed = inner.suppressions().find(&finding, now);
        receipt.stored.push(finding.id);
        rows.push((finding, suppressed));
    }
    let new = inner.store.insert_findings(session.task(), &rows, now).await.map_err(|error| {
        tracing::error!(%error, "findings could not be stored");
        Refused::busy("the store")
    })?;
    inner.tally.add("FindingStored", u64::try_from(new.len()).unwrap_or(0));
    if !new.is_empty() {
        inner.stored.send_modify(|count| *count += 1);
    }
    Ok(receipt)
}

/// The tasks that the session may speak for.
fn allowed(inner: &Inner, session: &Session, known: &Known) -> Vec<Arc<Task>> {
    let mut tasks = match (session.kind, &known.task.node) {
        (AgentKind::Node, Some(node)) => inner.directory.tasks_on(node),
        _ => Vec::new(),
    };
    if !tasks.iter().any(|task| task.arn == known.task.arn) {
        tasks.push(known.task.clone());
    }
    tasks
}

/// Why a finding is refused whatever it tells.
fn unacceptable(finding: &Finding) -> Option<&'static str> {
    if finding.kind.is_empty() || finding.kind.len() > 200 || !finding.kind.bytes().all(|b| b.is_ascii_graphic()) {
        return Some("BadType: the type is empty, longer than 200 characters or not printable");
    }
    match serde_json::to_vec(finding) {
        Ok(body) if body.len() <= FINDING_LIMIT => None,
        _ => Some("TooLarge: a finding has at most 64 KiB"),
    }
}

/// A wrong clock must not keep a finding for ever, or hide it: times in the future become now.
fn not_later(finding: &mut Finding, now: Timestamp) {
    if finding.last_seen > now + SignedDuration::from_mins(5) {
        finding.last_seen = now;
    }
    finding.first_seen = finding.first_seen.min(finding.last_seen);
}
