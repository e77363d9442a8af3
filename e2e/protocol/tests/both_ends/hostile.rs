//! The protocol as it should not go.
