//! EventBridge clients for the sinks, with the controller's own credentials.

use crate::scope::Scopes;
use crate::sinks::Buses;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::sync::Arc;

/// Clients from the scopes: a sink that names no Region means that of the first scope.
pub(super) struct ScopeBuses(pub Arc<Scopes>);

impl Buses for ScopeBuses {
    fn client<'a>(
        &'a self,
        region: Option<&'a str>,
    ) -> BoxFuture<'a, Result<aws_sdk_eventbridge::Client, Box<dyn std::error::Error + Send + Sync>>> {
        async move {
            let first = || self.0.all().first().map(|scope| scope.id.region.to_string());
            let region = region.map(str::to_owned).or_else(first);
            let region = region.ok_or("no Region is given and no AwsScope names one; write eventBridge.region")?;
            Ok(self.0.event_bridge(&region).await?)
        }
        .boxed()
    }
}
