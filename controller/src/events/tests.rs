//! What becomes of events.
