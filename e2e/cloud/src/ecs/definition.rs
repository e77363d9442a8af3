//! Task definitions: families and their revisions.
//!
//! ```text
//!  register ─▶ ACTIVE ── deregister ─▶ INACTIVE ── delete ─▶ DELETE_IN_PROGRESS (gone when nothing runs it)
//! ```
//! The JSON is kept as it came. Only what AWS itself fills in is added ([`fill_defaults`]): an unknown member is kept too,
//! because a model newer than this cloud must survive the round trip.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::tags::{self, Tag};
use super::{Ecs, Page, includes, validate, without_nulls};
use crate::clock::epoch;
use crate::effect::Ctx;
use crate::error::{ApiError, ApiResult, input};

/// One revision.
#[derive(Debug, Clone)]
pub struct Definition {
    /// ARN.
    pub arn: String,
    /// Family.
    pub family: String,
    /// Revision, from 1.
    pub revision: u32,
    /// `ACTIVE`, `INACTIVE` or `DELETE_IN_PROGRESS`.
    pub status: &'static str,
    /// What was registered, defaults filled in.
    pub body: Map<String, Value>,
    /// Tags.
    pub tags: Vec<Tag>,
    compatibilities: Vec<&'static str>,
    registered_at: Timestamp,
    registered_by: String,
    deregistered_at: Option<Timestamp>,
    delete_requested_at: Option<Timestamp>,
}

impl Definition {
    /// Its container definitions.
    pub fn containers(&self) -> impl Iterator<Item = &Value> {
        self.body.get("containerDefinitions").and_then(Value::as_array).into_iter().flatten()
    }

    /// A top-level string member.
    pub fn text(&self, member: &str) -> Option<&str> {
        self.body.get(member).and_then(Value::as_str)
    }

    /// True when it may run on that launch type.
    pub fn fits(&self, launch_type: &str) -> bool {
        self.compatibilities.contains(&launch_type)
    }

    /// `family:revision`.
    pub fn label(&self) -> String {
        format!("{}:{}", self.family, self.revision)
    }

    fn view(&self) -> Value {
        let mut view = self.body.clone();
        view.insert("taskDefinitionArn".into(), self.arn.clone().into());
        view.insert("revision".into(), self.revision.into());
        view.insert("status".into(), self.status.into());
        view.insert("requiresAttributes".into(), requires_attributes(self));
        view.insert("compatibilities".into(), json!(self.compatibilities));
        view.insert("registeredAt".into(), epoch(self.registered_at));
        view.insert("registeredBy".into(), self.registered_by.clone().into());
        for (name, at) in [("deregisteredAt", self.deregistered_at), ("deleteRequestedAt", self.delete_requested_at)] {
            if let Some(at) = at {
                view.insert(name.into(), epoch(at));
            }
        }
        without_nulls(Value::Object(view))
    }
}

/// The attributes that a container instance must have, for the features that this cloud knows of.
fn requires_attributes(definition: &Definition) -> Value {
    let mut names = Vec::new();
    if definition.text("networkMode") == Some("awsvpc") {
        names.push("ecs.capability.task-eni");
    }
    if definition.text("taskRoleArn").is_some_and(|arn| !arn.is_empty()) {
        names.push("com.amazonaws.ecs.capability.task-iam-role");
    }
    if definition.text("pidMode").is_some_and(|mode| !mode.is_empty()) {
        names.push("ecs.capability.pid-ipc-namespace-sharing");
    }
    if definition.containers().any(|c| c.get("privileged") == Some(&Value::Bool(true))) {
        names.push("com.amazonaws.ecs.capability.privileged-container");
    }
    if definition.containers().any(|c| c.get("dependsOn").is_some_and(|d| !validate::is_empty(d))) {
        names.push("ecs.capability.container-ordering");
    }
    names.push("com.amazonaws.ecs.capability.docker-remote-api.1.18");
    names.into_iter().map(|name| json!({"name": name})).collect()
}

