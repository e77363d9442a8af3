//! What every change of the cluster shares: who writes, and what a refusal means.

use crate::act::outcome::Stop;
use crate::scope::kubernetes::{FIELD_MANAGER, code, words};
use kube::api::PatchParams;
use tasuki_api::coverage::Reason;

/// A patch that is no apply names its writer all the same.
pub(super) fn as_ourselves() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

/// The last part of a name.
pub(super) fn last(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

/// What a refusal means for the action.
pub(super) fn refused(call: &str, error: &kube::Error) -> Stop {
    let detail = words(error);
    match code(error) {
        // No right is missing: nothing can be made in a namespace that is on its way out.
        Some(403) if detail.contains("is being terminated") => {
            Stop::Blocked(Reason::NodeWithoutAgent, format!("{call}: {detail}"))
        }
        Some(401 | 403) => {
            let why = format!("{call}: {detail}; the chart grants it with `enforce: true`");
            Stop::Blocked(Reason::PermissionDenied, why)
        }
        Some(404 | 409) => Stop::Changed(format!("{call}: {detail}")),
        Some(429) => Stop::Blocked(Reason::BudgetExhausted, format!("{call}: {detail}")),
        _ => Stop::Answer(format!("{call}: {detail}")),
    }
}
