//! The default bus: rules, targets, PutEvents, and which deliveries an event becomes.

use std::time::Duration;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::deliver::Delivery;
use super::pattern::Pattern;
use crate::effect::{Ctx, Effect, Event};
use crate::error::{ApiError, ApiResult, input};

/// Rules on a bus (EventBridge quota, default in most Regions).
const MAX_RULES: usize = 300;
/// Targets of a rule (EventBridge quota).
const MAX_TARGETS: usize = 5;
/// Default retry policy: 185 attempts within 24 hours.
const MAX_ATTEMPTS: u32 = 185;
const MAX_AGE: u64 = 86_400;

/// A rule.
#[derive(Debug, Clone)]
pub struct Rule {
    arn: String,
    pattern_text: String,
    pattern: Pattern,
    state: String,
    description: Option<String>,
    role_arn: Option<String>,
    targets: IndexMap<String, Target>,
    created_by: String,
}

/// A target of a rule.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Target {
    id: String,
    arn: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    role_arn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letter_config: Option<DeadLetter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_policy: Option<Retry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeadLetter {
    arn: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Retry {
    #[serde(skip_serializing_if = "Option::is_none")]
    maximum_retry_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    maximum_event_age_in_seconds: Option<u64>,
}

/// The default bus of an account and Region.
#[derive(Debug, Default)]
pub struct Bus {
    rules: IndexMap<String, Rule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BusInput {
    name: Option<String>,
    rule: Option<String>,
    event_bus_name: Option<String>,
    event_pattern: Option<String>,
    schedule_expression: Option<String>,
    state: Option<String>,
    description: Option<String>,
    role_arn: Option<String>,
    name_prefix: Option<String>,
    #[serde(default)]
    targets: Vec<Value>,
    #[serde(default)]
    ids: Vec<String>,
    #[serde(default)]
    entries: Vec<Entry>,
    next_token: Option<String>,
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    source: Option<String>,
    detail_type: Option<String>,
    detail: Option<String>,
    #[serde(default)]
    resources: Vec<String>,
    event_bus_name: Option<String>,
}

fn not_found(what: &str) -> ApiError {
    ApiError::new("ResourceNotFoundException", format!("{what} does not exist on EventBus default."))
}

fn validation(message: impl Into<String>) -> ApiError {
    ApiError::new("ValidationException", message)
}

impl Bus {
    /// Runs an EventBridge operation. `None`: there is no such operation.
    pub fn call(&mut self, ctx: &mut Ctx<'_>, operation: &str, value: Value) -> Option<ApiResult> {
        let request: BusInput = match input(value) {
            Ok(request) => request,
            Err(error) => return Some(Err(error)),
        };
        let bus = request.event_bus_name.as_deref().unwrap_or("default");
        if bus != "default" && !bus.ends_with(":event-bus/default") {
            return Some(Err(ApiError::new("ResourceNotFoundException", format!("Event bus {bus} does not exist."))));
        }
        let answer = match operation {
            "PutRule" => self.put_rule(ctx, request),
            "DescribeRule" => self.describe_rule(&request),
            "ListRules" => self.list_rules(&request),
            "DeleteRule" => self.delete_rule(&request),
            "EnableRule" => self.set_state(&request, "ENABLED"),
            "DisableRule" => self.set_state(&request, "DISABLED"),
            "PutTargets" => self.put_targets(request),
            "RemoveTargets" => self.remove_targets(&request),
            "ListTargetsByRule" => self.list_targets(&request),
            "PutEvents" => put_events(ctx, request),
            _ => return None,
        };
        Some(answer)
    }

    fn rule(&self, name: Option<&str>) -> ApiResult<(&str, &Rule)> {
        let name = name.unwrap_or_default();
        let found = self.rules.get_key_value(name).map(|(name, rule)| (name.as_str(), rule));
        found.ok_or_else(|| not_found(&format!("Rule {name}")))
    }

    fn rule_mut(&mut self, name: Option<&str>) -> ApiResult<&mut Rule> {
        let name = name.unwrap_or_default();
        self.rules.get_mut(name).ok_or_else(|| not_found(&format!("Rule {name}")))
    }

    fn put_rule(&mut self, ctx: &mut Ctx<'_>, request: BusInput) -> ApiResult {
        let name = request.name.unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            return Err(validation(format!("Invalid rule name '{name}'.")));
        }
        if request.schedule_expression.is_some() {
            return Err(validation("Scheduled rules are not offered by this local cloud."));
        }
        let text = request
            .event_pattern
            .ok_or_else(|| validation("Parameter(s) EventPattern or ScheduleExpression must be specified."))?;
        let pattern = Pattern::parse(&text)?;
        let state = request.state.unwrap_or_else(|| "ENABLED".into());
        if !["ENABLED", "DISABLED", "ENABLED_WITH_ALL_CLOUDTRAIL_MANAGEMENT_EVENTS"].contains(&state.as_str()) {
            return Err(validation(format!("Invalid state '{state}'.")));
        }
        if self.rules.len() >= MAX_RULES && !self.rules.contains_key(&name) {
            return Err(ApiError::new(
                "LimitExceededException",
                "The requested resource exceeds the maximum number allowed.",
            ));
        }
        let arn = ctx.place.arn("events", format!("rule/{name}"));
        let targets = self.rules.get(&name).map(|r| r.targets.clone()).unwrap_or_default();
        let rule = Rule {
            arn: arn.clone(),
            pattern_text: text,
            pattern,
            state,
            description: request.description,
            role_arn: request.role_arn,
            targets,
            created_by: ctx.place.account.clone(),
        };
        self.rules.insert(name, rule);
        Ok(json!({"RuleArn": arn}))
    }

    fn describe_rule(&self, request: &BusInput) -> ApiResult {
        let (name, rule) = self.rule(request.name.as_deref())?;
        let mut view = view(name, rule);
        view["CreatedBy"] = rule.created_by.clone().into();
        Ok(view)
    }

    fn list_rules(&self, request: &BusInput) -> ApiResult {
        let prefix = request.name_prefix.clone().unwrap_or_default();
        let rules =
            self.rules.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(name, rule)| view(name, rule));
        page("Rules", rules.collect(), request)
    }

    fn delete_rule(&mut self, request: &BusInput) -> ApiResult {
        let name = request.name.clone().unwrap_or_default();
        if self.rules.get(&name).is_some_and(|rule| !rule.targets.is_empty()) {
            return Err(validation("Rule can't be deleted since it has targets."));
        }
        self.rules.shift_remove(&name);
        Ok(json!({}))
    }

    fn set_state(&mut self, request: &BusInput, state: &str) -> ApiResult {
        self.rule_mut(request.name.as_deref())?.state = state.into();
        Ok(json!({}))
    }

    fn put_targets(&mut self, request: BusInput) -> ApiResult {
        let rule = self.rule_mut(request.rule.as_deref())?;
        let targets = request.targets.into_iter().map(input::<Target>).collect::<ApiResult<Vec<_>>>()?;
        if targets.is_empty() {
            return Err(validation("Targets must have at least 1 item."));
        }
        for target in &targets {
            let queue = target.arn.split(':').nth(2) == Some("sqs");
            if !queue {
                return Err(validation(format!(
                    "Parameter {} is not valid. This local cloud delivers to SQS only.",
                    target.arn
                )));
            }
        }
        let added = targets.iter().filter(|t| !rule.targets.contains_key(&t.id)).count();
        if rule.targets.len() + added > MAX_TARGETS {
            return Err(ApiError::new(
                "LimitExceededException",
                "The requested resource exceeds the maximum number allowed.",
            ));
        }
        for target in targets {
            rule.targets.insert(target.id.clone(), target);
        }
        Ok(json!({"FailedEntryCount": 0, "FailedEntries": []}))
    }

    fn remove_targets(&mut self, request: &BusInput) -> ApiResult {
        let rule = self.rule_mut(request.rule.as_deref())?;
        let mut failed = Vec::new();
        for id in &request.ids {
            if rule.targets.shift_remove(id).is_none() {
                failed.push(json!({"TargetId": id, "ErrorCode": "ResourceNotFoundException", "ErrorMessage": format!("Target {id} does not exist.")}));
            }
        }
        Ok(json!({"FailedEntryCount": failed.len(), "FailedEntries": failed}))
    }

    fn list_targets(&self, request: &BusInput) -> ApiResult {
        let (_, rule) = self.rule(request.rule.as_deref())?;
        page("Targets", rule.targets.values().map(|t| json!(t)).collect(), request)
    }

    /// The deliveries that an event in its envelope becomes.
    pub fn route(&self, envelope: &Value, now: jiff::Timestamp) -> Vec<Delivery> {
        let text = envelope.to_string();
        let mut out = Vec::new();
        for rule in self.rules.values().filter(|r| r.state != "DISABLED" && r.pattern.matches(envelope)) {
            for target in rule.targets.values() {
                let retry = target.retry_policy.as_ref();
                out.push(Delivery {
                    rule_arn: rule.arn.clone(),
                    target_arn: target.arn.clone(),
                    role_arn: target.role_arn.clone(),
                    dead_letter_arn: target.dead_letter_config.as_ref().and_then(|d| d.arn.clone()),
                    max_attempts: retry.and_then(|r| r.maximum_retry_attempts).unwrap_or(MAX_ATTEMPTS),
                    max_age: Duration::from_secs(retry.and_then(|r| r.maximum_event_age_in_seconds).unwrap_or(MAX_AGE)),
                    body: target.input.clone().unwrap_or_else(|| text.clone()),
                    attempt: 0,
                    since: now,
                });
            }
        }
        out
    }
}

