//! The only place that changes the outside world: ECS calls, request budgets, the journal.

pub mod budget;
