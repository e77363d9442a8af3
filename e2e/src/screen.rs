//! What a person sees of a demo.

use anstream::println;
use anstyle::{AnsiColor, Style};
use tokio::signal::unix::{SignalKind, signal};

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// A step begins.
pub fn step(number: u32, text: &str) {
    println!("\n{BOLD}{number}. {text}{BOLD:#}");
}

/// Something is under way.
pub fn progress(text: &str) {
    println!("   {DIM}{text}{DIM:#}");
}

/// Something was seen to be as it should be.
pub fn seen(text: &str) {
    println!("   {GOOD}✓{GOOD:#} {text}");
}

/// Output of a command, as a user would see it.
pub fn output(command: &str, text: &str) {
    println!("   {DIM}$ {command}{DIM:#}");
    for line in text.trim_end().lines() {
        println!("   {line}");
    }
}

/// It did not go as it should.
pub fn failure(error: &anyhow::Error) {
    anstream::eprintln!("\n{BAD}The demo failed:{BAD:#} {error}");
    for cause in error.chain().skip(1) {
        anstream::eprintln!("  because {cause}");
    }
}

/// How to look around, in commands.
pub fn explore(how: &str) {
    println!("\n{BOLD}Everything is left running; Ctrl-C ends it. In another terminal:{BOLD:#}");
    println!("{how}");
}

/// Waits for Ctrl-C or SIGTERM; answers which it was.
pub async fn interrupted() -> &'static str {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => "Ctrl-C",
        _ = terminate.recv() => "SIGTERM",
    }
}
