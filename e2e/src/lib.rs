//! What demo, end-to-end tests and benchmarks share: a world of real parts on one machine.
//!
//! Everything that it starts it also ends: processes by their own ids, containers and networks by
//! their label, files in one run directory.

pub mod archive;
pub mod attack;
pub mod benign;
pub mod config;
pub mod controller;
pub mod coverage;
pub mod customer;
pub mod dockerd;
pub mod http;
pub mod image;
pub mod process;
pub mod screen;
pub mod shop;
pub mod unattended;
pub mod world;
