//! `tasuki explain`: the facts behind a verdict, or what a reason means.

use super::Output;
use super::client::{AskError, Client};
use super::exit::Exit;
use crate::engine::Explanation;
use crate::text::{ago, escape};
use jiff::Timestamp;
use tasuki_api::coverage::Reason;

/// Arguments of `tasuki explain`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tasuki explain 9f31c0ab        (a task, by any unique part of its ARN)\n  tasuki explain WouldInterrupt"
)]
pub struct ExplainArgs {
    /// A task (ARN or a unique part of it), or a reason
    pub what: String,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// The reason of this name, whatever its case.
pub fn reason(text: &str) -> Option<Reason> {
    Reason::ALL.iter().copied().find(|reason| reason.name().eq_ignore_ascii_case(text))
}

/// What a reason means; needs no controller.
pub fn of_reason(reason: Reason, output: Output) -> String {
    let pods = reason.next_step_for_pods();
    match output {
        Output::Json => format!(
            "{:#}\n",
            serde_json::json!({
                "reason": reason.name(), "explanation": reason.explanation(),
                "nextStep": reason.next_step(), "nextStepForPods": pods
            })
        ),
        _ => {
            let pods = if pods == reason.next_step() { String::new() } else { format!("  next, for pods: {pods}\n") };
            format!("{}\n  {}\n  next: {}\n{pods}", reason.name(), reason.explanation(), reason.next_step())
        }
    }
}

/// Asks for a task.
pub async fn of_task(args: &ExplainArgs, client: &Client) -> Result<(String, Exit), AskError> {
    let found: Result<Explanation, AskError> = client.get("explain", &[("task", args.what.clone())]).await;
    let explanation = found.map_err(|error| match error {
        AskError::Absent(text) => {
            let names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
            let near = crate::desired::nearest(&args.what, &names);
            AskError::Absent(near.map_or(text.clone(), |near| format!("{text}\ndid you mean the reason `{near}`?")))
        }
        other => other,
    })?;
    let text = match args.output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&explanation).unwrap_or_default()),
        _ => facts(&explanation, Timestamp::now()),
    };
    Ok((text, Exit::Good))
}

/// The facts, in the order in which they were judged.
pub fn facts(explanation: &Explanation, now: Timestamp) -> String {
    let c = &explanation.coverage;
    let reason = c.reason.map(|reason| format!(" {}", reason.name())).unwrap_or_default();
    let mut out = format!("{:?}{reason}  since {} ({})\n", c.verdict, ago(c.since, now), c.since);
    out += &format!(
        "task      {}\nworkload  {}\ncluster   {} ({})\n",
        escape(&c.task),
        escape(&c.workload),
        escape(&c.cluster),
        escape(&c.scope)
    );
    if let Some(monitor) = &c.monitor {
        out += &format!("monitor   {}\n", escape(monitor));
    }
    out += "\nfacts, in the order in which they were judged\n";
    for (i, fact) in explanation.facts.iter().enumerate() {
        let age = fact.at.map(|at| format!(", {}", ago(at, now))).unwrap_or_default();
        out += &format!("{:>3}. {} ({}{age})\n", i + 1, escape(&fact.text), escape(&fact.source));
    }
    for missing in &c.unavailable {
        out += &format!("     cannot see {}\n", escape(&format!("{missing:?}")));
    }
    if let Some(detail) = &c.detail {
        out += &format!("\nwhy   {}\n", escape(detail));
    }
    let next = c.next_step.clone().or_else(|| c.reason.map(|reason| reason.next_step().to_owned()));
    next.map_or(out.clone(), |next| {
        format!("{out}{}next  {}\n", if c.detail.is_some() { "" } else { "\n" }, escape(&next))
    })
}
