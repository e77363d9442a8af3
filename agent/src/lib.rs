//! The Tasuki agent: it sees (sensor), names (workload, process), detects (detect) and reports
//! (finding, deliver), and obeys its monitor (control).

pub mod cli;
pub mod control;
pub mod deliver;
pub mod detect;
pub mod doctor;
pub mod event;
pub mod finding;
pub mod health;
pub mod memory;
pub mod pipeline;
pub mod process;
pub mod sensor;
pub mod supervisor;
pub mod workload;
