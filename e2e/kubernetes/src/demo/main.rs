//! `make demo-kubernetes`: the whole loop on a real cluster, unattended. Exit code 0 only if every step happened.

mod steps;

use anyhow::Result;
use clap::Parser;
use std::process::ExitCode;
use std::time::Duration;
use tasuki_e2e::{screen, unattended};
use tasuki_e2e_kubernetes::world::World;

/// Runs Tasuki's whole loop on a real Kubernetes cluster on this machine: helm, real pods, a real attack.
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
    let world = World::start(2, screen::progress).await?;
    let result = steps::run(&world, Duration::from_secs(arguments.benign), arguments.keep).await;
    if let Err(error) = result {
        return Err(error.context(world.logs().await));
    }
    if arguments.keep {
        screen::explore(&world.how_to_explore()?);
        let name = screen::interrupted().await;
        screen::progress(&format!("{name}: ending everything"));
    }
    Ok(())
}
