//! The paths of the protocol. Every body is bounded in size and time before it is read, and before
//! that the session must be known, so that a stranger costs next to nothing.

use super::limits::Take;
use super::listen::Peer;
use super::refuse::{Code, Refused};
use super::sessions::Session;
use super::{Inner, enroll, findings, heartbeat};
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Limited};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tasuki_api::agent::{self, MAX_BODY, Nonce, SignedPolicy};

/// Time in which a whole body must have arrived.
const BODY_TIME: Duration = Duration::from_secs(15);
/// Largest enrolment, bytes: a task of ten containers and a long session token are 12 KiB.
const ENROLLMENT_LIMIT: usize = 64 << 10;

pub(super) fn router(inner: Arc<Inner>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/v1/nonce", post(nonce))
        .route("/v1/enroll", post(enroll))
        .route("/v1/heartbeat", post(heartbeat))
        .route("/v1/findings", post(findings))
        .route("/v1/policy", get(policy))
        .fallback(|| async { Refused::new(Code::NotFound, "the protocol has no such path and method") })
        .method_not_allowed_fallback(|| async {
            Refused::new(Code::NotFound, "the protocol has no such path and method")
        })
        .with_state(inner)
}

type Request0 = Request<Body>;

/// Counts a refusal by its code.
fn answer<T: IntoResponse>(inner: &Inner, result: Result<T, Refused>) -> Response {
    match result {
        Ok(answer) => answer.into_response(),
        Err(refused) => {
            inner.tally.one(refused.code.name());
            tracing::debug!(code = refused.code.name(), message = %refused.message, "refused");
            refused.into_response()
        }
    }
}

async fn nonce(State(inner): State<Arc<Inner>>, Extension(peer): Extension<Peer>) -> Response {
    let give = || {
        inner.admit(&peer)?;
        let (nonce, evicted) = inner.nonces.give((inner.clock)());
        inner.tally.add("NonceEvicted", evicted);
        Ok(Json(Nonce { gateway: inner.id.clone(), nonce }))
    };
    answer(&inner, give())
}

async fn enroll(State(inner): State<Arc<Inner>>, Extension(peer): Extension<Peer>, request: Request0) -> Response {
    let run = async {
        inner.admit(&peer)?;
        let body = read(request.into_body(), ENROLLMENT_LIMIT).await?;
        let session = enroll::enroll(&inner, &body, peer.address).await?;
        inner.tally.one("Enrolled");
        let known = inner.current(&session)?;
        Ok(Json(agent::Session {
            session: session.id.clone(),
            heartbeat_seconds: session.interval.as_secs().unsigned_abs(),
            policy: inner.policies.hash(known.monitor.as_deref()),
        }))
    };
    answer(&inner, Box::pin(run).await)
}

async fn heartbeat(State(inner): State<Arc<Inner>>, request: Request0) -> Response {
    let run = async {
        let (session, body) = inner.authenticate(request, heartbeat::HEARTBEAT_LIMIT).await?;
        heartbeat::take(&inner, &session, &body).await.map(Json)
    };
    answer(&inner, run.await)
}

async fn findings(State(inner): State<Arc<Inner>>, request: Request0) -> Response {
    let run = async {
        let (session, body) = inner.authenticate(request, MAX_BODY).await?;
        findings::take(&inner, &session, &body).await.map(Json)
    };
    answer(&inner, Box::pin(run).await)
}

async fn policy(State(inner): State<Arc<Inner>>, request: Request0) -> Response {
    let run = async {
        let (session, _) = inner.authenticate(request, 0).await?;
        let known = inner.current(&session)?;
        let bundle = inner.policies.bundle(known.monitor.as_deref());
        let bundle = bundle.ok_or_else(|| Refused::busy("the policy"))?;
        Ok::<Json<SignedPolicy>, Refused>(Json(bundle.signed.clone()))
    };
    answer(&inner, run.await)
}

impl Inner {
    /// Takes a request of a stranger out of its address's budget.
    fn admit(&self, peer: &Peer) -> Result<(), Refused> {
        match self.buckets.take(peer.address, Instant::now()) {
            Take::Allowed => Ok(()),
            Take::AllowedEvicting => {
                self.tally.one("AddressEvicted");
                Ok(())
            }
            Take::Refused => Err(Refused::new(Code::TooManyRequests, format!("{} asks too often; wait", peer.address))),
        }
    }

    /// Finds the session that a request names, reads its body, and checks signature and sequence.
    async fn authenticate(&self, request: Request0, limit: usize) -> Result<(Arc<Session>, Bytes), Refused> {
        let (Parts { method, uri, headers, .. }, body) = request.into_parts();
        let session = self.sessions.get(header(&headers, agent::SESSION_HEADER)?);
        let session = session.ok_or_else(|| {
            Refused::new(
                Code::SessionUnknown,
                "the session is not known; the gateway restarted, or enrolled this task anew",
            )
        })?;
        let malformed = |what: &str| Refused::new(Code::Malformed, format!("header {what} is not readable"));
        let sequence = header(&headers, agent::SEQUENCE_HEADER)?;
        let sequence: u64 = sequence.parse().map_err(|_| malformed(agent::SEQUENCE_HEADER))?;
        let signature = header(&headers, agent::SIGNATURE_HEADER)?;
        let signature = BASE64.decode(signature).map_err(|_| malformed(agent::SIGNATURE_HEADER))?;
        if !session.take(self.limits.session_requests_per_second, Instant::now()) {
            return Err(Refused::new(Code::TooManyRequests, "this agent asks too often; wait"));
        }
        // Bodies in flight are bounded together, so that many agents cannot fill the memory.
        let permit = tokio::time::timeout(BODY_TIME, self.bodies.acquire()).await;
        let _permit = permit.ok().and_then(Result::ok).ok_or_else(|| Refused::busy("room for one more request"))?;
        let body = read(body, limit).await?;
        session.authenticate(method.as_str(), uri.path(), sequence, &body, &signature, (self.clock)())?;
        Ok((session, body))
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Refused> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.ok_or_else(|| Refused::new(Code::Malformed, format!("header {name} is missing")))
}

async fn read(body: Body, limit: usize) -> Result<Bytes, Refused> {
    let whole = tokio::time::timeout(BODY_TIME, Limited::new(body, limit).collect()).await;
    match whole {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Refused::new(Code::TooLarge, format!("the body is longer than {limit} bytes")))
        }
        Ok(Err(_)) => Err(Refused::new(Code::Malformed, "the body broke off")),
        Err(_) => Err(Refused::new(Code::TooSlow, "the body did not arrive in time")),
    }
}
