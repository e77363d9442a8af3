//! `tasuki-cloud`: the local cloud on real time.

use std::process::ExitCode;

mod options;

#[tokio::main]
async fn main() -> ExitCode {
    match options::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tasuki-cloud: {error:#}");
            ExitCode::FAILURE
        }
    }
}
