//! `tasuki-agent doctor`.

use super::Exit;
use super::rules::Output;
use crate::doctor::{self, Verdict};
use crate::workload::host;

pub(super) const EXAMPLES: &str = "\
Examples:
  tasuki-agent doctor
  tasuki-agent doctor -o json

Exit code 1 when something is missing without which no sensor works.";

#[derive(clap::Args)]
pub(super) struct Doctor {
    /// How to print.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

impl Doctor {
    pub(super) fn main(self) -> anyhow::Result<Exit> {
        // What cannot be had here shows in the checks.
        let _ = host::join_cgroup_namespace();
        let report = doctor::examine();
        match self.output {
            Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
            Output::Text => {
                for check in &report.checks {
                    let mark = match check.verdict {
                        Verdict::Yes => "✓",
                        Verdict::No => "✗",
                        Verdict::Unknown => "?",
                    };
                    println!("{mark} {:<22} {}", check.name, check.detail);
                    if check.verdict != Verdict::Yes {
                        println!("  {:<22} means: {}", "", check.means);
                        println!("  {:<22} cure:  {}", "", check.cure);
                    }
                }
                println!("\nbest sensor here: {}", report.best);
            }
        }
        Ok(if report.best == "none" { Exit::Wrong } else { Exit::Good })
    }
}
