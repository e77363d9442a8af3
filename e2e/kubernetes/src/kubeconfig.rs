//! Files that say where the API server is and who asks. JSON, which YAML contains.

use crate::certificates::Identity;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use std::path::Path;

/// Who asks.
pub enum User<'a> {
    /// By client certificate.
    Certificate(&'a Identity),
    /// By bearer token.
    Token(&'a str),
}

/// Writes one; it names no file, so that it can be moved.
pub fn write(path: &Path, server: &str, authority: &str, user: &User<'_>) -> Result<()> {
    let user = match user {
        User::Certificate(identity) => json!({
            "client-certificate-data": STANDARD.encode(&identity.certificate),
            "client-key-data": STANDARD.encode(&identity.key),
        }),
        User::Token(token) => json!({ "token": token }),
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "test",
            "cluster": { "server": server, "certificate-authority-data": STANDARD.encode(authority) },
        }],
        "users": [{ "name": "test", "user": user }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        "current-context": "test",
    });
    let text = serde_json::to_string_pretty(&config)?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
