//! The command line: one file per subcommand, one place for exit codes.

mod doctor;
mod report;
mod rules;
mod run;

use crate::sensor::select::WATCHDOG;
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;

/// What the agent's exit codes mean; docs/reference/agent-cli.md has the same table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, and nothing is wrong.
    Good = 0,
    /// Done, and something is wrong: a rule test found something, this machine lacks something.
    Wrong = 1,
    /// Could not be done; the error says why and what would cure it.
    Failed = 2,
}

/// Watches what containers do and reports what looks like an attack.
#[derive(Parser)]
#[command(
    name = "tasuki-agent",
    version,
    arg_required_else_help = true,
    after_help = "\
Exit codes: 0 done, nothing wrong; 1 done, something is wrong; 2 could not be done.

Start with:
  tasuki-agent doctor            what this machine allows
  tasuki-agent run --stdout      watch it, and print findings as JSON lines"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch, detect and report until stopped.
    #[command(after_help = run::EXAMPLES)]
    Run(run::Run),
    /// Say what this machine allows, what that means, and what would cure it.
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::Doctor),
    /// Say whether the agent in this container does its job: sensors run, the gateway has taken it.
    #[command(after_help = "\
Example:
  tasuki-agent healthy

As a container's health check (it needs no file system to write to):
  \"healthCheck\": {\"command\": [\"CMD\", \"/tasuki-agent\", \"healthy\"]}

Exit codes: 0 it does; 1 it does not, and one line says why.")]
    Healthy,
    /// Look at rules and try them on recorded events.
    #[command(subcommand, after_help = rules::EXAMPLES)]
    Rules(rules::Rules),
    /// Run the agent for ever: start it again when it ends, and exit 0 within 2 s of SIGTERM.
    #[command(
        name = SUPERVISE,
        after_help = "Example (the entry point of the agent's container):\n  tasuki-agent supervise run\n\nWithout arguments it runs `tasuki-agent run`."
    )]
    Supervise {
        /// What the agent is started with.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Free traced processes when the tracer hangs.
    #[command(name = WATCHDOG, hide = true, after_help = "Example (by the agent itself): tasuki-agent watchdog 7")]
    Watchdog {
        /// The agent's process id.
        agent: u32,
    },
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  tasuki-agent completions bash > /etc/bash_completion.d/tasuki-agent")]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Entry point of the agent's container: the supervisor.
const SUPERVISE: &str = "supervise";

/// Runs what the command line asks for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Run(run) => run.main(),
        Command::Doctor(doctor) => doctor.main(),
        Command::Healthy => Ok(match crate::health::ask() {
            Ok(()) => {
                println!("the agent watches and reports");
                Exit::Good
            }
            Err(error) => {
                println!("{error}");
                Exit::Wrong
            }
        }),
        Command::Rules(rules) => rules.main(),
        Command::Supervise { arguments } => supervise(&arguments),
        Command::Watchdog { agent } => {
            crate::sensor::ptrace::watchdog_main(agent).map(|()| Exit::Good).map_err(Into::into)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "tasuki-agent", &mut std::io::stdout());
            Ok(Exit::Good)
        }
    };
    match done {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(Exit::Failed as u8)
        }
    }
}

fn supervise(arguments: &[OsString]) -> anyhow::Result<Exit> {
    run::logging();
    let default = [OsString::from("run")];
    let arguments = if arguments.is_empty() { &default[..] } else { arguments };
    if let Err(error) = crate::supervisor::run(arguments) {
        // A task must not fail because its agent cannot be supervised.
        tracing::error!(%error, "the agent is not supervised");
    }
    Ok(Exit::Good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("tasuki-agent "), "{} has no example", command.get_name());
        }
    }
}
