//! `make demo`: the whole loop on one machine, unattended. Exit code 0 only if every step happened.

mod steps;

use anyhow::Result;
use clap::Parser;
use std::process::ExitCode;
use std::time::Duration;
use tasuki_e2e::screen;
use tasuki_e2e::world::World;

/// Runs Tasuki's whole loop on this machine: a local cloud, real containers, a real attack.
#[derive(Parser)]
struct Arguments {
    /// Leave everything running at the end and print how to explore it
    #[arg(long, env = "KEEP", value_parser = clap::builder::FalseyValueParser::new())]
    keep: bool,
    /// How long nothing must be found before the attack
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    benign: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    // rustls panics where two providers could be meant; an error means that one is installed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::parse();
    let outcome = tokio::select! {
        outcome = demo(&arguments) => outcome,
        name = screen::interrupted() => Err(anyhow::anyhow!("interrupted by {name}; everything that was started is ended")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen::failure(&error);
            ExitCode::FAILURE
        }
    }
}

async fn demo(arguments: &Arguments) -> Result<()> {
    let mut world = World::start(screen::progress).await?;
    let result = steps::run(&mut world, Duration::from_secs(arguments.benign)).await;
    if result.is_ok() && arguments.keep {
        screen::explore(&world.how_to_explore());
        let name = screen::interrupted().await;
        screen::progress(&format!("{name}: ending everything"));
    }
    world.stop().await;
    result
}
