//! Every way in which the gateway says no: a stable code, a status, and what to do next.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use tasuki_api::agent::Refusal;

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $status:ident $(, $enroll:ident)?;)*) => {
        /// Why a request was refused. Names are stable; docs/concepts/identity.md lists them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($(#[doc = $doc])+ $name,)* }
        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
            /// The stable name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
            fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }
            /// Whether the agent should enrol anew.
            fn enroll(self) -> bool {
                match self { $(Self::$name => codes!(@enroll $($enroll)?),)* }
            }
        }
    };
    (@enroll enroll) => { true };
    (@enroll) => { false };
}

codes! {
    /// The request is not what the protocol says.
    Malformed = BAD_REQUEST;
    /// The body is longer than its limit.
    TooLarge = PAYLOAD_TOO_LARGE;
    /// The body did not arrive in time.
    TooSlow = REQUEST_TIMEOUT;
    /// This address or session asks too often.
    TooManyRequests = TOO_MANY_REQUESTS;
    /// Something that the answer needs (engine, store, ECS, STS, Kubernetes) is not there right now.
    Busy = SERVICE_UNAVAILABLE;
    /// No such path.
    NotFound = NOT_FOUND;
    /// The nonce is unknown, used or older than 60 s, or another gateway's.
    NonceInvalid = UNAUTHORIZED, enroll;
    /// A signature does not fit its text and key.
    SignatureInvalid = FORBIDDEN;
    /// The session is unknown here: the gateway restarted, or another enrolment replaced it.
    SessionUnknown = UNAUTHORIZED, enroll;
    /// The sequence number is not greater than the last one.
    SequenceReplayed = CONFLICT;
    /// ECS or Kubernetes does not know the task.
    TaskUnknown = FORBIDDEN;
    /// The task has stopped.
    TaskStopped = FORBIDDEN;
    /// The agent's container has another name than the one that Tasuki gives it.
    ContainerNotAgent = FORBIDDEN;
    /// The agent's container runs an image that no monitor approves here.
    ImageNotApproved = FORBIDDEN;
    /// ECS does not know the runtime ids yet that the agent gives, or knows more, or Kubernetes does not
    /// show the agent's container yet; it may in a moment.
    EvidencePending = TOO_EARLY;
    /// The containers are not this task's.
    EvidenceMismatch = FORBIDDEN;
    /// An agent in this task may not speak for what it wants to speak for.
    KindNotAllowed = FORBIDDEN;
    /// The task's role must sign, and did not.
    SignatureMissing = FORBIDDEN;
    /// The presigned request is not one that the gateway would send.
    SignatureNotAcceptable = FORBIDDEN;
    /// STS refused the presigned request.
    SignatureRefused = FORBIDDEN;
    /// STS says that someone else signed.
    SignatureOfAnother = FORBIDDEN;
    /// This gateway cannot look at pods' tokens.
    PodsNotAccepted = FORBIDDEN;
    /// A pod enrols without its token.
    TokenMissing = FORBIDDEN;
    /// The API server does not take the token: forged, expired, or for another audience.
    TokenRefused = FORBIDDEN;
    /// An ECS task enrols with a token.
    TokenNotAcceptable = FORBIDDEN;
    /// The token is another pod's.
    TokenOfAnother = FORBIDDEN;
    /// The token was made on another node than the pod's, or on none.
    TokenOfAnotherNode = FORBIDDEN;
    /// An agent for a node does not run as the agents' service account.
    ServiceAccountNotAgent = FORBIDDEN;
    /// Another key speaks for this agent and was heard lately.
    AgentIdentityConflict = CONFLICT;
}

/// A refusal with its message.
#[derive(Debug)]
pub struct Refused {
    /// Which.
    pub code: Code,
    /// What happened and what to do, for people.
    pub message: String,
}

impl Refused {
    /// A refusal.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
    /// The part that is missing will be back.
    pub fn busy(what: &str) -> Self {
        Self::new(Code::Busy, format!("{what} is not available right now; try again later"))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let refusal = Refusal { code: self.code.name().to_owned(), message: self.message, enroll: self.code.enroll() };
        let mut response = (status, Json(refusal)).into_response();
        if matches!(self.code, Code::Busy | Code::TooManyRequests | Code::EvidencePending) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }
}