pub(super) fn register(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let Value::Object(mut body) = value else {
        return Err(ApiError::new("SerializationException", "The request body is not an object."));
    };
    let tag_list = body.shift_remove("tags").filter(|t| !t.is_null()).map(input::<Vec<Tag>>).transpose()?;
    let tags = tags::checked(tag_list)?;
    let compatibilities = validate::definition(&body)?;
    fill_defaults(&mut body);
    let family = body.get("family").and_then(Value::as_str).unwrap_or_default().to_owned();
    let revisions = ecs.families.entry(family.clone()).or_default();
    let revision = u32::try_from(revisions.len() + 1).map_err(|_| ApiError::client("Too many revisions."))?;
    let definition = Definition {
        arn: ctx.arn(format!("task-definition/{family}:{revision}")),
        family,
        revision,
        status: "ACTIVE",
        body,
        tags: tags.clone(),
        compatibilities,
        registered_at: ctx.now,
        registered_by: ctx.caller.to_owned(),
        deregistered_at: None,
        delete_requested_at: None,
    };
    let view = definition.view();
    revisions.push(definition);
    Ok(json!({"taskDefinition": view, "tags": tags}))
}

/// What AWS adds to a registered definition: empty lists, `cpu` 0, `essential` true, protocol and host port of mappings.
fn fill_defaults(body: &mut Map<String, Value>) {
    let fargate = validate::asks_for(body, "FARGATE");
    let mode = body.get("networkMode").and_then(Value::as_str).unwrap_or_default().to_owned();
    for list in ["volumes", "placementConstraints"] {
        body.entry(list).or_insert_with(|| json!([]));
    }
    for size in ["cpu", "memory"] {
        if let Some(number) = body.get(size).and_then(Value::as_str).and_then(|text| validate::size(size, text)) {
            body.insert(size.into(), number.to_string().into());
        }
    }
    if fargate && mode.is_empty() {
        body.insert("networkMode".into(), "awsvpc".into());
    }
    for container in body.get_mut("containerDefinitions").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(container) = container.as_object_mut() else { continue };
        container.entry("cpu").or_insert_with(|| json!(0));
        container.entry("essential").or_insert_with(|| json!(true));
        for list in ["portMappings", "environment", "mountPoints", "volumesFrom", "systemControls"] {
            container.entry(list).or_insert_with(|| json!([]));
        }
        for mapping in container.get_mut("portMappings").and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(mapping) = mapping.as_object_mut() else { continue };
            mapping.entry("protocol").or_insert_with(|| json!("tcp"));
            if let Some(port) = mapping.get("containerPort").cloned() {
                let same = mode == "awsvpc" || mode == "host";
                mapping.entry("hostPort").or_insert_with(|| if same { port } else { json!(0) });
            }
        }
    }
}

impl Ecs {
    /// The revision that a reference names: `family` (latest ACTIVE), `family:revision` or an ARN.
    ///
    /// # Errors
    /// `ClientException`, as DescribeTaskDefinition says it.
    pub fn definition(&self, reference: &str) -> ApiResult<&Definition> {
        let none = || ApiError::client("Unable to describe task definition.");
        let name = reference.rsplit("task-definition/").next().unwrap_or(reference);
        match name.rsplit_once(':') {
            Some((family, revision)) => {
                let index: usize = revision
                    .parse()
                    .map_err(|_| ApiError::client(format!("Invalid revision number. Number: {revision}")))?;
                let revisions = self.families.get(family).ok_or_else(none)?;
                index.checked_sub(1).and_then(|at| revisions.get(at)).ok_or_else(none)
            }
            None => {
                let revisions = self.families.get(name).ok_or_else(none)?;
                revisions.iter().rev().find(|d| d.status == "ACTIVE").ok_or_else(none)
            }
        }
    }

    /// The revision that new tasks may use.
    ///
    /// # Errors
    /// `ClientException` when it does not exist or is not ACTIVE.
    pub(super) fn usable_definition(&self, reference: &str) -> ApiResult<&Definition> {
        let found = self.definition(reference).map_err(|_| ApiError::client("TaskDefinition not found."))?;
        match found.status {
            "ACTIVE" => Ok(found),
            _ => Err(ApiError::client("TaskDefinition is inactive")),
        }
    }

