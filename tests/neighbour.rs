//! On the database that an ActiveKG installation really has: its constraints, its unique index, its
//! row trigger, its row-level security, its history and events.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "neighbour/locks.rs"]
mod locks;
#[path = "neighbour/missing.rs"]
mod missing;
#[path = "neighbour/prefix.rs"]
mod prefix;
#[path = "neighbour/rows.rs"]
mod rows;
#[path = "neighbour/security.rs"]
mod security;
#[path = "neighbour/site.rs"]
mod site;
