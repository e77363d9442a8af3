//! Loading Sigma documents: the built-in ones of agent/rules and the user's.

use super::{Class, facts};
use rsigma_eval::{CorrelationConfig, CorrelationEngine, LogSourceExtractor, RuleFieldSet, TimestampFallback};
use rsigma_parser::{CorrelationRule, Level, LogSource, SigmaCollection, SigmaRule};
use serde::Deserialize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tasuki_api::desired::{DetectionRuleSpec, Response};
use tasuki_api::finding::Severity;

macro_rules! built_in {
    ($($file:literal),+ $(,)?) => {
        /// Every file of agent/rules.
        pub(super) const BUILT_IN: &[(&str, &str)] =
            &[$(($file, include_str!(concat!("../../rules/", $file)))),+];
    };
}

built_in! {
    "crypto_miner.yaml", "listed_network.yaml", "listed_dns.yaml", "metadata_rebind.yaml", "reverse_shell.yaml",
    "new_binary.yaml", "fileless.yaml", "suspicious_tool.yaml", "execution_command.yaml",
    "discovery_command.yaml", "persistence_command.yaml", "privilege_command.yaml", "evasion_command.yaml",
    "service_shell.yaml", "malicious_file.yaml", "sensitive_file.yaml", "elevation.yaml", "runc_escape.yaml",
}

/// Bytes of Sigma text that one source may have.
const MAX_TEXT: usize = 256 << 10;
/// Rules that one source may have.
const MAX_RULES: usize = 500;

/// Where a rule applies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// To processes in containers.
    #[default]
    Container,
    /// To processes outside.
    Host,
    /// To both.
    Any,
}

/// A rule, without its conditions.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Unique within an engine.
    pub(super) key: String,
    /// Sigma id, or a name made from the source.
    pub id: String,
    /// Sigma title.
    pub title: String,
    /// Finding type that a match becomes.
    pub kind: String,
    /// Severity of that finding.
    pub severity: Severity,
    /// Event class.
    pub class: Class,
    /// Where it applies.
    pub scope: Scope,
    /// Sigma tags.
    pub tags: Vec<String>,
    /// References.
    pub references: Vec<String>,
    /// Known benign causes.
    pub false_positives: Vec<String>,
    /// What to check next.
    pub next: Vec<String>,
    /// What the rule's own document asks for.
    pub response: Response,
    /// It tests a hash.
    pub needs_hash: bool,
    /// It is the user's.
    pub custom: bool,
}

/// Why Sigma text cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// The text is not what Sigma documents look like.
    #[error("{origin}: {reason}")]
    Text {
        /// File or custom rule.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// A rule cannot be used.
    #[error("rule {rule:?}: {reason}")]
    Unusable {
        /// Title.
        rule: String,
        /// What is wrong.
        reason: String,
    },
}

/// Where Sigma text comes from.
pub(super) enum Source<'a> {
    BuiltIn(&'static str),
    Custom { number: usize, spec: &'a DetectionRuleSpec },
}

impl Source<'_> {
    fn origin(&self) -> String {
        match self {
            Self::BuiltIn(file) => (*file).to_owned(),
            Self::Custom { spec, .. } => format!("DetectionRule for {}", spec.finding.kind),
        }
    }
}

/// Rules ready to be added to an engine.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) rules: Vec<(SigmaRule, Rule)>,
    pub(super) correlations: Vec<(CorrelationRule, Rule)>,
}

/// The `tasuki:` member of a built-in rule.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Member {
    r#type: Option<String>,
    scope: Scope,
    next: Vec<String>,
}

/// Runs code of others on text of others; a panic there is an error here.
pub(super) fn guarded<T, E: std::fmt::Display>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the Sigma library gave up on it; simplify the rule".to_owned()),
    }
}

