//! Fileless execution: a copy of a program in memory that has no name in any file system.

use rustix::fs::{MemfdFlags, memfd_create};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Copies PROGRAM into a memfd and becomes it, with the arguments that follow.
pub fn run(args: &[String]) -> io::Result<()> {
    let Some((program, rest)) = args.split_first() else { return Err(super::usage()) };
    // Not close-on-exec: the loader opens the program again by its descriptor's path.
    let mut file = fs::File::from(memfd_create("x", MemfdFlags::empty())?);
    file.write_all(&fs::read(program)?)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Err(Command::new(path).arg0(program).args(rest).exec())
}
