//! The door: one port, every service. Routing by protocol, signature check, error shapes.
//!
//! | request | service |
//! |---|---|
//! | `X-Amz-Target: AmazonEC2ContainerServiceV20141113.*` | ECS (awsJson1.1) |
//! | `X-Amz-Target: AWSEvents.*` | EventBridge (awsJson1.1) |
//! | `X-Amz-Target: AmazonSQS.*` | SQS (awsJson1.0) |
//! | form body or query with `Action=` | STS (query, XML) |

mod answer;
mod receive;

use std::collections::HashMap;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::response::Response;
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::auth::sigv4;
use crate::cloud::Cloud;
use crate::error::ApiError;
use crate::world::Service;
use answer::Protocol;

/// Largest request body: an SQS batch of 1 MiB with its JSON around it.
const MAX_BODY: usize = 8 * 1024 * 1024;

/// The API of a cloud.
pub fn router(cloud: Cloud) -> Router {
    Router::new().fallback(handle).layer(DefaultBodyLimit::max(MAX_BODY)).with_state(cloud)
}

/// Serves the API on a listener until the future is dropped.
///
/// # Errors
/// When accepting fails for good.
pub async fn serve(cloud: Cloud, listener: tokio::net::TcpListener) -> std::io::Result<()> {
    axum::serve(listener, router(cloud)).await
}

async fn handle(State(cloud): State<Cloud>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let limited = http_body_util::Limited::new(body, MAX_BODY);
    let body: Bytes = match limited.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(_) => {
            let error = ApiError::new("RequestEntityTooLarge", format!("The body is larger than {MAX_BODY} bytes."))
                .with_status(413);
            return answer::failure(Protocol::Json11, Service::Ecs, &error, "");
        }
    };
    let target = parts.headers.get("x-amz-target").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let request_id = cloud.change(|world| crate::effect::uuid(&mut world.rng));
    let Some((service, operation, protocol)) = route(target.as_deref(), &parts, &body) else {
        let error = ApiError::new("UnknownOperationException", "This local cloud has no service for the request.")
            .with_status(404);
        return answer::failure(Protocol::Json11, Service::Ecs, &error, &request_id);
    };
    let verified = {
        let world = cloud.world();
        sigv4::verify(&parts, &body, &world.identity, Timestamp::now(), world.clock.now())
    };
    let who = match verified {
        Ok(who) => who,
        Err(refused) => {
            let (code, status) = refused.code(service != Service::Sts && service != Service::Sqs);
            tracing::debug!(operation, %refused, "signature refused");
            let error = ApiError::new(code, refused.to_string()).with_status(status);
            return answer::failure(protocol, service, &error, &request_id);
        }
    };
    if who.service != service.name() {
        let (code, status) =
            sigv4::SignatureError::Mismatch(String::new()).code(service != Service::Sts && service != Service::Sqs);
        let message = format!("Credential should be scoped to correct service: '{}'.", service.name());
        return answer::failure(protocol, service, &ApiError::new(code, message).with_status(status), &request_id);
    }
    let input = if service == Service::Sts { Ok(Value::Object(form(&parts, &body))) } else { json(&body) };
    let host = parts.headers.get("host").and_then(|v| v.to_str().ok()).unwrap_or("127.0.0.1").to_owned();
    let result = match input {
        Err(error) => Err(error),
        Ok(input) if service == Service::Sqs && operation == "ReceiveMessage" => {
            receive::receive(&cloud, &who, input, &host).await
        }
        Ok(input) => cloud.change(|world| world.call(&who, service, &operation, input, &host)),
    };
    tracing::debug!(
        service = service.name(),
        operation,
        caller = %who.caller.arn,
        region = %who.region,
        error = result.as_ref().err().map(|e| e.code.as_ref()),
        "call"
    );
    match result {
        Ok(value) => answer::success(protocol, &operation, &value, &request_id),
        Err(error) => answer::failure(protocol, service, &error, &request_id),
    }
}

fn route(target: Option<&str>, parts: &http::request::Parts, body: &[u8]) -> Option<(Service, String, Protocol)> {
    let Some(target) = target else {
        let form = form(parts, body);
        let action = form.get("Action")?.as_str()?.to_owned();
        return Some((Service::Sts, action, Protocol::Query));
    };
    let (prefix, operation) = target.split_once('.')?;
    let (service, protocol) = match prefix {
        "AmazonEC2ContainerServiceV20141113" => (Service::Ecs, Protocol::Json11),
        "AWSEvents" => (Service::Events, Protocol::Json11),
        "AmazonSQS" => (Service::Sqs, Protocol::Json10),
        _ => return None,
    };
    Some((service, operation.to_owned(), protocol))
}

fn json(body: &[u8]) -> Result<Value, ApiError> {
    if body.is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    serde_json::from_slice(body).map_err(|error| ApiError::new("SerializationException", error.to_string()))
}

/// The members of a query-protocol request: from the query and from a form body.
fn form(parts: &http::request::Parts, body: &[u8]) -> Map<String, Value> {
    let mut all: HashMap<String, String> = HashMap::new();
    let query = parts.uri.query().unwrap_or_default().as_bytes();
    for source in [query, body] {
        all.extend(url::form_urlencoded::parse(source).into_owned());
    }
    all.into_iter().map(|(k, v)| (k, Value::String(v))).collect()
}
