//! The command line, one file per subcommand.
//!
//! Subcommands ask a running controller by its JSON API; only `run`, `check`, `render` and the
//! generators work by themselves. Text that comes from outside is escaped before it reaches a
//! terminal. Exit codes: [`Exit`].

mod actions;
mod admin;
mod check;
mod client;
mod coverage;
mod exit;
mod explain;
mod findings;
mod generate;
mod inventory;
mod plan;
mod reference;
mod render;
mod run;
mod table;
mod terminal;
mod tree;
mod wait;

pub use check::CheckArgs;
pub use coverage::counts;
pub use exit::Exit;
pub use findings::{lineage, place, severity, what};
pub use run::{KubernetesArgs, LogFormat, RunArgs};
pub use terminal::Terminal;

use client::{AskError, Client, ServerArgs};
use std::process::ExitCode;
use std::time::Duration;
use terminal::{complain, print};

/// Watches every ECS task and Kubernetes pod, and says where it cannot.
#[derive(Debug, clap::Parser)]
#[command(name = "tasuki", version, propagate_version = true)]
#[command(after_help = "Examples:\n  tasuki check config/\n  tasuki run --config-dir config/\n  tasuki coverage")]
pub struct Cli {
    /// The controller that is asked.
    #[command(flatten)]
    server: ServerArgs,
    /// What to do
    #[command(subcommand)]
    command: Command,
}

/// Subcommands.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the controller
    Run(Box<RunArgs>),
    /// Is what is in this directory good?
    Check(CheckArgs),
    /// What is not watched, and what do I do about it?
    Coverage(coverage::CoverageArgs),
    /// Why has this task its verdict, or what does this reason mean?
    Explain(explain::ExplainArgs),
    /// What would Enforce do to me?
    Plan(plan::PlanArgs),
    /// The task definition with the sidecar, for your own pipeline
    Render(render::RenderArgs),
    /// What happened, and where?
    Findings(findings::FindingsArgs),
    /// What was changed, when, and why?
    Actions(actions::ActionsArgs),
    /// Stop every change at once, or allow it again
    Freeze(admin::FreezeArgs),
    /// Steer rollouts
    #[command(subcommand)]
    Rollout(admin::RolloutCommand),
    /// Take every agent out again
    Uninstall(admin::UninstallArgs),
    /// What is in AWS
    #[command(subcommand)]
    Aws(inventory::AwsCommand),
    /// Wait until the controller is at work, and agents report
    Wait(wait::WaitArgs),
    /// Completions for a shell
    Completions(generate::CompletionsArgs),
    /// Manual pages
    Man(generate::ManArgs),
    /// Write the generated files of the repository
    #[command(hide = true)]
    Generate(generate::GenerateArgs),
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

/// Repeating a question.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Watch {
    /// Repeat every 2 seconds until stopped
    #[arg(short, long)]
    pub watch: bool,
}

/// Carries out a command line.
pub fn main(cli: Cli) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("error: no threads can be started: {error}\n"));
            return Exit::Unknown.into();
        }
    };
    runtime.block_on(dispatch(cli))
}

async fn dispatch(cli: Cli) -> ExitCode {
    let terminal = Terminal::stdout();
    let answer = match &cli.command {
        Command::Run(args) => return run::run((**args).clone()).await,
        Command::Check(args) => return check::run(args, terminal).into(),
        Command::Completions(args) => return generate::completions(args).into(),
        Command::Man(args) => return written(generate::man(args)),
        Command::Generate(args) => return written(generate::write(&args.root)),
        Command::Explain(args) if explain::reason(&args.what).is_some() => {
            let text = explain::reason(&args.what).map(|reason| explain::of_reason(reason, args.output));
            Ok((text.unwrap_or_default(), Exit::Good))
        }
        Command::Render(args) => render::run(args, &cli.server, terminal).await,
        command => ask(command, &cli.server, terminal).await,
    };
    match answer {
        Ok((text, exit)) => {
            print(&text);
            exit.into()
        }
        Err(error) => {
            complain(&format!("error: {error}\n"));
            error.exit().into()
        }
    }
}

async fn ask(command: &Command, server: &ServerArgs, terminal: Terminal) -> Result<(String, Exit), AskError> {
    let client = Client::new(server)?;
    let watch = match command {
        Command::Coverage(args) => args.watch,
        Command::Plan(args) => args.watch,
        Command::Findings(args) if args.follow => {
            return findings::follow(args, &client, terminal).await.map(|exit| (String::new(), exit));
        }
        Command::Findings(args) => args.watch,
        Command::Actions(args) => args.watch,
        _ => Watch { watch: false },
    };
    loop {
        let terminal = if watch.watch { Terminal::stdout() } else { terminal };
        let answer = once(command, &client, terminal).await;
        if !watch.watch {
            return answer;
        }
        // While watching, a controller that restarts is waited for.
        let text = answer.map_or_else(|error| format!("error: {error}\n"), |(text, _)| text);
        let clear = if terminal.live { "\u{1b}[H\u{1b}[2J" } else { "" };
        print(&format!("{clear}{text}{}", if terminal.live { "" } else { "\n" }));
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

async fn once(command: &Command, client: &Client, terminal: Terminal) -> Result<(String, Exit), AskError> {
    match command {
        Command::Coverage(args) => coverage::once(args, client, terminal).await,
        Command::Explain(args) => explain::of_task(args, client).await,
        Command::Plan(args) => plan::once(args, client, terminal).await,
        Command::Findings(args) => findings::once(args, client, terminal).await,
        Command::Actions(args) => actions::once(args, client, terminal).await,
        Command::Freeze(args) => admin::freeze(args, client).await,
        Command::Rollout(admin::RolloutCommand::Retry { cluster }) => admin::retry(cluster, client).await,
        Command::Uninstall(args) => admin::uninstall(args, client).await,
        Command::Aws(inventory::AwsCommand::Inventory(args)) => inventory::once(args, client, terminal).await,
        Command::Wait(args) => wait::run(args, client).await,
        Command::Run(_)
        | Command::Check(_)
        | Command::Render(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Generate(_) => Ok((String::new(), Exit::Good)),
    }
}

fn written(result: std::io::Result<Exit>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            complain(&format!("error: cannot write: {error}\n"));
            Exit::Unknown.into()
        }
    }
}

#[cfg(test)]
mod tests;

/// What other rooms' tests show.
#[cfg(test)]
pub(crate) mod fixtures {
    pub use super::tests::{finding, view};
}
