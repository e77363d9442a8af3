//! Which of a node's agents responds. While one hands over to the next, both run and both see the same
//! event; the one that holds the lock acts. The kernel gives it up with its holder, however that ends.

use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// A node's lock on responses.
#[derive(Debug)]
pub struct Turn {
    path: PathBuf,
    held: Option<File>,
}

impl Turn {
    /// The lock at `path`, taken at once where nobody holds it.
    pub fn new(path: PathBuf) -> Self {
        let mut turn = Self { path, held: None };
        if let Err(reason) = turn.take() {
            tracing::info!(reason, "responses are left to the other agent until it ends");
        }
        turn
    }

    /// Takes the lock where it is free, and says why not where it is not.
    ///
    /// # Errors
    /// Where another agent holds it, or it cannot be had.
    pub fn take(&mut self) -> Result<(), String> {
        if self.held.is_some() {
            return Ok(());
        }
        let failed = |error: std::io::Error| format!("{}: {error}", self.path.display());
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&self.path);
        let file = file.map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                self.held = Some(file);
                Ok(())
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Err("the other agent on this node responds".to_owned()),
            Err(error) => Err(failed(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Turn;

    #[test]
    fn one_holds_it_and_the_next_has_it_when_that_one_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("responds");
        let mut first = Turn::new(path.clone());
        let mut second = Turn::new(path);
        assert_eq!(first.take(), Ok(()));
        assert!(second.take().unwrap_err().contains("other agent"));
        drop(first);
        assert_eq!(second.take(), Ok(()));
        let missing = Turn::new(directory.path().join("missing/responds")).take().unwrap_err();
        assert!(missing.contains("missing/responds"), "{missing}");
    }
}
