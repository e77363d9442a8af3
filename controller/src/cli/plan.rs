//! `tasuki plan`: what would Enforce do to me?

use super::client::{AskError, Client};
use super::exit::Exit;
use super::terminal::Terminal;
use super::{Output, Watch};
use crate::engine::{PlanChange, PlanItem};
use crate::text::{escape, many};
use std::collections::BTreeMap;

/// Arguments of `tasuki plan`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tasuki plan\n  tasuki plan -v --cluster shop-fargate\n  tasuki plan -o json > plan.json"
)]
pub struct PlanArgs {
    /// Only clusters of this name (`*` and `?`)
    #[arg(long)]
    pub cluster: Option<String>,
    /// Definitions before and after, and what stays as it is
    #[arg(short, long)]
    pub verbose: bool,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Repeat
    #[command(flatten)]
    pub watch: Watch,
}

/// Asks and shows once.
pub async fn once(args: &PlanArgs, client: &Client, terminal: Terminal) -> Result<(String, Exit), AskError> {
    let query: Vec<_> = args.cluster.clone().map(|cluster| ("cluster", cluster)).into_iter().collect();
    let items: Vec<PlanItem> = client.get("plan", &query).await?;
    let text = match args.output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&items).unwrap_or_default()),
        _ => screen(&items, args.verbose, terminal),
    };
    Ok((text, Exit::Good))
}

fn sign(change: PlanChange) -> char {
    match change {
        PlanChange::Create => '+',
        PlanChange::Replace => '~',
        PlanChange::Nothing => '=',
        PlanChange::Blocked => '!',
    }
}

/// One block a cluster, totals at the end.
pub fn screen(items: &[PlanItem], verbose: bool, terminal: Terminal) -> String {
    let mut clusters: BTreeMap<&str, Vec<&PlanItem>> = BTreeMap::new();
    for item in items {
        clusters.entry(&item.cluster).or_default().push(item);
    }
    let mut out = String::new();
    for (cluster, items) in clusters {
        out += &format!("{}\n", escape(cluster));
        let width = items.iter().map(|item| escape(&item.target).chars().count()).max().unwrap_or(0).min(40);
        let mut quiet = 0;
        for item in items {
            if item.change == PlanChange::Nothing && !verbose {
                quiet += 1;
                continue;
            }
            let line = format!("  {} {:<width$}  {}", sign(item.change), escape(&item.target), escape(&item.what));
            out += &match (terminal.colour, item.change) {
                (true, change) => format!("{}{line}{}\n", colour(change).render(), anstyle::Reset.render()),
                _ => format!("{line}\n"),
            };
            for line in item.diff.iter().filter(|_| verbose).flat_map(|diff| diff.lines()) {
                out += &format!("      {}\n", escape(line));
            }
        }
        if quiet > 0 {
            out += &format!("  = {} as {}\n", many(quiet, "target"), if quiet == 1 { "it is" } else { "they are" });
        }
        out.push('\n');
    }
    if out.is_empty() {
        return "nothing is selected, so there is nothing to do\n".to_owned();
    }
    let count = |change| items.iter().filter(|item| item.change == change).count();
    let sum = |of: fn(&PlanItem) -> u64| items.iter().map(of).sum::<u64>();
    out + &format!(
        "{} to create, {} to replace, {} blocked, {} as they are\n{}, {} replaced, {} MiB of memory for agents\n",
        count(PlanChange::Create),
        count(PlanChange::Replace),
        count(PlanChange::Blocked),
        count(PlanChange::Nothing),
        many(sum(|i| i.calls), "API call"),
        many(sum(|i| i.tasks_replaced), "task"),
        sum(|i| i.memory_mib)
    )
}

fn colour(change: PlanChange) -> anstyle::Style {
    use anstyle::AnsiColor;
    match change {
        PlanChange::Create => AnsiColor::Green.on_default(),
        PlanChange::Replace => AnsiColor::Yellow.on_default(),
        PlanChange::Nothing => anstyle::Style::new(),
        PlanChange::Blocked => AnsiColor::Red.on_default(),
    }
}
