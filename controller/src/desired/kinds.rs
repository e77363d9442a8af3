//! The kinds by name: their schema, and their documents from values.

use super::bounds;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tasuki_api::desired::{
    API_VERSION, AwsScopeSpec, DetectionRuleSpec, Document, FindingSinkSpec, KubernetesScopeSpec, Metadata, Object,
    RuntimeMonitorSpec, SuppressionSpec, ThreatListSpec,
};

/// Runs `$body` with the spec type of a kind bound to `$Spec`; `None` for an unknown kind.
macro_rules! with_kind {
    ($kind:expr, $Spec:ident, $wrap:ident => $body:expr) => {
        match $kind {
            "RuntimeMonitor" => {
                type $Spec = RuntimeMonitorSpec;
                let $wrap = |o| Document::RuntimeMonitor(Box::new(o));
                Some($body)
            }
            "AwsScope" => {
                type $Spec = AwsScopeSpec;
                let $wrap = Document::AwsScope;
                Some($body)
            }
            "KubernetesScope" => {
                type $Spec = KubernetesScopeSpec;
                let $wrap = Document::KubernetesScope;
                Some($body)
            }
            "DetectionRule" => {
                type $Spec = DetectionRuleSpec;
                let $wrap = Document::DetectionRule;
                Some($body)
            }
            "ThreatList" => {
                type $Spec = ThreatListSpec;
                let $wrap = Document::ThreatList;
                Some($body)
            }
            "Suppression" => {
                type $Spec = SuppressionSpec;
                let $wrap = Document::Suppression;
                Some($body)
            }
            "FindingSink" => {
                type $Spec = FindingSinkSpec;
                let $wrap = Document::FindingSink;
                Some($body)
            }
            _ => None,
        }
    };
}

/// JSON schema (draft 2020-12) of a whole document of `kind`; `None` for an unknown kind.
pub fn schema_of(kind: &str) -> Option<Value> {
    with_kind!(kind, Spec, _wrap => {
        let _: fn(Object<Spec>) -> Document = _wrap;
        let mut generator = schemars::generate::SchemaSettings::draft2020_12().into_generator();
        let spec = generator.subschema_for::<Spec>();
        let metadata = generator.subschema_for::<Metadata>();
        let mut spec = spec.to_value();
        bounds::apply(&mut spec);
        let mut definitions = generator.take_definitions(true);
        // Kubernetes bounds these itself.
        definitions.iter_mut().filter(|(name, _)| *name != "Metadata").for_each(|(_, schema)| bounds::apply(schema));
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": format!("https://tasuki.dev/schemas/v1alpha1/{kind}.json"),
            "title": kind,
            "type": "object",
            "additionalProperties": false,
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "properties": {
                "apiVersion": { "description": "API group and version.", "type": "string", "const": API_VERSION },
                "kind": { "description": "The kind of document.", "type": "string", "const": kind },
                "metadata": metadata,
                "spec": spec,
                "status": { "description": "Written by the controller, never read.", "type": "object" },
            },
            "$defs": definitions,
        })
    })
}

/// A value that is not a document, and where.
pub struct Misfit {
    /// Path in serde's notation, below `spec`.
    pub path: serde_path_to_error::Path,
    /// Serde's words.
    pub message: String,
}

/// The typed document. `None` for an unknown kind.
pub fn document(kind: &str, metadata: Metadata, spec: Value) -> Option<Result<Document, Misfit>> {
    fn typed<T: DeserializeOwned>(spec: Value) -> Result<T, Misfit> {
        serde_path_to_error::deserialize(spec).map_err(|error: serde_path_to_error::Error<serde_json::Error>| {
            let message = error.inner().to_string();
            Misfit { path: error.path().clone(), message }
        })
    }
    with_kind!(kind, Spec, wrap => typed::<Spec>(spec).map(|spec| wrap(Object { metadata, spec })))
}

/// The content of a document, for hashing: the same content gives the same text.
pub fn content(document: &Document) -> Value {
    fn of<S: serde::Serialize>(object: &Object<S>) -> Value {
        json!({ "metadata": object.metadata, "spec": object.spec })
    }
    match document {
        Document::RuntimeMonitor(o) => of(o),
        Document::AwsScope(o) => of(o),
        Document::KubernetesScope(o) => of(o),
        Document::DetectionRule(o) => of(o),
        Document::ThreatList(o) => of(o),
        Document::Suppression(o) => of(o),
        Document::FindingSink(o) => of(o),
    }
}

/// JSON schema of a finding.
pub fn finding_schema() -> &'static Value {
    static SCHEMA: std::sync::OnceLock<Value> = std::sync::OnceLock::new();
    SCHEMA.get_or_init(|| {
        let mut schema = schemars::schema_for!(tasuki_api::finding::Finding).to_value();
        schema["$id"] = "https://tasuki.dev/schemas/v1alpha1/finding.json".into();
        schema
    })
}
