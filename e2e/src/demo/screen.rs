//! What a person sees of the demo.

use anstream::println;
use anstyle::{AnsiColor, Style};
use tasuki_e2e::world::World;

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

/// How to look around.
pub fn explore(world: &World) {
    println!("\n{BOLD}Everything is left running; Ctrl-C ends it. In another terminal:{BOLD:#}");
    println!("{}", world.how_to_explore());
}
