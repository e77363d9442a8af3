//! One call: a token for every attempt, retries where they can do no harm.

use super::{Api, CallError, Kind, Scope};
use crate::act::budget::Priority;
use aws_sdk_ecs::error::{ProvideErrorMetadata, SdkError};
use backon::{BackoffBuilder, ExponentialBuilder};
use std::future::Future;
use std::time::Duration;

/// Attempts for one call, the first included.
const ATTEMPTS: usize = 5;
/// How long a change waits for a token before its action is put off: decide asks again anyway, and
/// what it was decided on grows old meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

impl Scope {
    /// Makes one call of `api`; `send` is asked for a new attempt each time.
    ///
    /// A throttled attempt is always made again, for AWS did nothing. An unanswered one only where
    /// the call may be repeated.
    ///
    /// # Errors
    /// [`CallError`] of the last attempt, or of kind [`Kind::Exhausted`] where no token came.
    pub async fn call<T, E, F>(&self, api: Api, priority: Priority, send: impl Fn() -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, SdkError<E>>>,
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(10))
            .with_max_times(ATTEMPTS - 1)
            .with_jitter()
            .build();
        let patience = (priority <= Priority::Action).then_some(PATIENCE);
        loop {
            self.budget
                .take(api.group, priority, patience)
                .await
                .map_err(|exhausted| self.exhausted(api, &exhausted))?;
            let error = match send().await {
                Ok(output) => return Ok(output),
                Err(error) => CallError::from_sdk(api.name, &self.id, &error),
            };
            if error.kind == Kind::Throttled {
                self.budget.throttled(api.group);
            }
            let again = match error.kind {
                Kind::Throttled => true,
                Kind::Unanswered => api.repeatable,
                Kind::Denied | Kind::Exhausted | Kind::Missing | Kind::Refused => false,
            };
            let Some(delay) = again.then(|| delays.next()).flatten() else { return Err(error) };
            tracing::debug!(api = api.name, scope = %self.id, kind = ?error.kind, error = %error.message, ?delay, "call is repeated");
            tokio::time::sleep(delay).await;
        }
    }

    fn exhausted(&self, api: Api, exhausted: &crate::act::budget::Exhausted) -> CallError {
        CallError {
            api: api.name,
            scope: self.id.clone(),
            kind: Kind::Exhausted,
            code: None,
            message: exhausted.to_string().into(),
            request_id: None,
        }
    }
}