fn view(name: &str, rule: &Rule) -> Value {
    let mut view = json!({
        "Name": name, "Arn": rule.arn, "EventPattern": rule.pattern_text, "State": rule.state, "EventBusName": "default",
    });
    for (member, value) in [("Description", &rule.description), ("RoleArn", &rule.role_arn)] {
        if let Some(value) = value {
            view[member] = value.clone().into();
        }
    }
    view
}

fn page(key: &str, items: Vec<Value>, request: &BusInput) -> ApiResult {
    let from: usize = match &request.next_token {
        None => 0,
        Some(token) => token.parse().map_err(|_| validation("Invalid NextToken."))?,
    };
    let size = request.limit.unwrap_or(100).clamp(1, 100);
    let total = items.len();
    let mut answer = json!({ key: items.into_iter().skip(from).take(size).collect::<Vec<_>>() });
    if from.saturating_add(size) < total {
        answer["NextToken"] = (from + size).to_string().into();
    }
    Ok(answer)
}

fn put_events(ctx: &mut Ctx<'_>, request: BusInput) -> ApiResult {
    if request.entries.is_empty() || request.entries.len() > 10 {
        return Err(validation("Entries must have 1 to 10 items."));
    }
    let mut results = Vec::new();
    let mut failed = 0;
    for entry in request.entries {
        let detail = entry.detail.as_deref().map(serde_json::from_str::<Value>);
        let refused = match (&entry.source, &entry.detail_type, &detail) {
            (None, ..) => {
                Some(("InvalidArgument", "Parameter Source is not valid. Reason: Source is a required argument."))
            }
            (Some(source), ..) if source.starts_with("aws.") => {
                Some(("NotAuthorizedForSourceException", "Not authorized for the source."))
            }
            (_, None, _) => Some((
                "InvalidArgument",
                "Parameter DetailType is not valid. Reason: DetailType is a required argument.",
            )),
            (_, _, None) => {
                Some(("InvalidArgument", "Parameter Detail is not valid. Reason: Detail is a required argument."))
            }
            (_, _, Some(Ok(Value::Object(_)))) => None,
            _ => Some(("MalformedDetail", "Detail is malformed.")),
        };
        let other_bus =
            entry.event_bus_name.as_deref().is_some_and(|bus| bus != "default" && !bus.ends_with(":event-bus/default"));
        match (refused, detail) {
            (None, Some(Ok(detail))) if !other_bus => {
                results.push(json!({"EventId": ctx.uuid()}));
                ctx.effects.push(Effect::Emit(Event {
                    source: entry.source.unwrap_or_default(),
                    detail_type: entry.detail_type.unwrap_or_default(),
                    resources: entry.resources,
                    detail,
                }));
            }
            (refused, _) => {
                failed += 1;
                let (code, message) = refused.unwrap_or(("ResourceNotFoundException", "Event bus does not exist."));
                results.push(json!({"ErrorCode": code, "ErrorMessage": message}));
            }
        }
    }
    Ok(json!({"FailedEntryCount": failed, "Entries": results}))
}
