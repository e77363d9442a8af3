//! Where findings go.
