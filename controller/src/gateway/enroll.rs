//! Enrolment: nonce, signature, evidence, address, the role's signature or the pod's token, and the pin.
//!
//! *Expected flow*: see docs/concepts/identity.md. *Guarantees*: what an agent says is only ever
//! compared with what ECS and STS, or Kubernetes, say; nothing of it is kept but its key.
//! *Assumptions*: the directory answers from them.

use super::directory::{Known, TaskRole};
use super::evidence::{self, shown};
use super::pods;
use super::policy::sha256_hex;
use super::refuse::{Code, Refused};
use super::sessions::{NewSession, Session};
use super::sts::{Proof, TaskArn};
use super::{Inner, SILENT_INTERVALS};
use crate::store::{Pin, Pinned};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use jiff::SignedDuration;
use std::net::IpAddr;
use std::sync::Arc;
use tasuki_api::agent::{AgentKind, Enrollment, Identity, PresignedSts, enrollment_text};
use tasuki_api::desired::IdentityChoice;
use tasuki_api::kubernetes::PodName;

/// Enrols an agent that calls from `source`.
pub(super) async fn enroll(inner: &Inner, body: &[u8], source: IpAddr) -> Result<Arc<Session>, Refused> {
    let malformed = |what: &str| Refused::new(Code::Malformed, format!("the enrolment is not readable: {what}"));
    let enrollment: Enrollment = serde_json::from_slice(body).map_err(|e| malformed(&shown(&e.to_string())))?;
    let identity: Identity =
        serde_json::from_str(&enrollment.identity).map_err(|e| malformed(&shown(&e.to_string())))?;
    let now = (inner.clock)();

    if identity.gateway != inner.id || !inner.nonces.take(&identity.nonce, now) {
        return Err(Refused::new(
            Code::NonceInvalid,
            "the nonce is unknown, used or older than 60 s; ask for a new one",
        ));
    }
    let key = BASE64.decode(&identity.public_key).ok().filter(|key| key.len() == 32);
    let key = key.ok_or_else(|| malformed("the public key is not 32 bytes of base64"))?;
    let signature = BASE64.decode(&enrollment.signature).map_err(|_| malformed("the signature is not base64"))?;
    UnparsedPublicKey::new(&ED25519, &key)
        .verify(enrollment_text(&enrollment.identity).as_bytes(), &signature)
        .map_err(|_| Refused::new(Code::SignatureInvalid, "the identity is not signed by the key that it names"))?;
    let subject = Subject::parse(&identity.task)
        .ok_or_else(|| malformed("the task is neither an ECS task's ARN nor a pod's name"))?;
    // Each kind of proof goes to its own judge only.
    match subject {
        Subject::Task(_) if identity.token.is_some() => {
            let message = "an ECS task proves itself by its role, never by a pod's token";
            return Err(Refused::new(Code::TokenNotAcceptable, message));
        }
        Subject::Pod(_) if enrollment.sts.is_some() => {
            let message = "a pod proves itself by its token, never by a signature for STS";
            return Err(Refused::new(Code::SignatureNotAcceptable, message));
        }
        Subject::Task(_) => {}
        // Before anything is asked about it: where there is no Kubernetes, there are no pods.
        Subject::Pod(_) => {
            pods::accepted(inner)?;
        }
    }

    let known = evident(inner, subject, &identity).await?;
    let runtime_id = subject.check(&identity, &known)?;
    let claim = Claim { subject, identity: &identity, sts: enrollment.sts.as_ref(), key, known, runtime_id, source };
    // The pods of a whole cluster are here at once after a restart. What follows takes the most memory of each, and the
    // API server is asked about a few tokens at a time anyway.
    let _turn = match subject {
        Subject::Pod(_) => Some(inner.pods_proved.acquire().await.map_err(|_| Refused::busy("the gateway"))?),
        Subject::Task(_) => None,
    };
    Box::pin(prove(inner, claim)).await
}

/// An enrolment whose evidence fits.
struct Claim<'a> {
    subject: Subject<'a>,
    identity: &'a Identity,
    sts: Option<&'a PresignedSts>,
    key: Vec<u8>,
    known: Known,
    runtime_id: String,
    source: IpAddr,
}

/// The other checks, and the session.
async fn prove(inner: &Inner, claim: Claim<'_>) -> Result<Arc<Session>, Refused> {
    let Claim { subject, identity, sts, key, known, runtime_id, source } = claim;
    let now = (inner.clock)();
    let address = evidence::address(&known, source);
    let signed = match subject {
        Subject::Pod(pod) => {
            pods::prove(inner, pod, identity.token.as_deref(), &known).await?;
            true
        }
        Subject::Task(arn) => match wanted_role(&known)? {
            None => false,
            Some(role) => {
                let presigned = sts.ok_or_else(|| {
                    Refused::new(
                        Code::SignatureMissing,
                        format!("the task has role {role}, which must sign; see identity in the monitor"),
                    )
                })?;
                let key_hash = sha256_hex(&key);
                let proof = Proof { gateway: &inner.id, nonce: &identity.nonce, key_hash: &key_hash };
                inner.sts.check(presigned, arn, &role, proof, now).await?;
                true
            }
        },
    };
    let session = pin(inner, identity, known, runtime_id, key, address, signed).await?;
    tracing::info!(task = %session.task(), kind = ?session.kind, signed, address = ?address, "agent enrolled");
    Ok(session)
}

