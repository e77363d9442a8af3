//! What demo, end-to-end tests and benchmarks share: a world of real parts on one machine.
