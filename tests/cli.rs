//! The program itself, as an operator runs it: what it prints, and how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "cli/support.rs"]
mod support;

mod tiny_bert;

#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/client.rs"]
mod client;
#[path = "cli/server.rs"]
mod server;
