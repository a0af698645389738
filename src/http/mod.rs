//! The HTTP API: requests are checked here, answered by [`crate::runtime::Runtime`], and every
//! error leaves as `{"detail": "<what and what to do>"}`.

mod access;
mod admin;
mod body;
mod errors;
mod fields;
mod health;
mod limits;
mod nodes;
mod params;
mod requests;
mod server;
mod starting;
mod types;
mod views;

pub use limits::HttpConfig;
pub use server::{openapi_document, routes, serve};
pub use starting::{Gate, Routes};
