//! The targets: standard output, webhook, EventBridge. Each takes a batch whole or says why not.

use super::guardduty;
use crate::http::Http;
use crate::store::StoredFinding;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Request;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tasuki_api::desired::{EventBridgeSink, EventFormat, FindingSinkSpec, WebhookSink};
use ulid::Ulid;
use url::Url;

/// Gives EventBridge clients; the scopes implement it, with their credentials and budgets.
pub trait Buses: Send + Sync + 'static {
    /// A client for a Region of the account that the bus is in. Its own retries are off.
    fn client<'a>(
        &'a self,
        region: Option<&'a str>,
    ) -> BoxFuture<'a, Result<aws_sdk_eventbridge::Client, Box<dyn std::error::Error + Send + Sync>>>;
}

/// Largest request to PutEvents, bytes, and entries in it
/// (<https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-putevents.html>).
const EVENTS_BYTES: usize = 256 << 10;
const EVENTS_ENTRIES: usize = 10;
/// Bytes of an entry besides detail, source and detail-type, with room to spare.
const ENTRY_OVERHEAD: usize = 512;

/// A finding, or the whole target, cannot be sent to.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The document names no target or several.
    #[error("give exactly one of eventBridge, webhook and stdout")]
    NotOne,
    /// The webhook's URL.
    #[error("webhook.url `{0}` is not taken: write https://…; plain http only to loopback")]
    Url(String),
    /// It did not take the batch; it is sent again.
    #[error("{what}")]
    Failed {
        /// Who, and what it said.
        what: String,
        /// Why.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

/// What became of a batch: ids that are done with; the rest is sent again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Delivered.
    pub delivered: Vec<Ulid>,
    /// Never deliverable, such as too large; not sent again.
    pub impossible: Vec<Ulid>,
}

/// One target.
#[allow(clippy::large_enum_variant)] // one a sink, and never moved after its start
pub enum Target {
    /// JSON lines.
    Stdout,
    /// One POST a finding.
    Webhook {
        /// Where to.
        url: Url,
        /// File with a bearer token, read for each batch.
        token: Option<PathBuf>,
        /// Client.
        http: Http,
    },
    /// An EventBridge bus.
    EventBridge {
        /// Which.
        sink: EventBridgeSink,
        /// Clients.
        buses: Arc<dyn Buses>,
    },
}

impl Target {
    /// Reads a sink's document.
    pub fn new(spec: &FindingSinkSpec, http: &Http, buses: &Arc<dyn Buses>) -> Result<Self, TargetError> {
        match (&spec.stdout, &spec.webhook, &spec.event_bridge) {
            (Some(_), None, None) => Ok(Self::Stdout),
            (None, Some(WebhookSink { url, token_file }), None) => Ok(Self::Webhook {
                url: webhook_url(url)?,
                token: token_file.as_ref().map(PathBuf::from),
                http: http.clone(),
            }),
            (None, None, Some(sink)) => Ok(Self::EventBridge { sink: sink.clone(), buses: buses.clone() }),
            _ => Err(TargetError::NotOne),
        }
    }

    /// Findings that are sent at once.
    pub fn batch(&self) -> u32 {
        match self {
            Self::Stdout => 100,
            Self::Webhook { .. } => 20,
            Self::EventBridge { .. } => 10,
        }
    }

    /// Sends findings in their order. Stops at the first that is not taken; `Taken` has those before it.
    pub async fn send(&self, findings: &[StoredFinding]) -> (Taken, Result<(), TargetError>) {
        let mut taken = Taken::default();
        let result = match self {
            Self::Stdout => stdout(findings, &mut taken),
            Self::Webhook { url, token, http } => webhook(url, token.as_ref(), http, findings, &mut taken).await,
            Self::EventBridge { sink, buses } => event_bridge(sink, &**buses, findings, &mut taken).await,
        };
        (taken, result)
    }
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: String) -> impl FnOnce(E) -> TargetError {
    move |source| TargetError::Failed { what, source: Some(source.into()) }
}

/// https, or plain http to this machine only: findings name what is vulnerable where.
fn webhook_url(text: &str) -> Result<Url, TargetError> {
    let bad = || TargetError::Url(text.chars().take(200).collect());
    let url: Url = text.parse().map_err(|_| bad())?;
    let host = url.host_str().ok_or_else(bad)?;
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    let loopback = address.is_ok_and(|ip| ip.is_loopback()) || host == "localhost";
    if url.scheme() == "https" || (url.scheme() == "http" && loopback) { Ok(url) } else { Err(bad()) }
}

