//! The one HTTP client of the controller for what the AWS SDKs do not cover: STS checks of agents'
//! presigned requests, and webhooks.
//!
//! *Guarantees*: no redirect is ever followed; the whole exchange has a deadline; no more than
//! `limit` bytes of an answer are read. *Caveats*: roots are those compiled in (Mozilla's).

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::sync::Arc;
use std::time::Duration;

/// Why a request got no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The certificates to trust cannot be used.
    #[error("the certificates to trust cannot be used; give PEM certificates of an authority")]
    Trust {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No connection, or it broke.
    #[error("{host} could not be reached; check name, route and firewall")]
    Unreachable {
        /// Host that was asked.
        host: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No whole answer in time.
    #[error("{host} did not answer within {seconds} s")]
    TimedOut {
        /// Host that was asked.
        host: String,
        /// The deadline.
        seconds: u64,
    },
    /// The answer is longer than allowed, or broke off.
    #[error("the answer of {host} is longer than {limit} bytes or broke off")]
    BadBody {
        /// Host that was asked.
        host: String,
        /// The limit.
        limit: usize,
    },
}

/// The client; cheap to clone, all clones share their connections.
#[derive(Clone, Debug)]
pub struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Http {
    /// A client that trusts the roots compiled in, or only those in `only` (PEM).
    ///
    /// # Errors
    /// Where `only` holds no certificate that can be read.
    pub fn new(only: Option<&str>) -> Result<Self, HttpError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let bad = |source: Box<dyn std::error::Error + Send + Sync>| HttpError::Trust { source };
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(e.into()))?;
        let tls = match only {
            None => builder.with_webpki_roots().with_no_client_auth(),
            Some(pem) => {
                let mut roots = rustls::RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                    let certificate = certificate.map_err(|e| bad(e.to_string().into()))?;
                    roots.add(certificate).map_err(|e| bad(e.into()))?;
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
        };
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .build(connector);
        Ok(Self(client))
    }

    /// Sends `request` and reads at most `limit` bytes of the answer, all within `deadline`.
    pub async fn send(
        &self,
        request: Request<Bytes>,
        limit: usize,
        deadline: Duration,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        let host = request.uri().host().unwrap_or("?").to_owned();
        let exchange = async {
            let response = self
                .0
                .request(request.map(Full::new))
                .await
                .map_err(|source| HttpError::Unreachable { host: host.clone(), source: source.into() })?;
            let status = response.status();
            let body = Limited::new(response.into_body(), limit)
                .collect()
                .await
                .map_err(|_| HttpError::BadBody { host: host.clone(), limit })?;
            Ok((status, body.to_bytes()))
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(HttpError::TimedOut { host: host.clone(), seconds: deadline.as_secs() }),
        }
    }
}
