//! The agent's one HTTP client: TLS to the gateway, plain HTTP to ECS's local endpoints.
//!
//! No redirect is followed, answers are bounded, every exchange has a deadline.

use super::connect::Connector;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

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

impl HttpError {
    /// Nobody listens there, as a refused connection says: to ask again costs a packet or two. A listener that does not
    /// answer, or whose certificate is not trusted, is something else.
    pub fn nobody_listens(&self) -> bool {
        use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
        let Self::Unreachable { source, .. } = self else { return false };
        let first: &(dyn std::error::Error + 'static) = &**source;
        std::iter::successors(Some(first), |error| error.source())
            .filter_map(|error| error.downcast_ref::<std::io::Error>())
            .any(|error| matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable))
    }
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
pub struct Http {
    client: Client<Connector, Full<Bytes>>,
    ended: Arc<Notify>,
}

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
        let ended = Arc::new(Notify::new());
        let connector = match scheme {
            Scheme::Https(_) => connector.https_only(),
            Scheme::Local => connector.https_or_http(),
        };
        let connector = Connector::new(connector.enable_http1().build(), ended.clone());
        // Given up before the gateway gives it up (30 s), so that no request meets a closing connection.
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .pool_max_idle_per_host(1)
            .build(connector);
        Ok(Self { client, ended })
    }

    /// Returns once a server has ended a connection since the last time.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Sends a request and reads at most `limit` bytes of its answer, all within `deadline`.
    pub async fn send(&self, request: Request<Bytes>, limit: usize, deadline: Duration) -> Result<Answer, HttpError> {
        let host = request.uri().host().unwrap_or("?").to_owned();
        let exchange = async {
            let response = self.client.request(request.map(Full::new)).await;
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    async fn ask(http: &Http, url: &str) -> Result<Answer, HttpError> {
        let request = Request::get(url).body(Bytes::new()).unwrap();
        http.send(request, 100, Duration::from_secs(10)).await
    }

    #[tokio::test]
    async fn that_nobody_listens_is_told_from_a_listener_without_tls() {
        let http = Http::new(Scheme::Https(None)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap());
        let (answer, _) = tokio::join!(ask(&http, &url), async { drop(listener.accept().await.unwrap()) });
        assert!(!answer.unwrap_err().nobody_listens());
        drop(listener);
        assert!(ask(&http, &url).await.unwrap_err().nobody_listens());
    }

    #[tokio::test]
    async fn that_the_other_side_ends_an_idle_connection_is_told() {
        let http = Http::new(Scheme::Local).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            stream
        };
        let (answer, stream) = tokio::join!(ask(&http, &url), serve);
        assert_eq!(answer.unwrap().body, "ok");
        let mut ended = Box::pin(http.ended());
        let idle = tokio::time::timeout(Duration::from_millis(50), &mut ended).await;
        assert!(idle.is_err(), "nothing ended yet");
        drop(stream);
        tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
    }
}
