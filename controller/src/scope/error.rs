//! What AWS's errors mean to Tasuki.

use aws_sdk_ecs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ecs::operation::RequestId;
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use tasuki_core::fleet::{Change, ScopeId};

/// What kind of failure a call met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// AWS refuses the principal.
    Denied,
    /// AWS throttles the account; the budget was told.
    Throttled,
    /// Our own share of AWS's limits is used up; no call was made.
    Exhausted,
    /// What was asked for does not exist.
    Missing,
    /// AWS understood and said no.
    Refused,
    /// No answer, or one of the 500s: whether the call took effect is unknown.
    Unanswered,
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{api} in {scope}: {message}")]
pub struct CallError {
    /// As IAM names it.
    pub api: &'static str,
    /// Where.
    pub scope: ScopeId,
    /// What kind.
    pub kind: Kind,
    /// AWS's error code, such as `ClusterNotFoundException`.
    pub code: Option<Box<str>>,
    /// AWS's words, or ours where AWS did not answer.
    pub message: Box<str>,
    /// AWS's request id.
    pub request_id: Option<Box<str>>,
}

impl CallError {
    pub(super) fn from_sdk<E>(api: &'static str, scope: &ScopeId, error: &SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let scope = scope.clone();
        let request_id = error.request_id().map(Box::from);
        let Some(answer) = error.as_service_error() else {
            // Credentials are fetched inside the call: a role that may not be assumed shows here.
            if let Some(refused) = causes(error).find_map(|cause| cause.downcast_ref::<AssumeRoleError>()) {
                let code = refused.code().map(Box::from);
                let message: Box<str> = refused.message().or(code.as_deref()).unwrap_or("AWS gave no words").into();
                let kind = kind(code.as_deref().unwrap_or_default(), 0, &message);
                return Self { api: "sts:AssumeRole", scope, kind, code, message, request_id };
            }
            let message = words(error).into();
            return Self { api, scope, kind: Kind::Unanswered, code: None, message, request_id };
        };
        let code = answer.code().map(Box::from);
        let message: Box<str> = answer.message().or(code.as_deref()).unwrap_or("AWS gave no words").into();
        let status = error.raw_response().map_or(0, |response| response.status().as_u16());
        let kind = kind(code.as_deref().unwrap_or_default(), status, &message);
        Self { api, scope, kind, code, message, request_id }
    }

    /// Who was refused, as far as AWS's words say.
    pub fn principal(&self) -> Option<&str> {
        let (_, rest) = self.message.split_once("User: ")?;
        rest.split_once(" is not authorized").map(|(principal, _)| principal)
    }

    /// The IAM statement that would allow the call, as JSON; none where an explicit deny refuses it.
    pub fn statement(&self) -> Option<String> {
        if self.message.contains("explicit deny") {
            return None;
        }
        // The action that is refused may be another than the call, such as iam:PassRole.
        let words = self.message.split_once("perform: ").map(|(_, rest)| rest);
        let action = words.and_then(|rest| rest.split_whitespace().next()).unwrap_or(self.api);
        let resource = words
            .and_then(|rest| rest.split_once("on resource: "))
            .and_then(|(_, rest)| rest.split_whitespace().next())
            .unwrap_or("*");
        Some(serde_json::json!({ "Effect": "Allow", "Action": action, "Resource": resource }).to_string())
    }

    /// One text for people: who was refused, AWS's words, and what to do.
    pub fn detail(&self) -> String {
        match self.kind {
            Kind::Denied => {
                let who = self.principal().map_or_else(|| "the controller's principal".to_owned(), str::to_owned);
                let cure = match self.statement() {
                    Some(statement) => format!("allow it by {statement}"),
                    None => "an explicit deny must be lifted".to_owned(),
                };
                format!("{} was refused to {who}: {}; {cure}", self.api, self.message)
            }
            _ => match &self.request_id {
                Some(id) => format!("{}: {} (request {id})", self.api, self.message),
                None => format!("{}: {}", self.api, self.message),
            },
        }
    }

