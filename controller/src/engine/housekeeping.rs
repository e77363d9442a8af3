//! What the store would hold for ever goes once an hour, what the allocator would once a minute.

use crate::store::{Store, StoreError};
use crate::tally::Tally;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often.
const EVERY: Duration = Duration::from_secs(3600);
/// How often free memory goes back to the system: that takes a few milliseconds.
const GIVE_BACK: Duration = Duration::from_secs(60);
/// Lines of the action log are kept so long: a year, and time to audit it.
const ACTIONS_AGE: SignedDuration = SignedDuration::from_hours(400 * 24);
/// And so many at most.
const ACTIONS: u32 = 200_000;

/// How long findings are kept, and how many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    pub age: Duration,
    pub findings: u32,
}

/// Tidies up at once and then once an hour, until told to stop.
pub(super) async fn tidy(store: Store, keep: Keep, tally: Arc<Tally>, stop: CancellationToken) {
    let mut hours = tokio::time::interval(EVERY);
    hours.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut minutes = tokio::time::interval(GIVE_BACK);
    minutes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = minutes.tick() => {
                crate::memory::give_back();
                continue;
            }
            _ = hours.tick() => {}
        }
        if let Err(error) = once(&store, keep, &tally, Timestamp::now()).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the store grows until this is mended");
        }
    }
}

async fn once(store: &Store, keep: Keep, tally: &Tally, now: Timestamp) -> Result<(), StoreError> {
    let before = |age| now.checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH);
    let age = SignedDuration::try_from(keep.age).unwrap_or(SignedDuration::MAX);
    let findings = store.prune_findings(before(age), keep.findings).await?;
    let actions = store.prune_actions(before(ACTIONS_AGE), ACTIONS).await?;
    tally.add("FindingsForgotten", findings.all);
    tally.add("UnsentFindingsForgotten", findings.unsent);
    tally.add("ActionsForgotten", actions);
    if findings.unsent > 0 {
        tracing::warn!(count = findings.unsent, "findings were forgotten that not every sink had taken");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ActionRecord, FindingFilter};
    use serde_json::json;

    #[tokio::test]
    async fn what_is_old_goes_and_is_counted() {
        let store = Store::open("sqlite::memory:").await.unwrap();
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        for days in [10_i64, 100, 500] {
            let at = now - SignedDuration::from_hours(days * 24);
            let finding = serde_json::from_value(json!({
                "id": ulid::Ulid(days as u128).to_string(), "type": "T", "severity": "High", "title": "t", "firstSeen": at.to_string(),
                "lastSeen": at.to_string(), "count": 1, "resource": {}, "rule": {}, "agent": {"version": "1", "depth": "Full", "sensor": "ebpf"}
            }));
            store.insert_findings("a", &[(finding.unwrap(), None)], now).await.unwrap();
            let action = json!({"scope": {"account": "1", "region": "r"}, "cluster": "c", "monitor": "m", "why": "w",
                "kind": {"DeleteDaemon": {"service": "s"}}});
            let record = json!({"at": at.to_string(), "desired": "d", "action": action});
            let record: ActionRecord = serde_json::from_value(record).unwrap();
            store.log_action(&record, "s", "DeleteDaemon").await.unwrap();
        }
        let (tally, keep) = (Tally::default(), Keep { age: Duration::from_secs(90 * 86_400), findings: 10 });
        once(&store, keep, &tally, now).await.unwrap();
        assert_eq!(store.findings(&FindingFilter::default()).await.unwrap().len(), 1);
        assert_eq!(store.actions(10).await.unwrap().len(), 2);
        let counted =
            ["FindingsForgotten", "UnsentFindingsForgotten", "ActionsForgotten"].map(|name| tally.all()[name]);
        assert_eq!(counted, [2, 2, 1]);
        // However young, no more than so many.
        assert_eq!(store.prune_actions(Timestamp::UNIX_EPOCH, 1).await.unwrap(), 1);
        assert_eq!(store.prune_findings(Timestamp::UNIX_EPOCH, 0).await.unwrap().all, 1);
    }
}
