//! Amazon SQS: standard queues with visibility time-outs on the cloud's clock, dead letters, and the digests that SDKs check.
//!
//! FIFO queues are not here and are refused by name.

mod api;
pub mod policy;
mod queue;

pub use api::Queues;
pub use queue::{Queue, md5_hex};