pub(super) fn load(text: &str, source: &Source<'_>) -> Result<Loaded, RuleError> {
    let bad = |reason: String| RuleError::Text { origin: source.origin(), reason };
    if text.len() > MAX_TEXT {
        return Err(bad(format!("more than {MAX_TEXT} bytes of Sigma text")));
    }
    let collection: SigmaCollection = guarded(|| rsigma_parser::parse_sigma_yaml(text)).map_err(bad)?;
    if let Some(first) = collection.errors.first() {
        return Err(bad(first.clone()));
    }
    if !collection.filters.is_empty() {
        return Err(bad("Sigma filters are not supported; put the exception into the rule".to_owned()));
    }
    if collection.rules.is_empty() {
        return Err(bad("no Sigma rule in it".to_owned()));
    }
    if collection.rules.len() + collection.correlations.len() > MAX_RULES {
        return Err(bad(format!("more than {MAX_RULES} rules")));
    }
    let mut loaded = Loaded::default();
    for (index, sigma) in collection.rules.iter().enumerate() {
        let rule = describe(sigma, source, index)?;
        loaded.rules.push((sigma.clone(), rule));
    }
    for (index, sigma) in collection.correlations.iter().enumerate() {
        let Source::Custom { number, spec } = source else {
            return Err(bad("correlations are for the user's rules".to_owned()));
        };
        let key = sigma.id.clone().unwrap_or_else(|| sigma.title.clone());
        let mut sigma = sigma.clone();
        sigma.id = Some(key.clone());
        let severity = spec.finding.severity.unwrap_or_else(|| severity(sigma.level));
        let rule = Rule {
            id: sigma.id.clone().unwrap_or_else(|| format!("custom-{number}-{index}")),
            key,
            title: sigma.title.clone(),
            kind: spec.finding.kind.clone(),
            severity,
            class: Class::Process,
            scope: Scope::Any,
            tags: sigma.tags.clone(),
            references: sigma.references.clone(),
            false_positives: sigma.falsepositives.clone(),
            next: Vec::new(),
            response: spec.response,
            needs_hash: false,
            custom: true,
        };
        loaded.correlations.push((sigma, rule));
    }
    Ok(loaded)
}

fn describe(sigma: &SigmaRule, source: &Source<'_>, index: usize) -> Result<Rule, RuleError> {
    let unusable = |reason: String| RuleError::Unusable { rule: sigma.title.clone(), reason };
    let class = class_of(&sigma.logsource).map_err(unusable)?;
    let mut single = SigmaCollection::default();
    single.rules.push(sigma.clone());
    let mut needs_hash = false;
    for (name, origin) in RuleFieldSet::collect(&single, &[], false).iter() {
        let tested = origin.sources.contains(&rsigma_eval::FieldSource::Detection);
        match facts::by_name(name) {
            Some(fact) => {
                needs_hash |=
                    matches!(fact, facts::Fact::Sha256 | facts::Fact::Sha256Listed | facts::Fact::Sha256Category);
            }
            None if tested => {
                return Err(unusable(format!("{name:?} is no fact; `tasuki-agent rules facts` lists them")));
            }
            None => {}
        }
    }
    let member: Member = match sigma.custom_attributes.get("tasuki") {
        Some(value) => serde_yaml::from_value(value.clone()).map_err(|error| unusable(format!("tasuki: {error}")))?,
        None => Member::default(),
    };
    let sigma_severity = severity(sigma.level);
    let (key, kind, severity, response, custom) = match source {
        Source::BuiltIn(_) => {
            let id = sigma.id.clone().ok_or_else(|| unusable("id is missing".to_owned()))?;
            let kind = member.r#type.ok_or_else(|| unusable("tasuki.type is missing".to_owned()))?;
            (id, kind, sigma_severity, Response::Alert, false)
        }
        Source::Custom { number, spec } => {
            let severity = spec.finding.severity.unwrap_or(sigma_severity);
            (format!("custom-{number}-{index}"), spec.finding.kind.clone(), severity, spec.response, true)
        }
    };
    Ok(Rule {
        id: sigma.id.clone().unwrap_or_else(|| key.clone()),
        key,
        title: sigma.title.clone(),
        kind,
        severity,
        class,
        scope: member.scope,
        tags: sigma.tags.clone(),
        references: sigma.references.clone(),
        false_positives: sigma.falsepositives.clone(),
        next: member.next,
        response,
        needs_hash,
        custom,
    })
}

fn class_of(source: &LogSource) -> Result<Class, String> {
    if let Some(product) = source.product.as_deref().filter(|product| *product != "linux") {
        return Err(format!("logsource.product {product:?} is not watched, only linux is"));
    }
    let known = || Class::ALL.map(Class::category).join(", ");
    match source.category.as_deref() {
        Some(name) => Class::ALL
            .into_iter()
            .find(|class| class.category() == name)
            .ok_or_else(|| format!("logsource.category {name:?} is not watched; watched are {}", known())),
        None => Err(format!("logsource.category is missing; it is one of {}", known())),
    }
}

fn severity(level: Option<Level>) -> Severity {
    match level {
        Some(Level::Informational | Level::Low) => Severity::Low,
        Some(Level::Medium) | None => Severity::Medium,
        Some(Level::High) => Severity::High,
        Some(Level::Critical) => Severity::Critical,
    }
}

