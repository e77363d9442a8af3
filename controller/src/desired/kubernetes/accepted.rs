//! The `Accepted` condition: the words of `tasuki check` where the author of an object looks first.

use super::apply_status;
use crate::desired::Id;
use crate::desired::problem::{Level, Problem};
use crate::scope::kubernetes::is_absent;
use jiff::Timestamp;
use kube::Client;
use std::collections::BTreeMap;
use std::time::Duration;
use tasuki_api::status::condition::ACCEPTED;
use tasuki_api::status::{DocumentStatus, StatusCondition, Truth};
use tokio::sync::watch;

/// Field manager of what is written here.
const MANAGER: &str = "tasuki-status";
/// Pause before a status that could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What an object's status should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `observedGeneration` and `Accepted`.
    pub status: DocumentStatus,
    /// It says so already.
    pub written: bool,
}

/// The part of a status that is written here.
pub fn own(status: &DocumentStatus) -> DocumentStatus {
    let conditions = status.conditions.iter().filter(|condition| condition.kind == ACCEPTED).cloned().collect();
    DocumentStatus { observed_generation: status.observed_generation, conditions }
}

/// The status of an object with these problems. `held`: a last good version of it is in force.
pub fn status(
    problems: &[&Problem],
    unknown: &[String],
    held: bool,
    generation: i64,
    before: &DocumentStatus,
    now: Timestamp,
) -> DocumentStatus {
    let words = |level| {
        let of_level = problems.iter().filter(|problem| problem.level == level).map(|problem| problem.brief());
        of_level.collect::<Vec<_>>().join("\n")
    };
    let (errors, mut warnings) = (words(Level::Error), words(Level::Warning));
    if !unknown.is_empty() {
        let and = if warnings.is_empty() { "" } else { "\n" };
        let fields = unknown.join(", ");
        warnings += &format!(
            "{and}this version of Tasuki does not know {fields}, and goes on without (update Tasuki, or take it away)"
        );
    }
    let refused = !errors.is_empty();
    let mut lines = vec![errors, warnings];
    lines.retain(|line| !line.is_empty());
    let (truth, reason) = match (refused, lines.is_empty()) {
        (true, _) => (Truth::False, "Refused"),
        (false, true) => (Truth::True, "Good"),
        (false, false) => (Truth::True, "Warnings"),
    };
    lines.push(match (refused, held) {
        (false, _) => "in force".to_owned(),
        (true, true) => "the last good version stays in force".to_owned(),
        (true, false) => "nothing of it is in force".to_owned(),
    });
    let message = lines.join("\n");
    let accepted = StatusCondition::new(ACCEPTED, truth, reason, &message, Some(generation), &before.conditions, now);
    DocumentStatus { observed_generation: Some(generation), conditions: vec![accepted] }
}

/// Writes what differs, until `wanted` is closed.
pub async fn write(client: Client, mut wanted: watch::Receiver<BTreeMap<Id, Verdict>>) {
    // What was written last; the watch shows it later.
    let mut last: BTreeMap<Id, DocumentStatus> = BTreeMap::new();
    loop {
        let verdicts = wanted.borrow_and_update().clone();
        last.retain(|id, _| verdicts.contains_key(id));
        let mut failed = false;
        for (id, verdict) in verdicts {
            if verdict.written {
                last.insert(id, verdict.status);
                continue;
            }
            if last.get(&id).is_some_and(|last| same(last, &verdict.status)) {
                continue;
            }
            let body = serde_json::to_value(&verdict.status).unwrap_or_default();
            match apply_status(&client, MANAGER, &id.0, &id.1, &body).await {
                Ok(()) => drop(last.insert(id, verdict.status)),
                // Gone in the meantime: the watch will say so.
                Err(error) if is_absent(&error) => {}
                Err(error) => {
                    tracing::warn!(kind = id.0, name = id.1, %error, "status cannot be written, trying again");
                    failed = true;
                }
            }
        }
        let again = tokio::time::sleep(AGAIN);
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = again, if failed => {}
        }
    }
}

/// The same but for times.
fn same(a: &DocumentStatus, b: &DocumentStatus) -> bool {
    let view = |status: &DocumentStatus| {
        let of = |c: &StatusCondition| (c.kind.clone(), c.status, c.reason.clone(), c.message.clone());
        (status.observed_generation, status.conditions.iter().map(of).collect::<Vec<_>>())
    };
    view(a) == view(b)
}
