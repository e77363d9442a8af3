//! What AWS gives: metadata, credentials, and an STS that verifies SigV4 by its specification.
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use aws_lc_rs::hmac;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::IntoResponse;
use axum::routing::get;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

/// A role session that STS knows.
#[derive(Clone)]
pub struct Session {
    pub secret: String,
    pub token: String,
    pub arn: String,
}

#[derive(Default)]
pub struct Aws {
    /// Access key id to session.
    pub sessions: Mutex<HashMap<String, Session>>,
    /// Path to answer, for metadata and credentials.
    pub documents: Mutex<HashMap<String, Value>>,
    /// Requests that STS was asked.
    pub asked: Mutex<Vec<String>>,
}

impl Aws {
    /// Serves on loopback; gives the address.
    pub async fn serve(self: &Arc<Self>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = Router::new().route("/", get(sts)).fallback(document).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        address
    }
}

async fn document(State(aws): State<Arc<Aws>>, uri: http::Uri) -> impl IntoResponse {
    match aws.documents.lock().unwrap().get(uri.path()) {
        Some(document) => (StatusCode::OK, document.to_string()),
        None => (StatusCode::NOT_FOUND, String::new()),
    }
}

async fn sts(State(aws): State<Arc<Aws>>, RawQuery(query): RawQuery, headers: HeaderMap) -> impl IntoResponse {
    let query = query.unwrap_or_default();
    aws.asked.lock().unwrap().push(query.clone());
    match verify(&aws, &query, &headers) {
        Some(arn) => {
            let account = arn.split(':').nth(4).unwrap().to_owned();
            let result = json!({"Account": account, "Arn": arn, "UserId": "AROA:x"});
            let body = json!({"GetCallerIdentityResponse": {"GetCallerIdentityResult": result}});
            (StatusCode::OK, body.to_string())
        }
        None => (StatusCode::FORBIDDEN, "<ErrorResponse><Code>SignatureDoesNotMatch</Code></ErrorResponse>".to_owned()),
    }
}

fn verify(aws: &Aws, query: &str, headers: &HeaderMap) -> Option<String> {
    let raw: BTreeMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let decoded: HashMap<String, String> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    if decoded.get("Action")? != "GetCallerIdentity" {
        return None;
    }
    let (key_id, scope) = decoded.get("X-Amz-Credential")?.split_once('/')?;
    let session = aws.sessions.lock().unwrap().get(key_id)?.clone();
    if *decoded.get("X-Amz-Security-Token")? != session.token {
        return None;
    }
    let signed = decoded.get("X-Amz-SignedHeaders")?;
    let mut canonical = "GET\n/\n".to_owned();
    let pairs: Vec<_> =
        raw.iter().filter(|(name, _)| **name != "X-Amz-Signature").map(|(n, v)| format!("{n}={v}")).collect();
    canonical += &format!("{}\n", pairs.join("&"));
    for name in signed.split(';') {
        canonical += &format!("{name}:{}\n", headers.get(name)?.to_str().ok()?.trim());
    }
    canonical += &format!("\n{signed}\n{}", hash(b""));
    let text = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", decoded.get("X-Amz-Date")?, hash(canonical.as_bytes()));
    let mut key = format!("AWS4{}", session.secret).into_bytes();
    for part in scope.split('/') {
        key = sign(&key, part.as_bytes());
    }
    (hex::encode(sign(&key, text.as_bytes())) == *decoded.get("X-Amz-Signature")?).then_some(session.arn)
}

fn sign(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

pub fn hash(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}
