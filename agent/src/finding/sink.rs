//! Where findings go.

use std::io::Write;
use tasuki_api::finding::Finding;

/// Takes findings. It never blocks for long: what it cannot take it counts.
pub trait FindingSink: Send {
    /// Takes one. The same id may come again with a higher count.
    fn take(&mut self, finding: Finding);

    /// Everything taken so far is on its way or safe; called when events pause and at the end.
    fn flush(&mut self) {}
}

/// One JSON line each.
#[derive(Debug)]
pub struct StdoutSink<W: Write> {
    out: W,
    /// Findings that could not be written.
    pub lost: u64,
}

impl<W: Write> StdoutSink<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, lost: 0 }
    }
}

impl<W: Write + Send> FindingSink for StdoutSink<W> {
    fn take(&mut self, finding: Finding) {
        let line = serde_json::to_string(&finding).unwrap_or_default();
        // JSON escapes control characters, so attacker-controlled text cannot reach the terminal.
        if line.is_empty() || writeln!(self.out, "{line}").and_then(|()| self.out.flush()).is_err() {
            self.lost += 1;
        }
    }
}

impl FindingSink for std::sync::mpsc::Sender<Finding> {
    fn take(&mut self, finding: Finding) {
        // A receiver that is gone wants no findings.
        let _ = self.send(finding);
    }
}