/// Whose agent it says it is.
#[derive(Clone, Copy)]
enum Subject<'a> {
    Task(TaskArn<'a>),
    Pod(PodName<'a>),
}

impl<'a> Subject<'a> {
    fn parse(task: &'a str) -> Option<Self> {
        PodName::parse(task).map(Self::Pod).or_else(|| TaskArn::parse(task).map(Self::Task))
    }

    /// The first check; gives the runtime id of the agent's own container.
    fn check(self, identity: &Identity, known: &Known) -> Result<String, Refused> {
        match self {
            Self::Task(_) => evidence::check(identity, known).map(|own| own.runtime_id.clone()),
            Self::Pod(_) => pods::check(identity, known),
        }
    }
}

/// What is known of the task: as the fleet has it where that fits, else as ECS or Kubernetes says now.
async fn evident(inner: &Inner, subject: Subject<'_>, identity: &Identity) -> Result<Known, Refused> {
    if let Some(known) = inner.directory.task(&identity.task)
        && known.role != TaskRole::Unknown
        && subject.check(identity, &known).is_ok()
    {
        return Ok(known);
    }
    let refreshed = inner.directory.refresh(&identity.task).await.map_err(|error| {
        tracing::warn!(%error, cause = %error.source, "the fleet could not be refreshed for an enrolment");
        Refused::busy(match subject {
            Subject::Task(_) => "ECS",
            Subject::Pod(_) => "the Kubernetes API server",
        })
    })?;
    refreshed.ok_or_else(|| Refused::new(Code::TaskUnknown, format!("no such task: {}", shown(&identity.task))))
}

/// The role that must sign; `None` where no signature is wanted.
fn wanted_role(known: &Known) -> Result<Option<String>, Refused> {
    match (known.identity, &known.role) {
        (IdentityChoice::Metadata, _) => Ok(None),
        (_, TaskRole::Role(role)) => Ok(Some(role.to_string())),
        (_, TaskRole::Unknown) => Err(Refused::busy("the task's definition")),
        (IdentityChoice::Auto, TaskRole::None) => Ok(None),
        (IdentityChoice::Signed, TaskRole::None) => Err(Refused::new(
            Code::SignatureMissing,
            "the monitor demands a signature and the task has no role; give it one, or set identity: Auto",
        )),
    }
}

async fn pin(
    inner: &Inner,
    identity: &Identity,
    known: Known,
    runtime_id: String,
    key: Vec<u8>,
    address: evidence::Address,
    signed: bool,
) -> Result<Arc<Session>, Refused> {
    let now = (inner.clock)();
    let interval = inner.interval(known.kind);
    // A gateway that was away has not heard anyone: silence counts from its start at the earliest.
    let silent = now - interval * SILENT_INTERVALS;
    let silent = if inner.started_at > silent { jiff::Timestamp::UNIX_EPOCH } else { silent };
    let task = known.task.arn.to_string();
    let before = inner.sessions.of_task(&task);
    inner.flush_heard(before.as_deref()).await?;
    let pin = Pin { task: task.clone(), runtime_id: runtime_id.clone(), public_key: BASE64.encode(&key), signed };
    let pinned = inner.store.pin_agent(&pin, silent, now).await.map_err(|error| {
        tracing::error!(%error, "an agent's key could not be pinned");
        Refused::busy("the store")
    })?;
    let kept = before.as_ref().filter(|session| session.key == key).and_then(|session| session.conflict());
    let conflict = match pinned {
        Pinned::First => None,
        Pinned::Same(contender) => contender.or(kept),
        Pinned::TookOver => {
            inner.tally.one("KeyReplaced");
            tracing::warn!(%task, container = %shown(&identity.container), "a new key replaces one that fell silent");
            None
        }
        Pinned::Held => {
            inner.sessions.contend(&task, now);
            let message = format!(
                "another key speaks for the agent of task {task}; this one may after {} s of its silence",
                (interval * SILENT_INTERVALS).as_secs()
            );
            return Err(Refused::new(Code::AgentIdentityConflict, message));
        }
    };
    let burst = inner.limits.session_requests_per_second * 10.0;
    inner.sessions.begin(NewSession { key, known, runtime_id, address, signed, interval, conflict }, burst, now)
}

impl Inner {
    /// Time between heartbeats.
    pub(super) fn interval(&self, kind: AgentKind) -> SignedDuration {
        let seconds = match kind {
            AgentKind::Node => self.node_heartbeat_seconds,
            AgentKind::Sidecar => self.sidecar_heartbeat_seconds,
        };
        SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(60))
    }

    /// Brings the store's view of when this agent was heard up to date, before it is judged by it.
    async fn flush_heard(&self, session: Option<&Session>) -> Result<(), Refused> {
        let Some(session) = session else { return Ok(()) };
        self.store.agents_heard(&[session.heard()]).await.map_err(|error| {
            tracing::error!(%error, "the store could not note when an agent was heard");
            Refused::busy("the store")
        })
    }
}
