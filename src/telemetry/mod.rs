//! Tracing set-up, and every metric in one place.

mod chain;
mod logging;
pub mod metrics;

pub use chain::Chain;
pub use logging::init;
