//! Who calls: access keys, roles and sessions ([`identity`]), and the proof that a request comes from a key ([`sigv4`]).
//!
//! Nothing here knows an operation. What a caller may do is not decided here either: the cloud has no IAM policies, only
//! the explicit denials of [`crate::faults`].

pub mod identity;
pub mod sigv4;
