//! From facts to matches: a policy compiles to an [`Engine`]; an engine judges facts.
//!
//! All finding types, built in and the user's, are Sigma rules over facts. Rules are kept per
//! event class, so an event meets only the rules of its class; fork and exit meet none.

pub mod dns;
pub mod facts;
pub mod indicators;
mod rules;
pub mod types;
pub mod types_page;

pub use facts::{Fact, Facts};
pub use rules::{Rule, RuleError, Scope};

use crate::event::{Event, EventKind};
use indicators::Indicators;
use rsigma_eval::{CorrelationEngine, EvaluationResult};
use rules::Source;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tasuki_api::agent::{FamilyState, Policy, Unavailable};
use tasuki_api::desired::Response;

/// What kind of event a rule is about; `logsource.category` of Sigma.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// `process_creation`.
    Process,
    /// `network_connection`.
    Network,
    /// `network_listen`: ours, Sigma has none.
    Listen,
    /// `dns_query`.
    Dns,
    /// `file_event`.
    File,
    /// `credentials_change`: ours, Sigma has none.
    Credentials,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 6] = [Self::Process, Self::Network, Self::Listen, Self::Dns, Self::File, Self::Credentials];

    /// Sigma's name for it.
    pub const fn category(self) -> &'static str {
        match self {
            Self::Process => "process_creation",
            Self::Network => "network_connection",
            Self::Listen => "network_listen",
            Self::Dns => "dns_query",
            Self::File => "file_event",
            Self::Credentials => "credentials_change",
        }
    }

    /// The sensors' name for the events that it needs.
    pub const fn family(self) -> &'static str {
        match self {
            Self::Process => "exec",
            Self::Credentials => "credentials",
            Self::Network => "connect",
            Self::Listen => "listen",
            Self::Dns => "dns",
            Self::File => "file",
        }
    }

    /// The class of an event; `None` for events that only change what is known.
    pub const fn of(event: &Event) -> Option<Self> {
        match event.kind {
            EventKind::Exec(_) => Some(Self::Process),
            EventKind::Connect(_) | EventKind::Accept(_) => Some(Self::Network),
            EventKind::Listen { .. } => Some(Self::Listen),
            EventKind::Dns(_) => Some(Self::Dns),
            EventKind::File(_) => Some(Self::File),
            EventKind::Credentials { .. } => Some(Self::Credentials),
            EventKind::Existing(_) | EventKind::Fork { .. } | EventKind::Exit { .. } => None,
        }
    }
}

/// A rule that matched, with the facts it tested.
#[derive(Clone, Debug)]
pub struct Match {
    /// The rule.
    pub rule: Arc<Rule>,
    /// Fact name to value.
    pub evidence: BTreeMap<String, serde_json::Value>,
}

/// A rule and its document.
type Prepared = (rsigma_parser::SigmaRule, Arc<Rule>);

#[derive(Default)]
struct ClassRules {
    engine: rsigma_eval::Engine,
    /// Only the rules that test a hash, judged again when the hash is known.
    hash_engine: rsigma_eval::Engine,
    rules: HashMap<String, Arc<Rule>>,
    /// Some rule applies outside containers.
    hosts: bool,
}

/// A policy, compiled.
#[derive(Default)]
pub struct Engine {
    classes: HashMap<Class, ClassRules>,
    correlations: Option<Mutex<CorrelationEngine>>,
    correlation_rules: HashMap<String, Arc<Rule>>,
    indicators: Indicators,
    responses: BTreeMap<String, Response>,
    problems: Vec<Unavailable>,
    serial: u64,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("serial", &self.serial).field("rules", &self.rules().len()).finish()
    }
}

impl Engine {
    /// Compiles a policy. A rule or list of the user's that cannot be used is left out and named
    /// in [`Engine::problems`]: one bad rule must not blind the others.
    ///
    /// # Errors
    /// When a built-in rule cannot be compiled, which a test excludes.
    pub fn compile(policy: &Policy) -> Result<Self, RuleError> {
        let (indicators, list_problems) = Indicators::compile(&policy.lists);
        let mut engine =
            Self { indicators, responses: policy.response.clone(), serial: policy.serial, ..Self::default() };
        for reason in list_problems {
            engine.problems.push(Unavailable { kind: "ThreatList".to_owned(), reason });
        }
        let mut sigma = Vec::new();
        for (file, text) in rules::BUILT_IN {
            engine.add(rules::load(text, &Source::BuiltIn(file))?, policy, &mut sigma)?;
        }
        for (number, custom) in policy.custom.iter().enumerate() {
            let added = rules::load(&custom.sigma, &Source::Custom { number, spec: custom })
                .and_then(|loaded| engine.add(loaded, policy, &mut sigma));
            if let Err(error) = added {
                engine.problems.push(Unavailable { kind: custom.finding.kind.clone(), reason: error.to_string() });
            }
        }
        engine.build(&sigma)?;
        Ok(engine)
    }

