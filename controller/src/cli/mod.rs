//! The command line, one file per subcommand.
//!
//! Subcommands ask a running controller by its JSON API; only `run`, `check` and `render` work by
//! themselves. Text that comes from outside is escaped before it reaches a terminal.

mod check;
mod exit;
mod terminal;

pub use check::CheckArgs;
pub use exit::Exit;
pub use terminal::Terminal;

use std::process::ExitCode;

/// Watches every ECS task and Kubernetes pod, and says where it cannot.
#[derive(Debug, clap::Parser)]
#[command(name = "tasuki", version, propagate_version = true)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Check desired state: is what is in this directory good?
    Check(CheckArgs),
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// For people, with whole names and more columns
    Wide,
    /// For programs; stable
    Json,
}

/// Carries out a command line.
pub fn main(cli: Cli) -> ExitCode {
    let terminal = Terminal::stdout();
    match cli.command {
        Command::Check(args) => check::run(&args, terminal).into(),
    }
}
