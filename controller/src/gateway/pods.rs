//! What holds for agents in pods: their evidence, their token, and how they name other pods.

use super::Inner;
use super::directory::Known;
use super::evidence::{self, shown};
use super::refuse::{Code, Refused};
use super::tokens::{ReviewError, Reviewed, TokenReviewer};
use std::sync::Arc;
use tasuki_api::agent::{AgentKind, Identity};
use tasuki_api::kubernetes::{self, PodName};
use tasuki_core::fleet::Task;

/// Where Tasuki's own agents run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPods {
    /// Their namespace.
    pub namespace: String,
    /// Their service account.
    pub service_account: String,
}

impl Default for AgentPods {
    fn default() -> Self {
        Self { namespace: "tasuki-agents".to_owned(), service_account: "tasuki-agent".to_owned() }
    }
}

/// Checks what a pod's agent says of itself against what is known of the pod; gives the runtime id of
/// the agent's own container, which the pod itself does not know.
pub fn check(identity: &Identity, known: &Known) -> Result<String, Refused> {
    evidence::standing(identity, known)?;
    let own = known.task.containers.iter().find(|container| *container.name == *known.agent_container);
    let Some((own, id)) = own.and_then(|own| Some((own, own.runtime_id.as_deref()?))) else {
        let message = "Kubernetes does not show the agent's container as started yet; try again in a moment";
        return Err(Refused::new(Code::EvidencePending, message));
    };
    evidence::approved(own, known)?;
    Ok(id.to_owned())
}

/// Proves by the pod's token that the agent runs in it.
pub(super) async fn prove(inner: &Inner, pod: PodName<'_>, token: Option<&str>, known: &Known) -> Result<(), Refused> {
    let reviewer = accepted(inner)?;
    let token = token.filter(|token| !token.is_empty()).ok_or_else(|| {
        let message = format!("a pod enrols with its token; project one for audience {}", kubernetes::TOKEN_AUDIENCE);
        Refused::new(Code::TokenMissing, message)
    })?;
    if !is_token(token) {
        return Err(Refused::new(Code::TokenRefused, "what was given as a token is none"));
    }
    let reviewed = reviewer.review(token).await.map_err(|error| match error {
        ReviewError::Refused(why) => {
            Refused::new(Code::TokenRefused, format!("the API server does not take the token: {}", shown(&why)))
        }
        ReviewError::Unreachable(cause) => {
            tracing::warn!(%cause, "the API server could not be asked about an agent's token");
            Refused::busy("the Kubernetes API server")
        }
    })?;
    judge(pod, known, &reviewed, &inner.agent_pods)
}

/// The one who looks at tokens, where pods are accepted at all.
pub(super) fn accepted(inner: &Inner) -> Result<&dyn TokenReviewer, Refused> {
    inner.reviewer.as_deref().ok_or_else(|| {
        let message = "this gateway knows no Kubernetes API server; pods enrol at the one in their own cluster";
        Refused::new(Code::PodsNotAccepted, message)
    })
}

/// Three parts of base64url, as every JWT has: nothing else is worth a question.
fn is_token(token: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    token.len() <= kubernetes::LONGEST_TOKEN && token.split('.').count() == 3 && token.split('.').all(plain)
}

/// Compares whom the token was made for with whom the agent says it is.
fn judge(pod: PodName<'_>, known: &Known, reviewed: &Reviewed, agents: &AgentPods) -> Result<(), Refused> {
    let whose = (&*reviewed.namespace, &*reviewed.pod, &*reviewed.pod_uid);
    if whose != (pod.namespace, pod.name, pod.uid) {
        let message = format!("the token is that of pod {}/{}, uid {}", whose.0, whose.1, whose.2);
        return Err(Refused::new(Code::TokenOfAnother, message));
    }
    let Some(node) = &known.task.node else {
        return Err(Refused::new(Code::EvidencePending, format!("pod {pod} is on no node yet, as far as is known")));
    };
    let said = reviewed.node.as_deref().ok_or_else(|| {
        let message = "the token names no node; the API server is older than Kubernetes 1.32, or keeps it out";
        Refused::new(Code::TokenOfAnotherNode, message)
    })?;
    if **node != *kubernetes::node(pod.cluster, said) {
        let message = format!("the token was made on node {said}, the pod runs on {node}");
        return Err(Refused::new(Code::TokenOfAnotherNode, message));
    }
    let account = (&*reviewed.namespace, &*reviewed.service_account);
    if known.kind == AgentKind::Node && account != (&*agents.namespace, &*agents.service_account) {
        let message = format!(
            "an agent for a node runs as {}/{}, not as {}/{}",
            agents.namespace, agents.service_account, account.0, account.1
        );
        return Err(Refused::new(Code::ServiceAccountNotAgent, message));
    }
    Ok(())
}

/// The task among `tasks` that an agent names. A node knows a static pod by the hash of its file, 32
/// digits; the API server gives its mirror a uid of its own, so there the name decides.
pub fn named<'a>(tasks: &'a [Arc<Task>], claimed: &str) -> Option<&'a Arc<Task>> {
    if let Some(task) = tasks.iter().find(|task| *task.arn == *claimed) {
        return Some(task);
    }
    let wanted = PodName::parse(claimed).filter(|pod| is_static(pod.uid))?;
    tasks.iter().find(|task| {
        PodName::parse(&task.arn).is_some_and(|pod| {
            (pod.cluster, pod.namespace, pod.name) == (wanted.cluster, wanted.namespace, wanted.name)
        })
    })
}

/// Whether a uid is the hash of a static pod's file (pkg/kubelet/config: an MD5 in hexadecimal).
fn is_static(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::is_token;

    #[test]
    fn only_what_looks_like_a_token_is_asked_about() {
        assert!(is_token("eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOlsiYSJdfQ.c2ln-bmF_dXJl"));
        for wrong in ["", "a.b", "a.b.c.d", "a..c", "a.b.c\n", "a.b.c d", &format!("a.b.{}", "c".repeat(9000))] {
            assert!(!is_token(wrong), "{wrong}");
        }
    }
}
