//! One HTTP client for demo and tests: plain HTTP to loopback and to the local cloud's bridge.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use std::time::Duration;

/// The longest attack takes some seconds; what takes longer has hung.
const LIMIT: Duration = Duration::from_secs(30);

/// Sends one request and returns the body of its 2xx answer.
pub async fn send(method: &str, url: &str, body: impl Into<Bytes>) -> Result<String> {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::builder().method(method).uri(url).body(Full::new(body.into()))?;
    let answer = tokio::time::timeout(LIMIT, client.request(request)).await;
    let answer = answer.with_context(|| format!("{method} {url}: no answer within {LIMIT:?}"))?;
    let answer = answer.with_context(|| format!("{method} {url}"))?;
    let status = answer.status();
    let text = String::from_utf8_lossy(&answer.into_body().collect().await?.to_bytes()).into_owned();
    if !status.is_success() {
        bail!("{method} {url}: {status}: {text}");
    }
    Ok(text)
}
