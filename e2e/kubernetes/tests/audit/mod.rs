//! What the controller's ServiceAccount asked of the API server, from the server's own audit log.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use std::path::Path;
use tasuki_e2e_kubernetes::Options;
use tempfile::TempDir;

/// Nobody else's requests are written: a test's log stays small.
const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - { level: Metadata, users: [\"system:serviceaccount:tasuki-system:tasuki\"] }
  - { level: None }
";

/// The log of one API server.
pub struct Audit {
    directory: TempDir,
}

impl Audit {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("tasuki-").tempdir().unwrap();
        std::fs::write(directory.path().join("policy.yaml"), POLICY).unwrap();
        Self { directory }
    }

    /// For the plane whose API server is to write it.
    pub fn options(&self) -> Options {
        let at = self.directory.path().display();
        let apiserver = vec![format!("--audit-policy-file={at}/policy.yaml"), format!("--audit-log-path={at}/log")];
        Options { apiserver, ..Options::default() }
    }

    /// All requests so far, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        let text = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        // What is being written at this moment is read the next time.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let events = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        // A watch is there once when it begins and once when it ends; everything else has one stage.
        events.filter(|event| event["objectRef"].is_object()).map(|event| Request::of(&event)).collect()
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Of the token with which it was asked: each controller has one of its own.
    pub credential: String,
    pub verb: String,
    /// Empty where the request is not held to one.
    pub namespace: String,
    pub group: String,
    /// With its subresource, as in a rule.
    pub resource: String,
    /// Empty where it names none.
    pub name: String,
    /// HTTP status of the answer.
    pub code: u64,
}

impl Request {
    fn of(event: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &event["objectRef"];
        let resource = match text(&object["subresource"]) {
            none if none.is_empty() => text(&object["resource"]),
            subresource => format!("{}/{subresource}", text(&object["resource"])),
        };
        Self {
            credential: text(&event["user"]["extra"]["authentication.kubernetes.io/credential-id"][0]),
            verb: text(&event["verb"]),
            namespace: text(&object["namespace"]),
            group: text(&object["apiGroup"]),
            resource,
            name: text(&object["name"]),
            code: event["responseStatus"]["code"].as_u64().unwrap(),
        }
    }

    /// An apply, or another patch, that made its object: RBAC asks for `create` too.
    pub fn creates(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "patch") && self.code == 201
    }

    /// It asks for a change, and is granted.
    pub fn writes(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch") && self.code < 400
    }
}

/// How requests with the token of this kubeconfig are named in the log.
pub fn credential(kubeconfig: &Path) -> String {
    let config: Value = serde_json::from_str(&std::fs::read_to_string(kubeconfig).unwrap()).unwrap();
    let token = config["users"][0]["user"]["token"].as_str().unwrap();
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    format!("JTI={}", claims["jti"].as_str().unwrap())
}
