//! What is written to: its width, and whether it shows colours.

use std::io::{IsTerminal, Write};

/// Width where output is no terminal.
pub const PIPED_WIDTH: usize = 120;

/// Where a command writes.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// Columns.
    pub width: usize,
    /// A terminal that may be cleared and repainted.
    pub live: bool,
    /// Colours are shown.
    pub colour: bool,
}

impl Terminal {
    /// The terminal of standard output.
    pub fn stdout() -> Self {
        let stdout = std::io::stdout();
        let live = stdout.is_terminal();
        let width = match (live, terminal_size::terminal_size()) {
            (true, Some((width, _))) => usize::from(width.0),
            _ => PIPED_WIDTH,
        };
        let colour = anstream::AutoStream::choice(&stdout) != anstream::ColorChoice::Never && live;
        Self { width: width.clamp(40, 400), live, colour }
    }

    /// No terminal, of this width: for tests and for what is stored.
    pub const fn plain(width: usize) -> Self {
        Self { width, live: false, colour: false }
    }
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
pub fn print(text: &str) {
    let mut out = anstream::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes to standard error.
pub fn complain(text: &str) {
    let mut out = anstream::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
