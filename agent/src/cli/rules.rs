//! `tasuki-agent rules`.

use super::{Exit, run};
use crate::detect::{Engine, EngineCell, facts, types, types_page};
use crate::pipeline::Pipeline;
use crate::sensor::replay;
use crate::sensor::select::{self, Choice, SensorOptions};
use anyhow::Context;
use std::path::PathBuf;
use tasuki_api::coverage::Depth;
use tasuki_api::desired::{DetectionRuleSpec, Response, RuleFinding};
use tasuki_api::finding::{Agent, Finding};

pub(super) const EXAMPLES: &str = "\
Examples:
  tasuki-agent rules list
  tasuki-agent rules test --events events.jsonl my-rule.yaml
  tasuki-agent rules facts > facts.md";

#[derive(clap::Subcommand)]
pub(super) enum Rules {
    /// Try rules on a recording. Exit code 1 when something was found.
    #[command(after_help = "\
Examples:
  tasuki-agent rules test --events events.jsonl                 the built-in rules
  tasuki-agent rules test --events events.jsonl my-rule.yaml    and a Sigma document of yours
Record events with `tasuki-agent run --stdout --record events.jsonl`.")]
    Test(Test),
    /// List finding types, their rules, and what is missing for the others.
    #[command(after_help = "Example:\n  tasuki-agent rules list -o json")]
    List(List),
    /// Print the facts that rules can test, as Markdown.
    #[command(after_help = "Example:\n  tasuki-agent rules facts > docs/reference/facts.md")]
    Facts,
    /// Print the finding types, as Markdown.
    #[command(after_help = "Example:\n  tasuki-agent rules types > docs/reference/finding-types.md")]
    Types,
}

#[derive(clap::Args)]
pub(super) struct Test {
    /// Recording to try them on.
    #[arg(long, value_name = "FILE")]
    events: PathBuf,
    /// Policy whose rules and lists are in force beside them, as JSON or YAML.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Print findings as JSON lines.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    /// Sigma documents.
    #[arg(value_name = "RULES")]
    rules: Vec<PathBuf>,
}

#[derive(clap::Args)]
pub(super) struct List {
    /// How to print.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl Rules {
    pub(super) fn main(self) -> anyhow::Result<Exit> {
        match self {
            Self::Test(test) => test.main(),
            Self::List(list) => list.main(),
            Self::Facts => {
                print!("{}", facts::reference());
                Ok(Exit::Good)
            }
            Self::Types => {
                let engine = Engine::compile(&tasuki_api::agent::Policy::default())?;
                print!("{}", types_page::page(&engine.rules()));
                Ok(Exit::Good)
            }
        }
    }
}

impl Test {
    fn main(self) -> anyhow::Result<Exit> {
        let mut policy = run::policy(self.policy.as_deref())?;
        for path in &self.rules {
            let sigma = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
            let kind = format!("Custom:Runtime/{}", path.file_stem().unwrap_or_default().to_string_lossy());
            let finding = RuleFinding { kind, severity: None };
            policy.custom.push(DetectionRuleSpec { sigma, finding, response: Response::Alert });
        }
        let engine = Engine::compile(&policy)?;
        let broken = engine.problems().iter().map(|problem| format!("{}: {}", problem.kind, problem.reason));
        let broken: Vec<String> = broken.collect();
        anyhow::ensure!(broken.is_empty(), "{}", broken.join("\n       "));
        let (sink, found) = std::sync::mpsc::channel::<Finding>();
        let world = replay::world(&self.events)?;
        let agent =
            Agent { version: env!("CARGO_PKG_VERSION").to_owned(), depth: Depth::Full, sensor: "replay".to_owned() };
        let pipeline = Pipeline::new(world, EngineCell::new(engine), agent, Box::new(sink), 0);
        let stats = pipeline.stats();
        let (output, events) = std::sync::mpsc::sync_channel(8);
        let options = SensorOptions { events: Some(self.events), ..SensorOptions::default() };
        let mut started = select::start(Choice::Replay, &options, output)?;
        pipeline.run(&events);
        if let Some(problem) = started.sensors.iter().find_map(|sensor| sensor.state().detail) {
            anyhow::bail!("{problem}");
        }
        started.sensors.iter_mut().for_each(|sensor| sensor.stop());
        let mut last = std::collections::BTreeMap::new();
        for finding in found.try_iter() {
            if self.output == Output::Json {
                println!("{}", serde_json::to_string(&finding)?);
            }
            last.insert(finding.id, finding);
        }
        if self.output == Output::Text {
            let events = stats.events.load(std::sync::atomic::Ordering::Relaxed);
            println!("{events} events, {} findings", last.len());
            last.values().for_each(|finding| println!("{}", line(finding)));
        }
        Ok(if last.is_empty() { Exit::Good } else { Exit::Wrong })
    }
}

/// One line for people. What attackers chose is escaped.
fn line(finding: &Finding) -> String {
    let what = match (&finding.process, &finding.dns, &finding.file) {
        (Some(process), _, _) => process.arguments.join(" "),
        (None, Some(dns), _) => dns.question.clone(),
        (None, None, Some(file)) => file.path.clone(),
        (None, None, None) => String::new(),
    };
    let short: String = what.chars().take(100).flat_map(char::escape_debug).collect();
    let severity = format!("{:?}", finding.severity).to_uppercase();
    format!("{severity:<8}  {}  ×{}  {short}", finding.kind, finding.count)
}

impl List {
    fn main(self) -> anyhow::Result<Exit> {
        let engine = Engine::compile(&tasuki_api::agent::Policy::default())?;
        let rules = engine.rules();
        if self.output == Output::Json {
            let list: Vec<_> = types::TYPES
                .iter()
                .map(|kind| {
                    let of_type = rules.iter().filter(|rule| rule.kind == kind.name);
                    serde_json::json!({
                        "type": kind.name, "needs": kind.needs,
                        "unavailable": (!kind.missing.is_empty()).then_some(kind.missing),
                        "rules": of_type.map(|rule| serde_json::json!({
                            "id": rule.id, "title": rule.title, "severity": rule.severity, "tags": rule.tags,
                            "falsePositives": rule.false_positives,
                        })).collect::<Vec<_>>(),
                    })
                })
                .collect();
            println!("{}", serde_json::to_string_pretty(&list)?);
            return Ok(Exit::Good);
        }
        println!("{:<62}  {:<8}  {:<9}  RULE", "TYPE", "SEVERITY", "NEEDS");
        for kind in types::TYPES {
            if !kind.missing.is_empty() {
                println!("{:<62}  {:<8}  {:<9}  unavailable: {}", kind.name, "–", "–", kind.missing);
            }
            for rule in rules.iter().filter(|rule| rule.kind == kind.name) {
                let severity = format!("{:?}", rule.severity);
                println!("{:<62}  {severity:<8}  {:<9}  {}", kind.name, kind.needs.join(","), rule.title);
            }
        }
        Ok(Exit::Good)
    }
}
