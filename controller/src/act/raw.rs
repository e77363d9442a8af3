//! Task definitions as opaque JSON. The typed SDK drops every field that it does not know, and a
//! definition that is registered again without one is a different definition. So these two calls
//! use the SDK for everything but the JSON: the answer's body is kept beside the typed output, and
//! the request's body is put in before it is signed. Same client, signature, time-outs, budget.
//!
//! The JSON may hold secrets: nothing here logs it, and no type here shows it by Debug.

use super::outcome::Stop;
use super::run::Run;
use crate::act::budget::Priority;
use crate::scope::{CallError, Kind, Scope, api};
use aws_sdk_ecs::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_ecs::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_ecs::error::BoxError;
use aws_sdk_ecs::operation::RequestId;
use aws_sdk_ecs::types::TaskDefinitionField;
use aws_smithy_types::body::SdkBody;
use serde_json::{Map, Value};
use std::sync::{Arc, Mutex, PoisonError};
use tasuki_core::fleet::Str;

/// A definition as DescribeTaskDefinition answers it.
pub(super) struct Described {
    /// `taskDefinition`.
    pub(super) definition: Value,
    /// `tags`: they come beside the definition, and are not part of its content.
    pub(super) tags: Vec<Value>,
}

impl Described {
    pub(super) fn arn(&self) -> Str {
        self.definition.get("taskDefinitionArn").and_then(Value::as_str).unwrap_or_default().into()
    }
    pub(super) fn active(&self) -> bool {
        self.definition.get("status").and_then(Value::as_str) == Some("ACTIVE")
    }
    pub(super) fn tag(&self, key: &str) -> Option<&str> {
        let tag = self.tags.iter().find(|tag| tag.get("key").and_then(Value::as_str) == Some(key))?;
        tag.get("value").and_then(Value::as_str)
    }
}

/// Describes one definition: an ARN, `family:revision`, or the latest ACTIVE one of a family. None
/// where there is none.
pub(super) async fn describe(scope: &Scope, priority: Priority, name: &str) -> Result<Option<Described>, CallError> {
    let body = Body::default();
    let answer = scope
        .call(api::DESCRIBE_DEFINITION, priority, || {
            let call = scope.read.describe_task_definition().task_definition(name).include(TaskDefinitionField::Tags);
            call.customize().interceptor(body.clone()).send()
        })
        .await;
    match answer {
        Err(error) if error.kind == Kind::Missing => Ok(None),
        Err(error) => Err(error),
        Ok(_) => body.take().map(Some).ok_or_else(|| CallError {
            api: api::DESCRIBE_DEFINITION.name,
            scope: scope.id.clone(),
            kind: Kind::Unanswered,
            code: None,
            message: format!(
                "the answer for {name} holds no task definition; check what stands between Tasuki and ECS"
            )
            .into(),
            request_id: None,
        }),
    }
}

/// Registers `definition` with `tags` and answers its ARN. One attempt that AWS answers makes one
/// revision: the caller keeps the journal.
pub(super) async fn register(run: &Run<'_>, mut definition: Map<String, Value>, tags: Vec<Value>) -> Result<Str, Stop> {
    // An empty list is refused by AWS, an absent one is not.
    definition.shift_remove("tags");
    if !tags.is_empty() {
        definition.insert("tags".to_owned(), Value::Array(tags));
    }
    let body: Arc<[u8]> = Value::Object(definition).to_string().into_bytes().into();
    let output = run
        .scope
        .call(api::REGISTER_DEFINITION, run.priority, || {
            let body = body.clone();
            let put = move |request: &mut aws_smithy_runtime_api::client::orchestrator::HttpRequest| {
                request.headers_mut().insert("content-length", body.len().to_string());
                *request.body_mut() = SdkBody::from(body.to_vec());
            };
            run.scope.act.register_task_definition().customize().mutate_request(put).send()
        })
        .await?;
    run.request_id(output.request_id());
    let arn = output.task_definition().and_then(|definition| definition.task_definition_arn()).unwrap_or_default();
    Ok(arn.into())
}

/// Keeps the body of an answer.
#[derive(Clone, Default)]
struct Body(Arc<Mutex<Option<Vec<u8>>>>);

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Body(hidden)")
    }
}

impl Body {
    fn take(&self) -> Option<Described> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let Ok(Value::Object(mut answer)) = serde_json::from_slice(&bytes) else { return None };
        let definition = answer.shift_remove("taskDefinition").filter(Value::is_object)?;
        let tags = match answer.shift_remove("tags") {
            Some(Value::Array(tags)) => tags,
            _ => Vec::new(),
        };
        Some(Described { definition, tags })
    }
}

impl Intercept for Body {
    fn name(&self) -> &'static str {
        "Body"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let bytes = context.response().body().bytes().map(<[u8]>::to_vec);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
        Ok(())
    }
}
