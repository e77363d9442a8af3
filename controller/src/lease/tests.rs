//! Who takes a lease, and what a holder does.