    fn add(&mut self, loaded: rules::Loaded, policy: &Policy, all: &mut Vec<Prepared>) -> Result<(), RuleError> {
        let mut prepared = Vec::new();
        let correlated = !loaded.correlations.is_empty();
        for (mut sigma, mut rule) in loaded.rules {
            if policy.rules.disable.contains(&rule.kind) {
                continue;
            }
            if let Some(severity) = policy.rules.severity.get(&rule.kind) {
                rule.severity = *severity;
            }
            if !correlated {
                sigma.id = Some(rule.key.clone());
            }
            if rule.custom {
                // Apart from the rest: a rule that cannot be used leaves nothing behind.
                rules::try_compile(&sigma, &rule)?;
            }
            prepared.push((sigma, Arc::new(rule)));
        }
        if correlated {
            return self.add_correlations(prepared, &loaded.correlations, policy);
        }
        all.extend(prepared);
        Ok(())
    }

    /// Adds all rules of a class at once: the engine indexes them again after each addition.
    fn build(&mut self, all: &[Prepared]) -> Result<(), RuleError> {
        for class in Class::ALL {
            let of_class = || all.iter().filter(|(_, rule)| rule.class == class);
            if of_class().next().is_none() {
                continue;
            }
            let rules = self.classes.entry(class).or_default();
            let refused = rules.engine.add_rules(of_class().map(|(sigma, _)| sigma));
            if let Some((index, source)) = refused.first() {
                let title = of_class().nth(*index).map_or_else(String::new, |(_, rule)| rule.title.clone());
                return Err(RuleError::Unusable { rule: title, reason: source.to_string() });
            }
            // Each was added above, so none is refused here.
            rules.hash_engine.add_rules(of_class().filter(|(_, rule)| rule.needs_hash).map(|(sigma, _)| sigma));
            rules.hosts = of_class().any(|(_, rule)| rule.scope != Scope::Container);
            rules.rules.extend(of_class().map(|(_, rule)| (rule.key.clone(), rule.clone())));
        }
        Ok(())
    }

    fn add_correlations(
        &mut self,
        prepared: Vec<Prepared>,
        correlations: &[(rsigma_parser::CorrelationRule, Rule)],
        policy: &Policy,
    ) -> Result<(), RuleError> {
        let collection = rsigma_parser::SigmaCollection {
            rules: prepared.iter().map(|(sigma, _)| sigma.clone()).collect(),
            correlations: correlations.iter().map(|(sigma, _)| sigma.clone()).collect(),
            ..rsigma_parser::SigmaCollection::default()
        };
        rules::guarded(|| rules::correlation_engine().add_collection(&collection))
            .map_err(|reason| RuleError::Unusable { rule: "correlation".to_owned(), reason })?;
        let engine = self.correlations.get_or_insert_with(|| Mutex::new(rules::correlation_engine()));
        let engine = engine.get_mut().unwrap_or_else(PoisonError::into_inner);
        let added = engine.add_collection(&collection);
        added.map_err(|source| RuleError::Unusable { rule: "correlation".to_owned(), reason: source.to_string() })?;
        for (_, rule) in correlations {
            let mut rule = rule.clone();
            if let Some(severity) = policy.rules.severity.get(&rule.kind) {
                rule.severity = *severity;
            }
            self.correlation_rules.insert(rule.key.clone(), Arc::new(rule));
        }
        Ok(())
    }

    /// Whether events of a class can match anything, in or outside containers.
    pub fn wants(&self, class: Class, in_container: bool) -> bool {
        self.correlations.is_some() || self.classes.get(&class).is_some_and(|rules| in_container || rules.hosts)
    }

    /// Judges the facts of one event at `time` (seconds). A type is reported once, by its severest
    /// rule.
    pub fn judge(&self, class: Class, facts: &Facts<'_>, time: i64) -> Vec<Match> {
        let mut matches = Vec::new();
        if let Some(rules) = self.classes.get(&class) {
            collect(&rules.engine.evaluate(facts), &rules.rules, facts, &mut matches);
        }
        if let Some(correlations) = &self.correlations {
            let mut engine = correlations.lock().unwrap_or_else(PoisonError::into_inner);
            let results = engine.process_event_at(facts, time);
            collect(&results, &self.correlation_rules, facts, &mut matches);
        }
        matches.sort_by(|a, b| (b.rule.severity, &a.rule.key).cmp(&(a.rule.severity, &b.rule.key)));
        let mut seen = Vec::new();
        matches.retain(|one| {
            let new = !seen.contains(&one.rule.kind);
            seen.push(one.rule.kind.clone());
            new
        });
        matches
    }

