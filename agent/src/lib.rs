//! The Tasuki agent: it sees (sensor), names (workload, process), detects (detect) and reports
//! (finding, deliver), and obeys its monitor (control).

pub mod event;
pub mod sensor;
pub mod supervisor;
