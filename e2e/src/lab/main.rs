//! What runs inside the containers of demo and tests: inert stand-ins for an attacker's tools, and
//! the loopback servers that they talk to. Nothing here mines, spreads or leaves the container.
//!
//! One binary, so that an image holds one file: the name that it is called by chooses the part, as
//! with busybox, and so a copy called `xmrig` *is* the miner's stand-in.

mod dns;
mod execs;
mod memfd;
mod miner;
mod pool;
mod storm;

use std::io;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args();
    let called_as = args.next().unwrap_or_default();
    let name = Path::new(&called_as).file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    let (part, rest): (String, Vec<String>) = match name.as_str() {
        "tasuki-lab" => (args.next().unwrap_or_default(), args.collect()),
        _ => (name, args.collect()),
    };
    let result: io::Result<()> = match part.as_str() {
        "xmrig" => miner::run(&rest),
        "pool" => pool::run(),
        "memfd" => memfd::run(&rest),
        "execs" => execs::run(&rest),
        "storm" => storm::run(&rest),
        "ask" => rest.first().map_or(Err(usage()), |name| dns::ask(name).map(|address| println!("{address}"))),
        _ => Err(usage()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{part}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> io::Error {
    io::Error::other("usage: tasuki-lab xmrig -o HOST:PORT | pool | memfd PROGRAM [ARGS] | ask NAME | execs FROM COUNT PACE_MS | storm SECONDS")
}
