//! Who a projected service-account token belongs to, as the cluster's API server says.
//!
//! *Guarantees*: a token counts only for our audience, and only while the API server says so, give or
//! take five minutes; it is neither kept nor logged. *Caveats*: what the API server says of the node
//! comes with Kubernetes 1.32 (ServiceAccountTokenPodNodeInfo; on by default since 1.30).
//! <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/>

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::api::{Api, PostParams};
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tasuki_api::kubernetes::TOKEN_AUDIENCE;
use tokio::sync::Semaphore;

/// Whom a token was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reviewed {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// Node that the pod runs on, where the API server says it.
    pub node: Option<String>,
    /// Uid of that node.
    pub node_uid: Option<String>,
    /// The service account's name; its namespace is the pod's.
    pub service_account: String,
}

/// A token that does not count, or that could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The API server does not take it: forged, expired, for another audience, of a pod that is gone.
    #[error("the API server does not take the token: {0}")]
    Refused(String),
    /// The API server could not be asked, or does not let the controller ask.
    #[error("the API server could not be asked about a token")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Says whom a token was made for.
pub trait TokenReviewer: Send + Sync + 'static {
    /// Looks at a token.
    ///
    /// # Errors
    /// [`ReviewError::Refused`] where it does not count, [`ReviewError::Unreachable`] where that is
    /// not known.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Reviewed, ReviewError>>;
}

/// For how long an answer is good. Meanwhile a pod that ends is known from the fleet.
const KEEP: Duration = Duration::from_secs(300);
/// Answers remembered: the agents of the largest clusters, all enrolling anew.
const CACHE: usize = 8_192;
/// Questions at once, so that a storm of enrolments is not one at the API server.
const AT_ONCE: usize = 16;
/// Time for one question.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the API server by `TokenReview`, and remembers its good answers for five minutes.
pub struct ApiReviewer {
    api: Api<TokenReview>,
    answers: Mutex<LruCache<[u8; 32], (Instant, Reviewed)>>,
    evictions: AtomicU64,
    permits: Semaphore,
}

impl ApiReviewer {
    /// A reviewer; the client needs `create` on `tokenreviews.authentication.k8s.io`.
    pub fn new(client: kube::Client) -> Self {
        Self {
            api: Api::all(client),
            answers: Mutex::new(LruCache::new(NonZeroUsize::MIN.saturating_add(CACHE - 1))),
            evictions: AtomicU64::new(0),
            permits: Semaphore::new(AT_ONCE),
        }
    }

    /// Answers that were pushed out because there were too many.
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    fn answers(&self) -> MutexGuard<'_, LruCache<[u8; 32], (Instant, Reviewed)>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, key: &[u8; 32], now: Instant) -> Option<Reviewed> {
        let mut answers = self.answers();
        let (at, reviewed) = answers.get(key)?;
        if now.saturating_duration_since(*at) < KEEP {
            return Some(reviewed.clone());
        }
        answers.pop(key);
        None
    }

    fn remember(&self, key: [u8; 32], reviewed: &Reviewed, now: Instant) {
        let mut answers = self.answers();
        if answers.len() == CACHE && !answers.contains(&key) {
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
        answers.put(key, (now, reviewed.clone()));
    }

    async fn ask(&self, token: &str) -> Result<Reviewed, ReviewError> {
        let _permit = self.permits.acquire().await.map_err(|error| ReviewError::Unreachable(error.into()))?;
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = tokio::time::timeout(PATIENCE, self.api.create(&PostParams::default(), &review)).await;
        let answer = answer.map_err(|_| ReviewError::Unreachable("no answer in 5 s".into()))?;
        judge(answer.map_err(|error| ReviewError::Unreachable(error.into()))?.status.unwrap_or_default())
    }
}