    /// What the fleet is told of a denied call.
    pub fn as_change(&self) -> Option<Change> {
        (self.kind == Kind::Denied).then(|| Change::Denied {
            scope: self.scope.clone(),
            api: self.api.to_owned(),
            detail: self.detail(),
        })
    }
}

fn kind(code: &str, status: u16, message: &str) -> Kind {
    match code {
        "AccessDeniedException"
        | "AccessDenied"
        | "UnauthorizedOperation"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "NotAuthorized" => Kind::Denied,
        "ThrottlingException" | "Throttling" | "TooManyRequestsException" | "RequestLimitExceeded" | "SlowDown" => {
            Kind::Throttled
        }
        "ClusterNotFoundException"
        | "ServiceNotFoundException"
        | "ServiceNotActiveException"
        | "TargetNotFoundException"
        | "ResourceNotFoundException"
        | "ServiceDeploymentNotFoundException"
        | "QueueDoesNotExist"
        | "AWS.SimpleQueueService.NonExistentQueue" => Kind::Missing,
        // ECS answers DescribeTaskDefinition of an unknown family with a plain ClientException.
        "ClientException" if message.contains("Unable to describe task definition") => Kind::Missing,
        // ECS reports a missing iam:PassRole as a ClientException too.
        "ClientException" if message.contains("is not authorized to perform") => Kind::Denied,
        _ if status >= 500 => Kind::Unanswered,
        _ => Kind::Refused,
    }
}

/// An error of the SDK in words: AWS's own where it answered, else every cause in turn. The SDK's
/// own rendering ends in a debug print of everything.
pub fn words<E>(error: &SdkError<E>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match error.as_service_error().and_then(ProvideErrorMetadata::message) {
        Some(message) => message.to_owned(),
        None => causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": "),
    }
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: &str, message: &str) -> CallError {
        CallError {
            api: "ecs:RegisterTaskDefinition",
            scope: ScopeId { account: "111122223333".into(), region: "eu-west-1".into() },
            kind: kind(code, 400, message),
            code: Some(code.into()),
            message: message.into(),
            request_id: None,
        }
    }

    #[test]
    fn a_denied_call_names_the_principal_and_the_statement_that_would_allow_it() {
        let denied = error(
            "ClientException",
            "User: arn:aws:sts::111122223333:assumed-role/tasuki-act/tasuki is not authorized to perform: iam:PassRole on resource: arn:aws:iam::111122223333:role/app because no identity-based policy allows the iam:PassRole action",
        );
        assert_eq!(denied.kind, Kind::Denied);
        assert_eq!(denied.principal(), Some("arn:aws:sts::111122223333:assumed-role/tasuki-act/tasuki"));
        assert_eq!(
            denied.statement().unwrap(),
            r#"{"Effect":"Allow","Action":"iam:PassRole","Resource":"arn:aws:iam::111122223333:role/app"}"#
        );
        assert!(matches!(denied.as_change(), Some(Change::Denied { detail, .. }) if detail.contains("iam:PassRole")));
    }

    #[test]
    fn an_explicit_deny_is_not_answered_with_an_allow() {
        let denied = error(
            "AccessDeniedException",
            "User: arn:x is not authorized to perform: ecs:RegisterTaskDefinition on resource: * with an explicit deny in a service control policy",
        );
        assert_eq!(denied.statement(), None);
        assert!(denied.detail().contains("must be lifted"));
    }

    #[test]
    fn codes_sort_into_kinds() {
        assert_eq!(kind("ThrottlingException", 400, "Rate exceeded"), Kind::Throttled);
        assert_eq!(kind("ServerException", 500, ""), Kind::Unanswered);
        assert_eq!(kind("ClientException", 400, "Unable to describe task definition."), Kind::Missing);
        assert_eq!(kind("InvalidParameterException", 400, ""), Kind::Refused);
    }
}