    /// Judges an exec again, now that its program's hash is known, by the rules that test hashes.
    pub fn judge_hash(&self, facts: &Facts<'_>) -> Vec<Match> {
        let mut matches = Vec::new();
        if let Some(rules) = self.classes.get(&Class::Process) {
            collect(&rules.hash_engine.evaluate(facts), &rules.rules, facts, &mut matches);
        }
        matches
    }

    /// Whether executables must be hashed although nothing was found yet.
    pub fn needs_hashes(&self) -> bool {
        let custom = |rule: &&Arc<Rule>| rule.needs_hash && rule.custom;
        self.indicators.has_hashes() || self.rules().iter().any(custom)
    }

    /// The lists.
    pub fn indicators(&self) -> &Indicators {
        &self.indicators
    }

    /// What the policy asks for when this rule matches.
    pub fn response(&self, rule: &Rule) -> Response {
        self.responses.get(&rule.kind).copied().unwrap_or(rule.response)
    }

    /// Every rule in force, by finding type.
    pub fn rules(&self) -> Vec<&Arc<Rule>> {
        let mut all: Vec<&Arc<Rule>> = self
            .classes
            .values()
            .flat_map(|class| class.rules.values())
            .chain(self.correlation_rules.values())
            .collect();
        all.sort_by(|a, b| (&a.kind, &a.key).cmp(&(&b.kind, &b.key)));
        all
    }

    /// Event families that the rules in force need; a sensor may leave the others out.
    pub fn families(&self) -> Vec<&'static str> {
        let mut families: Vec<&str> = self.classes.keys().map(|class| class.family()).collect();
        // Names of processes and of addresses come from these whatever the rules ask.
        families.extend(["exec", "fork", "exit", "dns"]);
        families.sort_unstable();
        families.dedup();
        families
    }

    /// The policy's serial number.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Rules and lists of the user's that are not in force, and why.
    pub fn problems(&self) -> &[Unavailable] {
        &self.problems
    }

    /// Finding types that cannot be seen with these event families, and why, with the user's
    /// rules that are broken or wait for events that nothing gives.
    pub fn unavailable(&self, families: &[FamilyState]) -> Vec<Unavailable> {
        let mut out = types::unavailable(families);
        out.extend(self.problems.iter().cloned());
        let custom = self.classes.values().flat_map(|class| class.rules.values()).filter(|rule| rule.custom);
        let mut deaf: Vec<_> = custom
            .filter_map(|rule| {
                Some(Unavailable {
                    kind: rule.kind.clone(),
                    reason: format!("rule {}: {}", rule.title, types::absent(rule.class.family(), families)?),
                })
            })
            .collect();
        deaf.sort_by(|a, b| (&a.kind, &a.reason).cmp(&(&b.kind, &b.reason)));
        out.extend(deaf);
        out
    }
}

fn collect(
    results: &[EvaluationResult],
    rules: &HashMap<String, Arc<Rule>>,
    facts: &Facts<'_>,
    matches: &mut Vec<Match>,
) {
    let in_container = facts.flag(Fact::ContainerPresent);
    for result in results {
        let Some(rule) = result.header.rule_id.as_ref().and_then(|id| rules.get(id)) else { continue };
        let applies = match rule.scope {
            Scope::Container => in_container,
            Scope::Host => !in_container,
            Scope::Any => true,
        };
        if applies {
            let fields = result.as_detection().map_or(&[][..], |body| &body.matched_fields);
            let named = fields.iter().filter_map(|field| {
                let name = facts::by_name(&field.field).map(|fact| facts::info(fact).name)?;
                Some((name.to_owned(), capped(field.value.clone())))
            });
            matches.push(Match { rule: rule.clone(), evidence: named.collect() });
        }
    }
}

/// Evidence is text that an attacker chose the length of.
fn capped(value: serde_json::Value) -> serde_json::Value {
    const MAX: usize = 1_024;
    match value {
        serde_json::Value::String(text) if text.len() > MAX => crate::process::table::cut(&text, MAX).into(),
        serde_json::Value::Array(mut values) => {
            values.truncate(32);
            values.into_iter().map(capped).collect()
        }
        other => other,
    }
}

/// The engine in force, swapped while events flow.
#[derive(Debug, Clone, Default)]
pub struct EngineCell(Arc<RwLock<Arc<Engine>>>);

impl EngineCell {
    /// A cell with a first engine.
    pub fn new(engine: Engine) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(engine))))
    }

    /// The engine in force.
    pub fn load(&self) -> Arc<Engine> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another engine in force from the next event on; none is missed.
    pub fn swap(&self, engine: Engine) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(engine);
    }
}
