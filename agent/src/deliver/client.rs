//! Requests to the gateway: enrolment, and what is signed with the session.

use super::http::{Answer, Http, HttpError};
use super::key::AgentKey;
use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use std::time::Duration;
use tasuki_api::agent::{
    Enrollment, FindingBatch, FindingReceipt, Heartbeat, HeartbeatReply, Nonce, Refusal, SEQUENCE_HEADER,
    SESSION_HEADER, SIGNATURE_HEADER, Session, SignedPolicy, signing_text,
};
use url::Url;

/// Time for one exchange with the gateway.
const DEADLINE: Duration = Duration::from_secs(20);
/// Longest answer but a policy, bytes.
const ANSWER: usize = 1 << 20;
/// Longest policy, bytes: a million domains of 40 characters, quoted.
const POLICY: usize = 64 << 20;

/// Why the gateway did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No answer.
    #[error("the gateway gives no answer")]
    Http(#[from] HttpError),
    /// It said no.
    #[error("the gateway refused: {0}")]
    Refused(Refusal),
    /// Something else answers at its address.
    #[error("what answers at the gateway's address is no gateway of this version (status {0})")]
    Unreadable(StatusCode),
    /// The request cannot be built.
    #[error("the request cannot be made; check TASUKI_GATEWAY")]
    Request(#[from] http::Error),
    /// What is to be sent is no JSON.
    #[error("the request cannot be written")]
    Write(#[from] serde_json::Error),
}

impl ClientError {
    /// Nobody listens at the gateway's address.
    pub fn nobody_listens(&self) -> bool {
        matches!(self, Self::Http(error) if error.nobody_listens())
    }

    /// The gateway's refusal, if it is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

/// A client of one gateway. Requests go one after the other, so that sequence numbers arrive in order.
pub struct Client {
    http: Http,
    base: Url,
    key: AgentKey,
    session: Option<(String, u64)>,
}

impl Client {
    /// A client of the gateway at `base`.
    pub fn new(http: Http, base: Url, key: AgentKey) -> Self {
        Self { http, base, key, session: None }
    }

    /// The agent's key.
    pub fn key(&self) -> &AgentKey {
        &self.key
    }

    /// Whether there is a session.
    pub fn enrolled(&self) -> bool {
        self.session.is_some()
    }

    /// Returns once the gateway has ended a connection since the last time.
    pub async fn ended(&self) {
        self.http.ended().await;
    }

    /// Gives the session up.
    pub fn forget(&mut self) {
        self.session = None;
    }

    /// Asks for a nonce.
    pub async fn nonce(&self) -> Result<Nonce, ClientError> {
        read(self.send(self.request(Method::POST, "/v1/nonce").body(Bytes::from_static(b"{}"))?, ANSWER).await?)
    }

    /// Enrols.
    pub async fn enroll(&mut self, enrollment: &Enrollment) -> Result<Session, ClientError> {
        let body = serde_json::to_vec(enrollment)?;
        let request = self.request(Method::POST, "/v1/enroll").body(Bytes::from(body))?;
        let session: Session = read(self.send(request, ANSWER).await?)?;
        self.session = Some((session.session.clone(), 0));
        Ok(session)
    }

    /// Sends a heartbeat.
    pub async fn heartbeat(&mut self, heartbeat: &Heartbeat) -> Result<HeartbeatReply, ClientError> {
        let body = serde_json::to_vec(heartbeat)?;
        read(self.signed(Method::POST, "/v1/heartbeat", body, ANSWER).await?)
    }

    /// Sends findings.
    pub async fn findings(&mut self, batch: &FindingBatch) -> Result<FindingReceipt, ClientError> {
        let body = serde_json::to_vec(batch)?;
        read(self.signed(Method::POST, "/v1/findings", body, ANSWER).await?)
    }

    /// Fetches the policy.
    pub async fn policy(&mut self) -> Result<SignedPolicy, ClientError> {
        read(self.signed(Method::GET, "/v1/policy", Vec::new(), POLICY).await?)
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let mut url = self.base.clone();
        url.set_path(path);
        Request::builder().method(method).uri(url.as_str()).header("content-type", "application/json")
    }

    async fn signed(&mut self, method: Method, path: &str, body: Vec<u8>, limit: usize) -> Result<Answer, ClientError> {
        let Some((session, sequence)) = &mut self.session else {
            let message = "there is no session".to_owned();
            return Err(ClientError::Refused(Refusal { code: "SessionUnknown".to_owned(), message, enroll: true }));
        };
        // Risen before it is used: a request that was lost on its way is never sent again as it was.
        *sequence += 1;
        let (session, sequence) = (session.clone(), *sequence);
        let hash = sha256_hex(&body);
        let signature = self.key.sign(&signing_text(method.as_str(), path, &session, sequence, &hash));
        let request = self
            .request(method, path)
            .header(SESSION_HEADER, session)
            .header(SEQUENCE_HEADER, sequence)
            .header(SIGNATURE_HEADER, signature)
            .body(Bytes::from(body))?;
        self.send(request, limit).await
    }

    async fn send(&self, request: Request<Bytes>, limit: usize) -> Result<Answer, ClientError> {
        let answer = self.http.send(request, limit, DEADLINE).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        match serde_json::from_slice(&answer.body) {
            Ok(refusal) => Err(ClientError::Refused(refusal)),
            Err(_) => Err(ClientError::Unreadable(answer.status)),
        }
    }
}

fn read<T: DeserializeOwned>(answer: Answer) -> Result<T, ClientError> {
    serde_json::from_slice(&answer.body).map_err(|_| ClientError::Unreadable(answer.status))
}

/// Hexadecimal SHA-256.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}
