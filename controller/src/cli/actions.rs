//! `tasuki actions`: what was changed, when, and why?

use super::client::{AskError, Client};
use super::exit::Exit;
use super::table::{fixed, render, text};
use super::terminal::Terminal;
use super::{Output, Watch};
use crate::store::ActionRecord;
use crate::text::{ago, escape, escape_to, short_arn};
use jiff::Timestamp;

/// Arguments of `tasuki actions`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  tasuki actions --limit 20\n  tasuki actions -o json")]
pub struct ActionsArgs {
    /// At most so many, the newest first
    #[arg(long, default_value_t = 50)]
    pub limit: u32,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Repeat
    #[command(flatten)]
    pub watch: Watch,
}

/// Asks and shows once.
pub async fn once(args: &ActionsArgs, client: &Client, terminal: Terminal) -> Result<(String, Exit), AskError> {
    let records: Vec<ActionRecord> = client.get("actions", &[("limit", args.limit.to_string())]).await?;
    let text = match args.output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&records).unwrap_or_default()),
        output => list(&records, output == Output::Wide, terminal, Timestamp::now()),
    };
    Ok((text, Exit::Good))
}

/// The table.
pub fn list(records: &[ActionRecord], wide: bool, terminal: Terminal, now: Timestamp) -> String {
    if records.is_empty() {
        return "nothing was changed yet\n".to_owned();
    }
    let row = |record: &ActionRecord| {
        let (kind, target) = kind(&record.action.kind);
        let result =
            record.error.as_deref().map_or_else(|| "done".to_owned(), |error| format!("failed: {}", escape(error)));
        let mut row = vec![
            ago(record.at, now),
            kind,
            escape_to(short_arn(&record.action.cluster), 40),
            target,
            escape(&record.action.why),
            result,
        ];
        if wide {
            row.push(escape(&record.request_ids.join(" ")));
            row.push(escape_to(&record.desired, 12));
        }
        row
    };
    let mut columns =
        vec![fixed("WHEN"), fixed("ACTION"), fixed("CLUSTER"), text("TARGET"), text("WHY"), text("RESULT")];
    if wide {
        columns.extend([text("REQUEST"), fixed("DESIRED")]);
    }
    render(&columns, records.iter().map(row).collect(), terminal)
}

/// An action's name and what it was done to, from its serialised form: new kinds need no code here.
fn kind(kind: &tasuki_core::action::ActionKind) -> (String, String) {
    let value = serde_json::to_value(kind).unwrap_or_default();
    let (name, fields) = match value.as_object().and_then(|map| map.iter().next()) {
        Some((name, fields)) => (name.clone(), fields.clone()),
        None => (value.as_str().unwrap_or("?").to_owned(), serde_json::Value::Null),
    };
    let target = ["service", "node", "definition"].iter().find_map(|field| fields[*field].as_str());
    (name, target.map_or("–".to_owned(), |target| escape_to(short_arn(target), 60)))
}
