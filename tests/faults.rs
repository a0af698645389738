//! Nothing is lost, whatever breaks: real processes on real stores, broken while they work, and
//! one checker that looks at the stores themselves afterwards.
//!
//! A short set of runs is part of all tests; `make faults` runs the whole matrix and prints it as
//! a table. Each test prints the seed that its faults are drawn from; `VECMILL_FAULT_SEED` replays
//! it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "faults/bad_entries.rs"]
mod bad_entries;
#[path = "faults/checker.rs"]
mod checker;
#[path = "faults/clock.rs"]
mod clock;
#[path = "faults/connections.rs"]
mod connections;
#[path = "faults/embedder.rs"]
mod embedder;
#[path = "faults/failover.rs"]
mod failover;
#[path = "faults/faulty.rs"]
mod faulty;
#[path = "faults/foreign.rs"]
mod foreign;
#[path = "faults/kills.rs"]
mod kills;
#[path = "faults/plan.rs"]
mod plan;
#[path = "faults/proxy.rs"]
mod proxy;
#[path = "faults/sentinel.rs"]
mod sentinel;
#[path = "faults/shutdown.rs"]
mod shutdown;
#[path = "faults/site.rs"]
mod site;
#[path = "faults/stopped.rs"]
mod stopped;
#[path = "faults/stores.rs"]
mod stores;
