//! Exit codes, all of them (docs/reference/cli.md repeats this page).

use std::process::ExitCode;

/// What a command's end means to a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done; `check`: nothing is refused; `coverage`: every selected task is covered or starting.
    Good,
    /// 1: the answer is bad: `check` refused something, `coverage` found tasks that are not
    /// covered, `explain`, `render` or `findings show` has no such thing.
    Bad,
    /// 2: no answer: wrong arguments, a controller that cannot be reached, a view that is not there yet.
    Unknown,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Bad => 1,
            Self::Unknown => 2,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
