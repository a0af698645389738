//! Vecmill: an actor runtime that turns text into vectors, asynchronously, for many tenants,
//! without losing any. ARCHITECTURE.md is the map of this crate.

pub mod domain;
pub mod inference;
pub mod store;
