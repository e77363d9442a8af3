//! Are the definitions what an API server takes? The server itself is asked in e2e.

use super::*;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps};

fn walk(schema: &JSONSchemaProps, at: &str, seen: &mut Vec<String>) {
    let kind = schema.type_.as_deref().unwrap_or_else(|| panic!("{at} has no type"));
    assert!(schema.ref_path.is_none() && schema.any_of.is_none() && schema.one_of.is_none(), "{at}");
    match kind {
        "string" if schema.enum_.is_none() && !matches!(at, "" | ".apiVersion" | ".kind") => {
            assert!(schema.max_length.is_some(), "{at} has no bound");
        }
        "array" => assert!(schema.max_items.is_some(), "{at} has no bound"),
        "integer" => assert!(matches!(schema.format.as_deref(), Some("int32" | "int64")), "{at}: {:?}", schema.format),
        "object" | "string" | "boolean" => {}
        other => panic!("{at} is of type {other}"),
    }
    for rule in schema.x_kubernetes_validations.iter().flatten() {
        assert!(rule.message.as_ref().is_some_and(|message| !message.is_empty() && !message.contains('\n')), "{at}");
        seen.push(format!("{at}: {}", rule.rule));
    }
    for (name, inner) in schema.properties.iter().flatten() {
        walk(inner, &format!("{at}.{name}"), seen);
    }
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
    };
    if let Some(JSONSchemaPropsOrBool::Schema(inner)) = &schema.additional_properties {
        assert!(schema.max_properties.is_some() && schema.properties.is_none(), "{at} has no bound");
        walk(inner, &format!("{at}[*]"), seen);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(inner)) = &schema.items {
        walk(inner, &format!("{at}[]"), seen);
    }
}

#[test]
fn every_kind_is_structural_and_bounded_and_has_its_rules() {
    let mut rules = Vec::new();
    for kind in Document::KINDS {
        let crd: CustomResourceDefinition = serde_json::from_value(definition(kind).unwrap()).unwrap();
        assert_eq!(crd.spec.names.kind, kind);
        let version = &crd.spec.versions[0];
        let schema = version.schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        let (spec, status) =
            (&schema.properties.as_ref().unwrap()["spec"], &schema.properties.as_ref().unwrap()["status"]);
        assert!(!spec.properties.as_ref().unwrap().is_empty() && !status.properties.as_ref().unwrap().is_empty());
        assert!(version.subresources.as_ref().unwrap().status.is_some());
        assert_eq!(version.additional_printer_columns.as_ref().unwrap().last().unwrap().name, "Age");
        let mut seen = Vec::new();
        walk(schema, "", &mut seen);
        rules.extend(seen.into_iter().map(|rule| format!("{kind}{rule}")));
    }
    // A type or field that is renamed must not lose its rule unseen.
    insta::assert_snapshot!("rules", rules.join("\n"));
}

/// The definition of RuntimeMonitor after `change` was made to its schema.
fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut stored = definition("RuntimeMonitor").unwrap();
    change(&mut stored["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]);
    stored
}

#[test]
fn a_definition_that_has_more_lacks_nothing_and_an_older_one_is_told_by_its_fields_and_words() {
    for kind in Document::KINDS {
        assert_eq!(lacking(kind, &definition(kind).unwrap()), [""; 0], "{kind}");
    }
    let lacks = |change: fn(&mut Value)| lacking("RuntimeMonitor", &changed(change));
    let more = |properties: &mut Value| {
        properties["spec"]["properties"]["more"] = json!({ "type": "string" });
        properties["spec"]["properties"]["mode"]["enum"].as_array_mut().unwrap().push("More".into());
    };
    assert_eq!(lacks(more), [""; 0]);
    let fewer = |properties: &mut Value| {
        let waves = &mut properties["spec"]["properties"]["rollout"]["properties"]["waves"];
        waves["items"]["properties"].as_object_mut().unwrap().remove("soak");
        properties["spec"]["properties"].as_object_mut().unwrap().remove("exclusions");
        properties["spec"]["properties"]["mode"]["enum"].as_array_mut().unwrap().retain(|word| word != "Enforce");
        properties["status"]["properties"].as_object_mut().unwrap().remove("phase");
    };
    let mut found = lacks(fewer);
    found.sort();
    assert_eq!(found, ["spec.exclusions", "spec.mode: Enforce", "spec.rollout.waves[].soak", "status.phase"]);
    // One that keeps what it does not know drops nothing.
    assert_eq!(
        lacks(|properties| properties["spec"] = json!({ "x-kubernetes-preserve-unknown-fields": true })),
        [""; 0]
    );
    let mut other = definition("RuntimeMonitor").unwrap();
    other["spec"]["versions"][0]["name"] = "v1".into();
    assert_eq!(lacking("RuntimeMonitor", &other), ["version v1alpha1"]);
}
