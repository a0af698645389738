//! What the store promises, on Postgres and on SQLite.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "store/support.rs"]
mod support;

#[path = "store/busy_table.rs"]
mod busy_table;
#[path = "store/cache.rs"]
mod cache;
#[path = "store/edit.rs"]
mod edit;
#[path = "store/listing.rs"]
mod listing;
#[path = "store/locks.rs"]
mod locks;
#[path = "store/migrations.rs"]
mod migrations;
#[path = "store/nodes.rs"]
mod nodes;
#[path = "store/outages.rs"]
mod outages;
#[path = "store/pools.rs"]
mod pools;
#[path = "store/repair.rs"]
mod repair;
#[path = "store/shape.rs"]
mod shape;
#[path = "store/work.rs"]
mod work;
