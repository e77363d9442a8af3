//! What RBAC grants, one verb at a time.

use crate::audit::Request;
use serde_json::Value;
use std::collections::BTreeSet;
use tasuki_e2e_kubernetes::release::Release;
use tasuki_e2e_kubernetes::world::NAMESPACE;

/// One verb on one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    verb: String,
    group: String,
    resource: String,
    /// Empty: everywhere.
    namespace: String,
    /// Empty: any.
    name: String,
}

impl std::fmt::Display for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let group = if self.group.is_empty() { "core" } else { &self.group };
        write!(f, "{} {group}/{}", self.verb, self.resource)?;
        for (word, value) in [("in", &self.namespace), ("named", &self.name)] {
            if !value.is_empty() {
                write!(f, " {word} {value}")?;
            }
        }
        Ok(())
    }
}

impl Grant {
    /// The request needed this.
    pub fn serves(&self, request: &Request) -> bool {
        (self.verb == request.verb || (self.verb == "create" && request.creates()))
            && self.group == request.group
            && self.resource == request.resource
            && (self.namespace.is_empty() || self.namespace == request.namespace)
            && (self.name.is_empty() || self.name == request.name)
    }

    /// It lets something be changed.
    pub fn writes(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

/// What the bindings of the cluster give the controller's ServiceAccount, whoever made them.
pub async fn grants(release: &Release) -> BTreeSet<Grant> {
    let kinds = "clusterroles,roles,clusterrolebindings,rolebindings";
    let text = release.kubectl(&["get", kinds, "--all-namespaces", "--output=json"]).await.unwrap();
    let listed: Value = serde_json::from_str(&text).unwrap();
    let listed = listed["items"].as_array().unwrap();
    let mut grants = BTreeSet::new();
    for binding in listed {
        let is_ours = |subject: &Value| {
            subject["kind"] == "ServiceAccount" && subject["name"] == "tasuki" && subject["namespace"] == NAMESPACE
        };
        if !binding["subjects"].as_array().is_some_and(|subjects| subjects.iter().any(is_ours)) {
            continue;
        }
        let namespace = binding["metadata"]["namespace"].as_str().unwrap_or_default();
        let reference = &binding["roleRef"];
        let role = listed.iter().find(|role| {
            role["kind"] == reference["kind"]
                && role["metadata"]["name"] == reference["name"]
                && (reference["kind"] == "ClusterRole" || role["metadata"]["namespace"] == namespace)
        });
        for rule in role.unwrap()["rules"].as_array().unwrap() {
            let list = |field: &str| -> Vec<String> {
                let values = rule[field].as_array().into_iter().flatten();
                values.map(|value| value.as_str().unwrap().to_owned()).collect()
            };
            assert!(list("nonResourceURLs").is_empty(), "{rule}");
            let mut names = list("resourceNames");
            if names.is_empty() {
                names.push(String::new());
            }
            for (verb, group) in
                list("verbs").iter().flat_map(|verb| list("apiGroups").into_iter().map(move |g| (verb, g)))
            {
                for (resource, name) in list("resources").iter().flat_map(|r| names.iter().map(move |name| (r, name))) {
                    assert!(![verb, &group, resource, name].iter().any(|word| word.contains('*')), "{rule}");
                    let (resource, name) = (resource.clone(), name.clone());
                    let (verb, group, namespace) = (verb.clone(), group.clone(), namespace.to_owned());
                    grants.insert(Grant { verb, group, resource, namespace, name });
                }
            }
        }
    }
    grants
}
