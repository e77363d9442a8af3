//! The wire: an HTTP client whose other end is a function.

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// What the other end says.
pub enum Answer {
    /// 200.
    Ok(Value),
    /// An error with code and message.
    Error(&'static str, String),
    /// Status and XML, as STS speaks it.
    Xml(u16, String),
}

impl Answer {
    /// The answer of a throttled call.
    pub fn throttled() -> Self {
        Self::Error("ThrottlingException", "Rate exceeded".to_owned())
    }
    /// The answer to a principal that may not.
    pub fn denied(action: &str) -> Self {
        let words = format!(
            "User: arn:aws:sts::111122223333:assumed-role/tasuki-read/tasuki is not authorized to perform: {action} on resource: * because no identity-based policy allows the {action} action"
        );
        Self::Error("AccessDeniedException", words)
    }
}

type Handler = dyn Fn(&str, &Value) -> Answer + Send + Sync;

/// The wire. Clones are one wire.
#[derive(Clone)]
pub struct Wire {
    handler: Arc<Handler>,
    state: Arc<Mutex<State>>,
    dead: Arc<Notify>,
}

#[derive(Default)]
struct State {
    calls: Vec<(String, Value)>,
    /// Bodies that are no JSON, and who signed each request.
    forms: Vec<String>,
    authorizations: Vec<String>,
    /// Calls that still get through, and whether the one after them reaches the other end.
    cut: Option<(usize, bool)>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl Wire {
    /// A wire to `handler`, which gets the operation's name and the request's JSON.
    pub fn new(handler: impl Fn(&str, &Value) -> Answer + Send + Sync + 'static) -> Self {
        Self { handler: Arc::new(handler), state: Arc::default(), dead: Arc::default() }
    }

    /// After `calls` more calls the process is dead: the next one never comes back. It still reaches
    /// the other end where `heard`.
    pub fn cut_after(&self, calls: usize, heard: bool) {
        self.state.lock().unwrap().cut = Some((calls, heard));
    }
    /// Runs `work` until it ends or the wire is cut under it; then `work` is dropped where it stands
    /// and the wire is whole again. None where it was cut.
    pub async fn until_cut<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let result = tokio::select! {
            result = work => Some(result),
            () = self.dead.notified() => None,
        };
        self.state.lock().unwrap().cut = None;
        result
    }
    /// What the other end says to this, uncounted: for a wire in front of this one.
    pub fn pass(&self, operation: &str, body: &Value) -> Answer {
        (self.handler)(operation, body)
    }
    /// The operations that were called, in order.
    pub fn calls(&self) -> Vec<String> {
        self.state.lock().unwrap().calls.iter().map(|(operation, _)| operation.clone()).collect()
    }
    /// The bodies that were sent to one operation.
    pub fn bodies(&self, operation: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state.calls.iter().filter(|(name, _)| name == operation).map(|(_, body)| body.clone()).collect()
    }
    /// Bodies of calls that are not JSON, in order.
    pub fn forms(&self) -> Vec<String> {
        self.state.lock().unwrap().forms.clone()
    }
    /// The Authorization header of every call, in order.
    pub fn authorizations(&self) -> Vec<String> {
        self.state.lock().unwrap().authorizations.clone()
    }
    /// How often each operation was called.
    pub fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for call in self.calls() {
            *counts.entry(call).or_default() += 1;
        }
        counts
    }

    /// None where the process died before it could hear the answer.
    fn answer(&self, request: &HttpRequest) -> Option<HttpResponse> {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let body: Value =
            request.body().bytes().and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default();
        let mut state = self.state.lock().unwrap();
        let heard = match &mut state.cut {
            None => Some(true),
            Some((0, reaches)) => std::mem::take(reaches).then_some(false),
            Some((left, _)) => {
                *left -= 1;
                Some(true)
            }
        };
        let Some(alive) = heard else {
            self.dead.notify_one();
            return None;
        };
        state.calls.push((operation.clone(), body.clone()));
        state.authorizations.push(request.headers().get("authorization").unwrap_or_default().to_owned());
        if operation.is_empty() {
            let form = request.body().bytes().map(String::from_utf8_lossy).unwrap_or_default();
            state.forms.push(form.into_owned());
        }
        drop(state);
        let answer = (self.handler)(&operation, &body);
        if !alive {
            self.dead.notify_one();
            return None;
        }
        let (status, body) = match answer {
            Answer::Ok(body) => (200, body.to_string()),
            Answer::Xml(status, body) => (status, body),
            Answer::Error(code, message) => {
                let status = if code == "ServerException" { 500 } else { 400 };
                (status, json!({"__type": code, "message": message}).to_string())
            }
        };
        let mut response = HttpResponse::new(StatusCode::try_from(status).unwrap(), SdkBody::from(body));
        response.headers_mut().insert("x-amzn-requestid", "5a1e6d0c");
        Some(response)
    }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        match self.answer(&request) {
            Some(response) => HttpConnectorFuture::ready(Ok(response)),
            None => HttpConnectorFuture::new(std::future::pending()),
        }
    }
}

impl HttpClient for Wire {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}
