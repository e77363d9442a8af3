//! Entry point: the TLS provider, the command line, the exit code.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    tasuki::memory::frugal();
    // Must come before any connection: rustls panics where two providers could be meant. An error means that one
    // is installed already, which is what is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tasuki::cli::main(tasuki::cli::Cli::parse())
}
