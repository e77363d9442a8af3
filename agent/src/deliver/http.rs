//! The agent's one HTTP client: TLS to the gateway, plain HTTP to ECS's local endpoints.
//!
//! No redirect is followed, answers are bounded, every exchange has a deadline.

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::sync::Arc;
use std::time::Duration;

/// Why there is no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The authority's certificate cannot be used.
    #[error("the gateway's certificate authority is not PEM; check TASUKI_GATEWAY_CA")]
    Trust {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No connection, or it broke, or its certificate is not trusted.
    #[error("{host} could not be reached; check route, security groups and certificate")]
    Unreachable {
        /// Host.
        host: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No whole answer in time.
    #[error("{host} did not answer within {seconds} s")]
    TimedOut {
        /// Host.
        host: String,
        /// Deadline.
        seconds: u64,
    },
    /// The answer is too long or broke off.
    #[error("the answer of {host} is longer than {limit} bytes or broke off")]
    BadBody {
        /// Host.
        host: String,
        /// Limit.
        limit: usize,
    },
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Whole body.
    pub body: Bytes,
}

/// The client; clones share connections.
#[derive(Clone, Debug)]
pub struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

/// Which servers are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme<'a> {
    /// TLS only; trusts only this PEM, or the roots compiled in.
    Https(Option<&'a str>),
    /// Plain HTTP too: ECS's endpoints on this machine.
    Local,
}

impl Http {
    /// A client.
    pub fn new(scheme: Scheme<'_>) -> Result<Self, HttpError> {
        let trust = |source: Box<dyn std::error::Error + Send + Sync>| HttpError::Trust { source };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| trust(error.into()))?;
        let tls = match scheme {
            Scheme::Https(Some(pem)) => {
                let mut roots = rustls::RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                    let certificate = certificate.map_err(|error| trust(error.to_string().into()))?;
                    roots.add(certificate).map_err(|error| trust(error.into()))?;
                }
                if roots.is_empty() {
                    return Err(trust("no certificate in it".into()));
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            _ => builder.with_webpki_roots().with_no_client_auth(),
        };
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls);
        let connector = match scheme {
            Scheme::Https(_) => connector.https_only().enable_http1().build(),
            Scheme::Local => connector.https_or_http().enable_http1().build(),
        };
        // Given up before the gateway gives it up (30 s), so that no request meets a closing connection.
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .pool_max_idle_per_host(1)
            .build(connector);
        Ok(Self(client))
    }

    /// Sends a request and reads at most `limit` bytes of its answer, all within `deadline`.
    pub async fn send(&self, request: Request<Bytes>, limit: usize, deadline: Duration) -> Result<Answer, HttpError> {
        let host = request.uri().host().unwrap_or("?").to_owned();
        let exchange = async {
            let response = self.0.request(request.map(Full::new)).await;
            let response =
                response.map_err(|source| HttpError::Unreachable { host: host.clone(), source: source.into() })?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, limit).collect().await;
            let body = body.map_err(|_| HttpError::BadBody { host: host.clone(), limit })?.to_bytes();
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(HttpError::TimedOut { host: host.clone(), seconds: deadline.as_secs() }),
        }
    }
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
