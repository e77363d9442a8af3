//! `make demo`: the whole loop on one machine, unattended. Exit code 0 only if every step happened.

mod steps;

use anyhow::Result;
use clap::Parser;
use std::process::ExitCode;
use std::time::Duration;
use tasuki_e2e::world::World;
use tasuki_e2e::{screen, unattended};

/// Runs Tasuki's whole loop on this machine: a local cloud, real containers, a real attack.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    arguments: unattended::Arguments,
}

#[tokio::main]
async fn main() -> ExitCode {
    let line = Line::parse();
    // Boxed: its steps are many.
    unattended::run(Box::pin(demo(&line.arguments))).await
}

async fn demo(arguments: &unattended::Arguments) -> Result<()> {
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
