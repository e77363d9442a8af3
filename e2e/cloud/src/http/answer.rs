//! Answers in the shape of each protocol.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode};
use quick_xml::escape::escape;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::world::Service;

/// How a service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// ECS, EventBridge.
    Json11,
    /// SQS.
    Json10,
    /// STS.
    Query,
}

impl Protocol {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json11 => "application/x-amz-json-1.1",
            Self::Json10 => "application/x-amz-json-1.0",
            Self::Query => "text/xml",
        }
    }
}

fn response(protocol: Protocol, status: u16, body: String, headers: &[(&'static str, &str)]) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(protocol.content_type()));
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// A successful answer.
pub fn success(protocol: Protocol, operation: &str, value: &Value, request_id: &str) -> Response {
    let body = match protocol {
        Protocol::Query => format!(
            "<{operation}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{operation}Result>{}</{operation}Result>\
             <ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{operation}Response>",
            xml(value)
        ),
        _ => value.to_string(),
    };
    response(protocol, 200, body, &[("x-amzn-requestid", request_id)])
}

/// A refusal.
pub fn failure(protocol: Protocol, service: Service, error: &ApiError, request_id: &str) -> Response {
    let id = ("x-amzn-requestid", request_id);
    if protocol == Protocol::Query {
        let body = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{}</Code>\
             <Message>{}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>",
            escape(error.code.as_ref()),
            escape(error.message.as_str())
        );
        return response(protocol, error.status, body, &[id]);
    }
    if service != Service::Sqs {
        let body = json!({"__type": error.code, "message": error.message}).to_string();
        return response(protocol, error.status, body, &[id]);
    }
    // SQS keeps the names of its old query protocol in a header; SDKs prefer them.
    let old = match error.code.as_ref() {
        "QueueDoesNotExist" => "AWS.SimpleQueueService.NonExistentQueue",
        "QueueNameExists" => "QueueAlreadyExists",
        "EmptyBatchRequest" => "AWS.SimpleQueueService.EmptyBatchRequest",
        "TooManyEntriesInBatchRequest" => "AWS.SimpleQueueService.TooManyEntriesInBatchRequest",
        "BatchEntryIdsNotDistinct" => "AWS.SimpleQueueService.BatchEntryIdsNotDistinct",
        "MessageNotInflight" => "AWS.SimpleQueueService.MessageNotInflight",
        other => other,
    };
    let body = json!({"__type": format!("com.amazonaws.sqs#{}", error.code), "message": error.message}).to_string();
    response(protocol, error.status, body, &[id, ("x-amzn-query-error", &format!("{old};Sender"))])
}

/// Members of an object as XML elements. Only what STS needs: objects and text.
fn xml(value: &Value) -> String {
    match value {
        Value::Object(map) => map.iter().map(|(name, inner)| format!("<{name}>{}</{name}>", xml(inner))).collect(),
        Value::String(text) => escape(text.as_str()).into_owned(),
        other => other.to_string(),
    }
}
