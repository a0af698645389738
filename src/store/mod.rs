//! Every database query of the program.

mod types;

pub use types::*;