/// Compiles one rule alone: bad regular expressions and unknown selections show only here.
pub(super) fn try_compile(sigma: &SigmaRule, rule: &Rule) -> Result<(), RuleError> {
    guarded(|| rsigma_eval::Engine::new().add_rule(sigma))
        .map_err(|reason| RuleError::Unusable { rule: rule.title.clone(), reason })
}

/// An engine for correlations: bounded, and with the event's time only.
pub(super) fn correlation_engine() -> CorrelationEngine {
    let config = CorrelationConfig {
        timestamp_fallback: TimestampFallback::Skip,
        max_state_entries: 10_000,
        max_group_entries: Some(1_000),
        suppress: Some(60),
        emit_detections: false,
        ..CorrelationConfig::default()
    };
    let mut engine = CorrelationEngine::new(config);
    engine.set_logsource_extractor(Some(LogSourceExtractor::new()));
    engine
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tasuki_api::desired::RuleFinding;

    fn custom(sigma: &str) -> DetectionRuleSpec {
        let finding = RuleFinding { kind: "Custom:Runtime/Test".into(), severity: None };
        DetectionRuleSpec { sigma: sigma.into(), finding, response: Response::Alert }
    }

    fn load_custom(sigma: &str) -> Result<Loaded, RuleError> {
        let spec = custom(sigma);
        load(&spec.sigma, &Source::Custom { number: 0, spec: &spec })
    }

    #[test]
    fn every_built_in_rule_is_whole() {
        let mut ids = std::collections::HashSet::new();
        for (file, text) in BUILT_IN {
            let loaded = load(text, &Source::BuiltIn(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            for (sigma, rule) in loaded.rules {
                try_compile(&sigma, &rule).unwrap();
                assert!(ids.insert(rule.id.clone()), "{file}: id {} stands twice", rule.id);
                assert!(super::super::types::find(&rule.kind).is_some(), "{file}: {} is no known type", rule.kind);
                assert!(!rule.references.is_empty(), "{file}: {} has no references", rule.title);
                assert!(!rule.false_positives.is_empty(), "{file}: {} has no falsepositives", rule.title);
                assert!(!rule.next.is_empty(), "{file}: {} says nothing to check next", rule.title);
                assert!(rule.tags.iter().any(|tag| tag.starts_with("attack.")), "{file}: {} has no tags", rule.title);
                assert!(sigma.level.is_some() && sigma.description.is_some(), "{file}: {}", rule.title);
            }
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_cause() {
        let base = "title: t\nlogsource: {product: linux, category: process_creation}\ndetection:\n  s: {Image: x}\n  condition: s\n";
        assert!(load_custom(base).is_ok());
        for (from, to, cause) in [
            ("process_creation", "registry_set", "is not watched; watched are"),
            ("linux", "windows", "only linux"),
            ("Image", "Imgae", "is no fact"),
            ("title: t", "title: [", "YAML"),
        ] {
            let error = load_custom(&base.replace(from, to)).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(cause), "{error}");
        }
        for text in ["", "just text", "- a\n- b", "{}", &"a".repeat(MAX_TEXT + 1)] {
            assert!(load_custom(text).is_err());
        }
        let loaded = load_custom(&base.replace("{Image: x}", "{Image|re: '(('}")).unwrap();
        let (sigma, rule) = &loaded.rules[0];
        assert!(try_compile(sigma, rule).is_err());
    }

    #[test]
    fn a_bomb_of_aliases_is_an_error_or_small() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let below = format!("*a{}, ", level - 1).repeat(9);
            text.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        assert!(load_custom(&text).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn hostile_text_gives_an_error_or_rules_and_never_a_panic(text in "[ -~\n]{0,400}") {
            let _ = load_custom(&text);
        }

        #[test]
        fn a_mutated_rule_gives_an_error_or_rules_and_never_a_panic(at in 0_usize..400, byte in "[ -~\n]", cut in 0_usize..900) {
            let mut text = BUILT_IN[0].1.to_owned();
            if text.is_char_boundary(at) && text.is_char_boundary(at + 1) { text.replace_range(at..at + 1, &byte); }
            text.truncate(text.floor_char_boundary(text.len().saturating_sub(cut)));
            if let Ok(loaded) = load_custom(&text) {
                for (sigma, rule) in &loaded.rules { let _ = try_compile(sigma, rule); }
            }
        }
    }
}
