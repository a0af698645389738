//! Tokenise, run the model, pool. Knows nothing of jobs.

mod backend;

pub use backend::{EmbedError, EmbeddingBackend, Encoding, Model, TextEncoder};
