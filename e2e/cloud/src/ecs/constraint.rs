//! The part of ECS's cluster query language that placement constraints use.
//!
//! `attribute:name == v`, `!=`, `exists`, `!exists`, `in [a, b]`, `not_in [a, b]`, `=~ pattern` (prefix match with `.*`),
//! `ec2InstanceId` in place of an attribute, joined by `and`/`&&`, `or`/`||`, `not`/`!`, parentheses.

use super::Instance;
use crate::error::{ApiError, ApiResult};

/// A parsed expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// Both hold.
    And(Box<Expression>, Box<Expression>),
    /// One holds.
    Or(Box<Expression>, Box<Expression>),
    /// It does not hold.
    Not(Box<Expression>),
    /// The subject is there.
    Exists(String),
    /// The subject has one of these values.
    In(String, Vec<String>),
    /// The subject's value begins with this.
    Prefix(String, String),
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// `InvalidParameterException` that names the place.
    pub fn parse(text: &str) -> ApiResult<Self> {
        let tokens = tokens(text);
        let mut parser = Parser { tokens: &tokens, at: 0, text, depth: 0 };
        let expression = parser.or()?;
        match parser.tokens.get(parser.at) {
            None => Ok(expression),
            Some(token) => Err(parser.error(&format!("unexpected '{token}'"))),
        }
    }

    /// True when the instance satisfies it.
    pub fn holds(&self, instance: &Instance) -> bool {
        match self {
            Self::And(a, b) => a.holds(instance) && b.holds(instance),
            Self::Or(a, b) => a.holds(instance) || b.holds(instance),
            Self::Not(inner) => !inner.holds(instance),
            Self::Exists(subject) => value(instance, subject).is_some(),
            Self::In(subject, values) => value(instance, subject).is_some_and(|v| values.iter().any(|w| w == v)),
            Self::Prefix(subject, prefix) => value(instance, subject).is_some_and(|v| v.starts_with(prefix.as_str())),
        }
    }
}

fn value<'a>(instance: &'a Instance, subject: &str) -> Option<&'a str> {
    match subject.strip_prefix("attribute:") {
        Some(name) => instance.attributes.get(name).map(|v| v.as_deref().unwrap_or_default()),
        None => (subject == "ec2InstanceId").then_some(instance.ec2_instance_id.as_str()),
    }
}

fn tokens(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let symbol =
            ["==", "!=", "=~", "!~", "&&", "||", "(", ")", "[", "]", ","].iter().find(|s| rest.starts_with(**s));
        let length = match symbol {
            Some(symbol) => symbol.len(),
            // `!exists` and a bare `!` are both written in the wild; the bang stands alone here.
            None if rest.starts_with('!') => 1,
            None => rest
                .find(|c: char| c.is_whitespace() || "()[],=!&|~".contains(c))
                .filter(|at| *at > 0)
                .unwrap_or_else(|| {
                    rest.chars().next().map_or(0, char::len_utf8).max(if rest.contains(char::is_whitespace) {
                        1
                    } else {
                        rest.len()
                    })
                }),
        };
        out.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    out
}

struct Parser<'a> {
    tokens: &'a [String],
    at: usize,
    text: &'a str,
    depth: usize,
}

/// Nesting of parentheses and negations; an expression from outside must not exhaust the stack.
const MAX_DEPTH: usize = 32;

