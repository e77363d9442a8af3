//! The part of a queue policy that decides whether EventBridge may send.

use serde_json::Value;

/// Who wants to send, and on whose behalf.
#[derive(Debug)]
pub struct Sender<'a> {
    /// `events.amazonaws.com`, when no role is taken.
    pub service: Option<&'a str>,
    /// Role ARN that the rule's target names.
    pub role_arn: Option<&'a str>,
    /// ARN of the rule (`aws:SourceArn`).
    pub source_arn: &'a str,
    /// Account of the rule (`aws:SourceAccount`).
    pub account: &'a str,
}

/// True when a policy lets the sender send. Conditions on anything but the source ARN and account are taken as met when
/// they name `aws:PrincipalOrgID` (the whole cloud is one organization) and as unmet otherwise.
pub fn allows(policy: &str, sender: &Sender<'_>) -> bool {
    let Ok(policy) = serde_json::from_str::<Value>(policy) else { return false };
    let statements = many(policy.get("Statement"));
    let fits = |s: &&&Value| principal(s, sender) && action(s) && conditions(s, sender);
    let effect = |s: &Value| s.get("Effect").and_then(Value::as_str).unwrap_or_default().to_owned();
    let denied = statements.iter().filter(fits).any(|s| effect(s) == "Deny");
    !denied && statements.iter().filter(fits).any(|s| effect(s) == "Allow")
}

/// A policy member is one value or a list of them.
fn many(value: Option<&Value>) -> Vec<&Value> {
    match value {
        None => Vec::new(),
        Some(Value::Array(list)) => list.iter().collect(),
        Some(one) => vec![one],
    }
}

fn texts(value: Option<&Value>) -> Vec<&str> {
    many(value).into_iter().filter_map(Value::as_str).collect()
}

fn principal(statement: &Value, sender: &Sender<'_>) -> bool {
    let principal = statement.get("Principal");
    if principal.and_then(Value::as_str) == Some("*") {
        return true;
    }
    let services = texts(principal.and_then(|p| p.get("Service")));
    let accounts = texts(principal.and_then(|p| p.get("AWS")));
    let by_service = sender.service.is_some_and(|s| services.contains(&s));
    let by_role = sender.role_arn.is_some_and(|role| {
        let account = role.split(':').nth(4).unwrap_or_default();
        accounts.iter().any(|a| *a == role || *a == account || *a == format!("arn:aws:iam::{account}:root"))
    });
    by_service || by_role || accounts.contains(&"*")
}

fn action(statement: &Value) -> bool {
    texts(statement.get("Action")).iter().any(|a| {
        let a = a.to_ascii_lowercase();
        a == "*" || a == "sqs:*" || a == "sqs:sendmessage" || a == "sqs:send*"
    })
}

fn conditions(statement: &Value, sender: &Sender<'_>) -> bool {
    let operators = statement.get("Condition").and_then(Value::as_object).into_iter().flatten();
    operators.flat_map(|(op, keys)| keys.as_object().into_iter().flatten().map(move |(k, v)| (op, k, v))).all(
        |(operator, key, wanted)| {
            let actual = match key.to_ascii_lowercase().as_str() {
                "aws:sourcearn" => sender.source_arn,
                "aws:sourceaccount" => sender.account,
                "aws:principalorgid" => return true,
                _ => return false,
            };
            let like = operator.ends_with("Like");
            texts(Some(wanted)).iter().any(|pattern| if like { glob(pattern, actual) } else { *pattern == actual })
        },
    )
}

/// `*` for any text, `?` for one character, as IAM patterns have it.
pub fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eventbridge_needs_a_statement_of_its_own() {
        let rule = "arn:aws:events:eu-west-1:111122223333:rule/r";
        let sender =
            Sender { service: Some("events.amazonaws.com"), role_arn: None, source_arn: rule, account: "111122223333" };
        let policy = |arn: &str| {
            format!(
                r#"{{"Statement":{{"Effect":"Allow","Principal":{{"Service":"events.amazonaws.com"}},"Action":"sqs:SendMessage",
                "Resource":"*","Condition":{{"ArnEquals":{{"aws:SourceArn":"{arn}"}}}}}}}}"#
            )
        };
        assert!(allows(&policy(rule), &sender));
        assert!(!allows(&policy("arn:aws:events:eu-west-1:111122223333:rule/other"), &sender));
        assert!(!allows("", &sender));
        assert!(glob("arn:*:role/tasuki-*", "arn:aws:iam::1:role/tasuki-read") && !glob("a?c", "ac"));
    }
}
