//! Vecmill: an actor runtime that turns text into vectors, asynchronously, for many tenants,
//! without losing any. ARCHITECTURE.md is the map of this crate.

pub mod app;
pub mod cli;
pub mod config;
pub mod data_dir;
pub mod domain;
pub mod heavy;
pub mod http;
pub mod inference;
pub mod queue;
pub mod runtime;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod tls;
