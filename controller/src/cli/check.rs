//! `tasuki check`: is what is in this directory good?

use super::exit::Exit;
use super::terminal::{Terminal, print};
use crate::desired::{Level, Loaded, Loader};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `tasuki check`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  tasuki check config/\n  tasuki check -o json config/prod.yaml")]
pub struct CheckArgs {
    /// Directory of YAML files, or one file
    pub dir: PathBuf,
    /// Take warnings for errors
    #[arg(long)]
    pub strict: bool,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: super::Output,
}

/// Reads and judges.
pub fn run(args: &CheckArgs, terminal: Terminal) -> Exit {
    let loaded = Loader::default().load(&args.dir);
    let bad = loaded.has_errors() || (args.strict && !loaded.problems.is_empty());
    print(&match args.output {
        super::Output::Json => json_report(&loaded),
        _ => report(&loaded, terminal),
    });
    if bad { Exit::Bad } else { Exit::Good }
}

/// All problems and one line of sum.
pub fn report(loaded: &Loaded, terminal: Terminal) -> String {
    let mut text = String::new();
    for problem in &loaded.problems {
        text += &problem.render(terminal.colour, terminal.width);
        text += "\n\n";
    }
    let count = |level| loaded.problems.iter().filter(|p| p.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    let many = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
    let sum = format!("{} in {}", many(loaded.documents.len(), "good document"), many(loaded.files, "file"));
    text += &match (errors, warnings) {
        (0, 0) => format!("{sum}, no problem\n"),
        (0, _) => format!("{sum}, {}\n", many(warnings, "warning")),
        (_, 0) => format!("{sum}, {}\n", many(errors, "error")),
        _ => format!("{sum}, {}, {}\n", many(errors, "error"), many(warnings, "warning")),
    };
    text
}

fn json_report(loaded: &Loaded) -> String {
    let documents: Vec<String> = loaded.documents.keys().map(|(kind, name)| format!("{kind}/{name}")).collect();
    let value = json!({ "good": !loaded.has_errors(), "hash": loaded.hash, "documents": documents, "problems": loaded.problems });
    format!("{value:#}\n")
}
