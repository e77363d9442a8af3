//! Amazon EventBridge: the default bus of an account and Region, its rules, and delivery to SQS.
//!
//! Lives here: rules and targets ([`bus`]), pattern matching ([`pattern`]), what a delivery is ([`deliver`]). The
//! delivery itself crosses accounts and is carried out by [`crate::world`]. Custom buses, schedules, archives and targets
//! other than SQS are not here.

pub mod bus;
pub mod deliver;
pub mod pattern;
