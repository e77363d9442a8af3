//! What an API call is refused with.

use std::borrow::Cow;

/// A refusal in AWS's own words: the code that clients match on, the message that people read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// Error code, such as `ClientException`.
    pub code: Cow<'static, str>,
    /// Text for people.
    pub message: String,
    /// HTTP status, 400 for nearly everything.
    pub status: u16,
}

impl ApiError {
    /// A refusal with HTTP status 400.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), status: 400 }
    }

    /// The same with another HTTP status.
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// ECS's word for "you asked for something that cannot be".
    pub fn client(message: impl Into<String>) -> Self {
        Self::new("ClientException", message)
    }

    /// A parameter has a value that the API does not take.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterException", message)
    }
}

/// The result of every API operation.
pub type ApiResult<T = serde_json::Value> = Result<T, ApiError>;

/// Reads an operation's input. Unknown members are ignored, as AWS does; a member of the wrong type is refused.
pub fn input<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> ApiResult<T> {
    serde_json::from_value(value).map_err(|error| match error.to_string() {
        missing if missing.starts_with("missing field") => {
            let name = missing.split('`').nth(1).unwrap_or_default().to_owned();
            ApiError::invalid(format!("Missing required parameter: {name}"))
        }
        other => ApiError::new("SerializationException", other),
    })
}
