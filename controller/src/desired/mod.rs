//! Where desired state comes from: a directory of YAML, or Kubernetes objects (`kubernetes`).
//!
//! *Expected flow*: [`Loader::load`] reads every file, [`parse`] turns text into documents, the
//! schema walk in `shape` and the rules in `check` find what is wrong, and [`follow`] does it again
//! on each change. *Guarantees*: all problems of all files are found in one go; one bad document
//! never stops the others and keeps its last good version in force; no input panics or takes
//! unbounded memory. *Caveats*: checks that need AWS or a fleet are not made here.

mod bounds;
mod check;
mod follow;
mod kinds;
pub mod kubernetes;
mod loader;
mod parse;
mod problem;
mod shape;
mod yaml;

pub use bounds::apply as bound;
pub use follow::follow;
pub use kinds::{finding_schema, schema_of};
pub use loader::{Id, Loaded, Loader, Origin};
pub use parse::{Parsed, parse};
pub use problem::{Level, Problem};
pub use shape::nearest;
pub use yaml::{Path, Step};

#[cfg(test)]
mod tests;
