//! Connections to Postgres as it is run: behind poolers and addresses that lead elsewhere, over TLS,
//! away at the start, with settings of its own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "connections/address.rs"]
mod address;
#[path = "connections/failover.rs"]
mod failover;
#[path = "connections/pooler.rs"]
mod pooler;
#[path = "connections/settings.rs"]
mod settings;
#[path = "connections/start.rs"]
mod start;
#[path = "connections/tls.rs"]
mod tls;
