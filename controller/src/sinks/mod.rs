//! Where findings go.

mod filter;

pub use filter::{Filter, FilterError, Suppressions};
