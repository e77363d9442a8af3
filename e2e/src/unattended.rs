//! What the demos share: their arguments, and how they end.

use crate::screen;
use anyhow::Result;
use std::process::ExitCode;

/// Arguments of a demo.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Leave everything running at the end and print how to explore it
    #[arg(long, env = "KEEP", value_parser = clap::builder::FalseyValueParser::new())]
    pub keep: bool,
    /// How long nothing must be found before the attack
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub benign: u64,
}

/// Runs a demo to its end, or until it is interrupted: then it is dropped, which ends what it started.
pub async fn run(demo: impl Future<Output = Result<()>>) -> ExitCode {
    // rustls panics where two providers could be meant; an error means that one is installed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let outcome = tokio::select! {
        outcome = demo => outcome,
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