fn stdout(findings: &[StoredFinding], taken: &mut Taken) -> Result<(), TargetError> {
    let mut out = std::io::stdout().lock();
    for finding in findings {
        let line = serde_json::to_string(&finding.finding).map_err(failed("a finding cannot be written".to_owned()))?;
        writeln!(out, "{line}").map_err(failed("standard output takes nothing".to_owned()))?;
        taken.delivered.push(finding.finding.id);
    }
    out.flush().map_err(failed("standard output takes nothing".to_owned()))
}

async fn webhook(
    url: &Url,
    token: Option<&PathBuf>,
    http: &Http,
    findings: &[StoredFinding],
    taken: &mut Taken,
) -> Result<(), TargetError> {
    let host = url.host_str().unwrap_or("?");
    let token = match token {
        None => None,
        Some(path) => {
            Some(tokio::fs::read_to_string(path).await.map_err(failed(format!("{} cannot be read", path.display())))?)
        }
    };
    for stored in findings {
        let body = serde_json::to_vec(&stored.finding).map_err(failed("a finding cannot be written".to_owned()))?;
        // The id lets the receiver know a finding that is sent again.
        let mut request = Request::post(url.as_str())
            .header("content-type", "application/json")
            .header("idempotency-key", stored.finding.id.to_string());
        if let Some(token) = &token {
            request = request.header("authorization", format!("Bearer {}", token.trim()));
        }
        let request =
            request.body(Bytes::from(body)).map_err(failed(format!("the request to {host} cannot be made")))?;
        let answer = http.send(request, 64 << 10, Duration::from_secs(10)).await;
        let (status, _) = answer.map_err(failed(format!("webhook {host} gives no answer")))?;
        match status.as_u16() {
            200..=299 => taken.delivered.push(stored.finding.id),
            // It will say the same of this finding the next time; the others must not wait for ever.
            400 | 413 | 422 => taken.impossible.push(stored.finding.id),
            _ => return Err(TargetError::Failed { what: format!("webhook {host} answered {status}"), source: None }),
        }
    }
    Ok(())
}

async fn event_bridge(
    sink: &EventBridgeSink,
    buses: &dyn Buses,
    findings: &[StoredFinding],
    taken: &mut Taken,
) -> Result<(), TargetError> {
    let mut rest = findings;
    while let Some(first) = rest.first() {
        let region = sink.region.as_deref().or(first.finding.resource.region.as_deref());
        let (mut entries, mut ids, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(stored) = rest.first() {
            let finding = &stored.finding;
            let same = sink.region.is_some() || finding.resource.region.as_deref() == region;
            let detail = match sink.format {
                EventFormat::Tasuki => serde_json::to_string(finding),
                EventFormat::GuardDuty => serde_json::to_string(&guardduty::detail(finding)),
            };
            let detail = detail.map_err(failed("a finding cannot be written".to_owned()))?;
            let size = detail.len() + sink.source.len() + ENTRY_OVERHEAD;
            if size > EVENTS_BYTES {
                taken.impossible.push(finding.id);
                rest = &rest[1..];
                continue;
            }
            if !same || entries.len() == EVENTS_ENTRIES || bytes + size > EVENTS_BYTES {
                break;
            }
            let entry = PutEventsRequestEntry::builder()
                .event_bus_name(&sink.bus)
                .source(&sink.source)
                .detail_type("Tasuki Finding")
                .detail(detail)
                .set_resources(finding.resource.task.clone().map(|task| vec![task]))
                .build();
            entries.push(entry);
            ids.push(finding.id);
            bytes += size;
            rest = &rest[1..];
        }
        if entries.is_empty() {
            continue;
        }
        let what = format!("EventBridge bus {} in {} takes nothing", sink.bus, region.unwrap_or("its Region"));
        let client = buses
            .client(region)
            .await
            .map_err(|source| TargetError::Failed { what: what.clone(), source: Some(source) })?;
        let answer = client.put_events().set_entries(Some(entries)).send().await.map_err(failed(what.clone()))?;
        // A batch may be taken in part; an entry without an event id is sent again.
        for (id, entry) in ids.iter().zip(answer.entries()) {
            if entry.event_id().is_some() {
                taken.delivered.push(*id);
            }
        }
        if let Some(entry) = answer.entries().iter().find(|entry| entry.event_id().is_none()) {
            let said = entry.error_message().or(entry.error_code()).unwrap_or("no reason given");
            return Err(TargetError::Failed { what: format!("{what}: {said}"), source: None });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_leave_only_encrypted_or_stay_on_this_machine() {
        for good in ["https://hooks.example/x", "http://127.0.0.1:9/x", "http://[::1]/x", "http://localhost/x"] {
            assert!(webhook_url(good).is_ok(), "{good}");
        }
        for bad in ["http://hooks.example/x", "http://10.0.0.1/", "ftp://127.0.0.1/", "x", "http://127.0.0.1.example/"]
        {
            assert!(webhook_url(bad).is_err(), "{bad}");
        }
    }
}