impl TokenReviewer for ApiReviewer {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Reviewed, ReviewError>> {
        async move {
            let key = hash(token);
            if let Some(reviewed) = self.remembered(&key, Instant::now()) {
                return Ok(reviewed);
            }
            // The answer is as old as the question.
            let asked = Instant::now();
            let reviewed = self.ask(token).await?;
            self.remember(key, &reviewed, asked);
            Ok(reviewed)
        }
        .boxed()
    }
}

fn hash(token: &str) -> [u8; 32] {
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    key
}

/// Reads an answer.
fn judge(status: TokenReviewStatus) -> Result<Reviewed, ReviewError> {
    let refused = |why: &str| ReviewError::Refused(why.to_owned());
    if status.authenticated != Some(true) {
        let why = status.error.filter(|why| !why.is_empty());
        return Err(refused(why.as_deref().unwrap_or("it is not authenticated")));
    }
    // Without an audience the server did not look at audiences at all: then the token is one for the
    // API server itself.
    if !status.audiences.unwrap_or_default().iter().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(refused("it was not made for this gateway's audience"));
    }
    let UserInfo { username, extra, .. } = status.user.unwrap_or_default();
    let mut extra = extra.unwrap_or_default();
    let mut about = |name: &str| {
        let values = extra.remove(&format!("authentication.kubernetes.io/{name}"));
        values.and_then(|values| values.into_iter().next()).filter(|value| !value.is_empty())
    };
    let username = username.unwrap_or_default();
    let account = username.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'));
    let (namespace, service_account) = account.ok_or_else(|| refused("it is not one of a service account"))?;
    let bound = || refused("it is not bound to a pod");
    Ok(Reviewed {
        namespace: namespace.to_owned(),
        pod: about("pod-name").ok_or_else(bound)?,
        pod_uid: about("pod-uid").ok_or_else(bound)?,
        node: about("node-name"),
        node_uid: about("node-uid"),
        service_account: service_account.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::client_of;
    use axum::extract::State;
    use axum::routing::post;
    use axum::{Json, Router};
    use http::StatusCode;
    use serde_json::{Value, json};
    use std::collections::HashMap;
    use std::sync::Arc;

    /// Answers as a kube-apiserver does, by token.
    #[derive(Default)]
    struct Server {
        answers: HashMap<&'static str, (StatusCode, Value)>,
        asked: Mutex<Vec<Value>>,
    }

    async fn answer(State(server): State<Arc<Server>>, Json(review): Json<Value>) -> (StatusCode, Json<Value>) {
        server.asked.lock().unwrap().push(review.clone());
        let (code, status) = server.answers[review["spec"]["token"].as_str().unwrap()].clone();
        if !code.is_success() {
            return (code, Json(status));
        }
        let mut whole = review;
        whole["status"] = status;
        (StatusCode::CREATED, Json(whole))
    }

    fn reviewer(answers: HashMap<&'static str, (StatusCode, Value)>) -> (ApiReviewer, Arc<Server>) {
        let server = Arc::new(Server { answers, asked: Mutex::default() });
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let router = Router::new().route(path, post(answer)).with_state(server.clone());
        (ApiReviewer::new(client_of(router)), server)
    }

    fn good() -> Value {
        json!({"authenticated": true, "audiences": [TOKEN_AUDIENCE], "user": {
            "username": "system:serviceaccount:tasuki-agents:tasuki-agent", "uid": "u",
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "extra": {"authentication.kubernetes.io/credential-id": ["JTI=x"],
                "authentication.kubernetes.io/node-name": ["node-a"], "authentication.kubernetes.io/node-uid": ["n-1"],
                "authentication.kubernetes.io/pod-name": ["tasuki-agent-x"], "authentication.kubernetes.io/pod-uid": ["p-1"]}}})
    }

    fn without(pointer: &str, name: &str) -> Value {
        let mut answer = good();
        answer.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(name);
        answer
    }

    #[tokio::test]
    async fn a_good_token_names_pod_and_node_and_is_asked_about_once() {
        let (reviewer, server) = reviewer(HashMap::from([("good", (StatusCode::OK, good()))]));
        let reviewed = reviewer.review("good").await.unwrap();
        assert_eq!(
            (&*reviewed.namespace, &*reviewed.pod, &*reviewed.pod_uid),
            ("tasuki-agents", "tasuki-agent-x", "p-1")
        );
        assert_eq!((reviewed.node.as_deref(), reviewed.node_uid.as_deref()), (Some("node-a"), Some("n-1")));
        assert_eq!(reviewed.service_account, "tasuki-agent");
        assert_eq!(reviewer.review("good").await.unwrap(), reviewed);
        {
            let asked = server.asked.lock().unwrap();
            assert_eq!(asked.len(), 1);
            assert_eq!(asked[0]["spec"]["audiences"], json!([TOKEN_AUDIENCE]));
        }
        let later = Instant::now() + KEEP;
        assert_eq!(reviewer.remembered(&hash("good"), later), None, "not longer than five minutes");
    }

    #[tokio::test]
    async fn whatever_the_server_does_not_vouch_for_is_refused() {
        let extra = "/user/extra";
        let mut foreign = good();
        foreign["audiences"] = json!(["https://kubernetes.default.svc"]);
        let mut person = good();
        person["user"]["username"] = json!("admin");
        let cases = [
            (
                "forged",
                json!({"user": {}, "error": "[invalid bearer token, square/go-jose: error in cryptographic primitive]"}),
                "invalid bearer",
            ),
            (
                "expired",
                json!({"authenticated": false, "error": "[invalid bearer token, service account token has expired]"}),
                "expired",
            ),
            ("mute", json!({}), "not authenticated"),
            ("foreign", foreign, "audience"),
            ("blind", without("", "audiences"), "audience"),
            ("person", person, "service account"),
            ("unbound", without(extra, "authentication.kubernetes.io/pod-uid"), "bound"),
        ];
        let answers = cases.iter().map(|(token, answer, _)| (*token, (StatusCode::OK, answer.clone())));
        let (reviewer, server) = reviewer(answers.collect());
        for (token, _, why) in &cases {
            let error = reviewer.review(token).await.unwrap_err();
            assert!(matches!(&error, ReviewError::Refused(said) if said.contains(why)), "{token}: {error}");
        }
        reviewer.review("forged").await.unwrap_err();
        assert_eq!(server.asked.lock().unwrap().len(), cases.len() + 1, "a refusal is not remembered");
    }

    #[tokio::test]
    async fn a_server_that_cannot_be_asked_is_no_refusal() {
        let status = |code: u16, reason: &str| json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code});
        let (reviewer, _) = reviewer(HashMap::from([
            ("forbidden", (StatusCode::FORBIDDEN, status(403, "Forbidden"))),
            ("broken", (StatusCode::INTERNAL_SERVER_ERROR, status(500, "InternalError"))),
        ]));
        for token in ["forbidden", "broken"] {
            assert!(matches!(reviewer.review(token).await, Err(ReviewError::Unreachable(_))), "{token}");
        }
        // The client is built with TLS even where none is used.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let nobody = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let nobody = ApiReviewer::new(kube::Client::try_from(nobody).unwrap());
        assert!(matches!(nobody.review("good").await, Err(ReviewError::Unreachable(_))));
    }

    #[tokio::test]
    async fn the_memory_is_bounded_and_counts_what_it_forgets() {
        let (reviewer, _) = reviewer(HashMap::new());
        let reviewed = judge(serde_json::from_value(good()).unwrap()).unwrap();
        let now = Instant::now();
        for number in 0..CACHE + 3 {
            reviewer.remember(hash(&number.to_string()), &reviewed, now);
        }
        assert_eq!((reviewer.answers().len(), reviewer.evictions()), (CACHE, 3));
        assert_eq!(reviewer.remembered(&hash("0"), now), None);
    }
}
