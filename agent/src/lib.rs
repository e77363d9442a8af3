//! The Tasuki agent: it sees (sensor), names (workload, process), detects (detect) and reports
//! (finding, deliver), and obeys its monitor (control).

pub mod control;
pub mod deliver;
pub mod event;
pub mod sensor;
