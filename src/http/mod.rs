//! The HTTP API: requests are checked here, answered by [`crate::runtime::Runtime`], and every
//! error leaves as `{"detail": "<what and what to do>"}`.

mod access;
mod admin;
mod admit;
mod answer;
mod body;
mod calls;
mod connections;
mod cursor;
mod debug;
mod errors;
mod fields;
mod health;
mod info;
mod json;
mod limits;
mod memory;
mod names;
mod nodes;
mod orders;
mod params;
mod reports;
mod requests;
mod schema;
mod server;
mod starting;
mod types;
mod views;

pub use admit::Hosts;
pub use connections::serve;
pub use limits::HttpConfig;
pub use memory::Memory;
pub use server::{admitting, openapi_document, routes};
pub use starting::{Gate, Routes};