impl Parser<'_> {
    fn error(&self, what: &str) -> ApiError {
        ApiError::invalid(format!("Invalid expression '{}': {what}.", self.text))
    }

    fn take(&mut self, options: &[&str]) -> bool {
        let found = self.tokens.get(self.at).is_some_and(|t| options.iter().any(|o| t.eq_ignore_ascii_case(o)));
        self.at += usize::from(found);
        found
    }

    fn word(&mut self) -> ApiResult<String> {
        let token = self.tokens.get(self.at).ok_or_else(|| self.error("unexpected end"))?.clone();
        self.at += 1;
        Ok(token)
    }

    fn or(&mut self) -> ApiResult<Expression> {
        let mut left = self.and()?;
        while self.take(&["or", "||"]) {
            left = Expression::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> ApiResult<Expression> {
        let mut left = self.term()?;
        while self.take(&["and", "&&"]) {
            left = Expression::And(Box::new(left), Box::new(self.term()?));
        }
        Ok(left)
    }

    fn term(&mut self) -> ApiResult<Expression> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("nested too deeply"));
        }
        let expression = if self.take(&["not", "!"]) {
            Expression::Not(Box::new(self.term()?))
        } else if self.take(&["("]) {
            let inner = self.or()?;
            if !self.take(&[")"]) {
                return Err(self.error("expected ')'"));
            }
            inner
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(expression)
    }

    fn comparison(&mut self) -> ApiResult<Expression> {
        let subject = self.word()?;
        if !subject.starts_with("attribute:") && subject != "ec2InstanceId" {
            return Err(self.error(&format!("unknown subject '{subject}'")));
        }
        let negated = |no: bool, e: Expression| if no { Expression::Not(Box::new(e)) } else { e };
        let operator = self.word()?;
        match operator.as_str() {
            "exists" => Ok(Expression::Exists(subject)),
            "!" if self.take(&["exists"]) => Ok(Expression::Not(Box::new(Expression::Exists(subject)))),
            "not_exists" => Ok(Expression::Not(Box::new(Expression::Exists(subject)))),
            "==" | "equals" => Ok(Expression::In(subject, vec![self.word()?])),
            "!=" | "not_equals" => Ok(negated(true, Expression::In(subject, vec![self.word()?]))),
            "in" | "not_in" => Ok(negated(operator == "not_in", Expression::In(subject, self.list()?))),
            "!" if self.take(&["in"]) => Ok(negated(true, Expression::In(subject, self.list()?))),
            "=~" | "matches" | "!~" | "not_matches" => {
                let pattern = self.word()?;
                let no = operator == "!~" || operator == "not_matches";
                Ok(match pattern.strip_suffix(".*").or_else(|| pattern.strip_suffix('*')) {
                    Some(prefix) => negated(no, Expression::Prefix(subject, prefix.to_owned())),
                    None => negated(no, Expression::In(subject, vec![pattern])),
                })
            }
            other => Err(self.error(&format!("unknown operator '{other}'"))),
        }
    }

    fn list(&mut self) -> ApiResult<Vec<String>> {
        if !self.take(&["["]) {
            return Err(self.error("expected '['"));
        }
        let mut values = Vec::new();
        while !self.take(&["]"]) {
            values.push(self.word()?);
            self.take(&[","]);
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ecs::InstanceOptions;

    fn instance(attributes: &[(&str, &str)]) -> Instance {
        let mut instance = Instance::for_test(InstanceOptions::default());
        for (name, value) in attributes {
            instance.attributes.insert((*name).into(), Some((*value).into()));
        }
        instance
    }

    #[test]
    fn the_forms_in_use_are_understood() {
        let node = instance(&[("tasuki.next", "1"), ("ecs.instance-type", "t3.large")]);
        let table = [
            ("attribute:tasuki.hold !exists", true),
            ("attribute:tasuki.next exists", true),
            ("attribute:ecs.os-type == linux", true),
            ("attribute:ecs.os-type==linux and attribute:tasuki.hold !exists", true),
            ("attribute:ecs.os-type != linux or attribute:tasuki.next exists", true),
            ("not (attribute:tasuki.next exists)", false),
            ("attribute:ecs.instance-type in [t3.small, t3.large]", true),
            ("attribute:ecs.instance-type not_in [t3.small, t3.large]", false),
            ("attribute:ecs.instance-type =~ t3.*", true),
            ("ec2InstanceId == i-none", false),
        ];
        for (text, expected) in table {
            assert_eq!(Expression::parse(text).unwrap().holds(&node), expected, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_and_never_panics() {
        for text in
            ["", "attribute:x", "x == y", "attribute:a == b)", "(attribute:a exists", "attribute:a in x", "!", "é ü"]
        {
            assert!(Expression::parse(text).is_err(), "{text}");
        }
        assert!(Expression::parse(&"!".repeat(100_000)).is_err());
    }
}