    pub(super) fn definition_by_arn_mut(&mut self, arn: &str) -> Option<&mut Definition> {
        let (family, revision) = arn.rsplit("task-definition/").next()?.rsplit_once(':')?;
        let index = revision.parse::<usize>().ok()?.checked_sub(1)?;
        self.families.get_mut(family)?.get_mut(index)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DescribeInput {
    task_definition: String,
    #[serde(default)]
    include: Vec<String>,
}

pub(super) fn describe(ecs: &mut Ecs, value: Value) -> ApiResult {
    let request: DescribeInput = input(value)?;
    let found = ecs.definition(&request.task_definition)?;
    let mut answer = json!({"taskDefinition": found.view()});
    if includes(&request.include, "TAGS") {
        answer["tags"] = json!(found.tags);
    }
    Ok(answer)
}

pub(super) fn deregister(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: DescribeInput = input(value)?;
    if !request.task_definition.rsplit('/').next().is_some_and(|name| name.contains(':')) {
        return Err(ApiError::client(format!("Missing revision in '{}'.", request.task_definition)));
    }
    let arn = ecs.definition(&request.task_definition)?.arn.clone();
    let found = ecs
        .definition_by_arn_mut(&arn)
        .ok_or_else(|| ApiError::client("The specified task definition does not exist."))?;
    if found.status == "ACTIVE" {
        found.status = "INACTIVE";
        found.deregistered_at = Some(ctx.now);
    }
    Ok(json!({"taskDefinition": found.view()}))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeleteInput {
    task_definitions: Vec<String>,
}

pub(super) fn delete(ecs: &mut Ecs, ctx: &mut Ctx<'_>, value: Value) -> ApiResult {
    let request: DeleteInput = input(value)?;
    if request.task_definitions.is_empty() || request.task_definitions.len() > 10 {
        return Err(ApiError::invalid("taskDefinitions must have 1 to 10 items."));
    }
    let (mut gone, mut failures) = (Vec::new(), Vec::new());
    for reference in &request.task_definitions {
        let arn = ecs.definition(reference).map(|d| d.arn.clone()).unwrap_or_default();
        match ecs.definition_by_arn_mut(&arn) {
            None => failures.push(json!({"arn": reference, "reason": "MISSING"})),
            Some(found) if found.status == "ACTIVE" => {
                failures.push(json!({"arn": found.arn, "reason": "The specified task definition is still in ACTIVE status. Please deregister the target and try again."}));
            }
            Some(found) => {
                found.status = "DELETE_IN_PROGRESS";
                found.delete_requested_at.get_or_insert(ctx.now);
                gone.push(found.view());
            }
        }
    }
    Ok(json!({"taskDefinitions": gone, "failures": failures}))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListInput {
    family_prefix: Option<String>,
    status: Option<String>,
    sort: Option<String>,
    #[serde(flatten)]
    page: Page,
}

pub(super) fn list(ecs: &mut Ecs, value: Value) -> ApiResult {
    let request: ListInput = input(value)?;
    let status = request.status.as_deref().unwrap_or("ACTIVE");
    let families = ecs.families.iter().filter(|(name, _)| request.family_prefix.as_ref().is_none_or(|p| p == *name));
    let revisions = families.flat_map(|(_, revisions)| revisions);
    let mut arns: Vec<String> = revisions.filter(|d| d.status == status).map(|d| d.arn.clone()).collect();
    if request.sort.as_deref() == Some("DESC") {
        arns.reverse();
    }
    request.page.cut("taskDefinitionArns", arns, 100, 100)
}

pub(super) fn families(ecs: &mut Ecs, value: Value) -> ApiResult {
    let request: ListInput = input(value)?;
    let wanted = |revisions: &[Definition]| {
        let active = revisions.iter().any(|d| d.status == "ACTIVE");
        match request.status.as_deref().unwrap_or("ALL") {
            "ACTIVE" => active,
            "INACTIVE" => !active,
            _ => true,
        }
    };
    let prefix = request.family_prefix.clone().unwrap_or_default();
    let found = ecs.families.iter().filter(|(name, revisions)| name.starts_with(&prefix) && wanted(revisions));
    request.page.cut("families", found.map(|(name, _)| name.clone()).collect(), 100, 100)
}
