//! Which model, and how it is computed.

use std::path::PathBuf;

use super::{ConfigError, parse::check};

/// The variables and flags of the model; see [`super::Settings`].
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct ModelOptions {
    /// Directory of fetched models
    #[arg(long, env = "VECMILL_MODELS_DIR", default_value = "./models", value_name = "DIR")]
    vecmill_models_dir: String,
    /// candle (also sentence-transformers) or hash (no model; for tests and benches)
    #[arg(long, env = "EMBEDDING_BACKEND", default_value = "candle", value_name = "NAME")]
    embedding_backend: String,
    /// A hub id (a bare name means sentence-transformers/<name>) or a directory
    #[arg(long, env = "EMBEDDING_MODEL", default_value = "all-MiniLM-L6-v2", value_name = "MODEL")]
    embedding_model: String,
    /// cpu, cuda, cuda:N or auto
    #[arg(long, env = "EMBEDDING_DEVICE", default_value = "auto", value_name = "DEVICE")]
    embedding_device: String,
    /// Operands of matrix products on a CPU: f32, bf16, or auto, bf16 where the CPU multiplies it
    #[arg(long, env = "EMBEDDING_DTYPE", default_value = "auto", value_name = "TYPE")]
    embedding_dtype: String,
    /// Code that computes on a CPU: auto, avx512-bf16, avx512, avx2, portable or candle
    #[arg(long, env = "EMBEDDING_KERNEL", default_value = "auto", value_name = "NAME")]
    embedding_kernel: String,
    /// Threads that compute on a CPU; 0: one for each core
    #[arg(long, env = "EMBEDDING_THREADS", default_value = "0", value_name = "N")]
    embedding_threads: String,
}

/// Which model, on what.
#[derive(Debug, Clone)]
pub struct ModelSettings {
    /// `hash` instead of a model.
    pub hash_backend: bool,
    /// A hub id, a bare name or a directory.
    pub model: String,
    /// `cpu`, `cuda`, `cuda:N` or `auto`.
    pub device: String,
    /// `auto`, `f32` or `bf16`.
    pub dtype: String,
    /// `auto` or the name of a kernel.
    pub kernel: String,
    /// 0: one for each core.
    pub threads: usize,
    /// Where fetched models lie.
    pub models_dir: PathBuf,
}

/// The values of `EMBEDDING_DTYPE`.
const DTYPES: [&str; 3] = ["auto", "f32", "bf16"];
/// The values of `EMBEDDING_KERNEL`.
const KERNELS: [&str; 6] = ["auto", "avx512-bf16", "avx512", "avx2", "portable", "candle"];

impl ModelOptions {
    /// Checks every value.
    pub fn check(&self) -> Result<ModelSettings, ConfigError> {
        Ok(ModelSettings {
            hash_backend: check!(self.embedding_backend, backend),
            model: check!(self.embedding_model, non_empty),
            device: check!(self.embedding_device, device),
            dtype: check!(self.embedding_dtype, name, &DTYPES),
            kernel: check!(self.embedding_kernel, name, &KERNELS),
            threads: check!(self.embedding_threads, integer, 0..=1024) as usize,
            models_dir: check!(self.vecmill_models_dir, directory),
        })
    }
}
