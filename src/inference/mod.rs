//! Tokenise, run the model, pool. Knows nothing of jobs.

mod backend;
mod candle;
mod catalog;
mod check;
mod compute;
mod cpu;
mod device;
mod error;
mod files;
mod hash;
mod hub;
mod json;
mod load;
mod locate;
mod modules;
mod pooling;
mod sentence;
mod shape;
mod thread;
mod tokenizer;
mod weights;

pub use backend::{
    Description, EmbedError, EmbeddingBackend, Encoding, Model, TextEncoder, encode_all,
};
pub use catalog::CatalogModel;
pub use compute::{Computation, ComputeConfig, Dtype, Kernel};
pub use error::LoadError;
pub use hash::{HashBackend, HashEncoder};
pub use hub::{HubConfig, ProgressFn};
pub use load::{BackendKind, ModelConfig, dimension_of, load};
pub use locate::{ModelListing, list, pull};
pub use sentence::Prompts;
pub use thread::BackendThread;
