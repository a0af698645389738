//! Text encoders of the BERT architecture on CPUs: token ids in, vectors out.
//!
//! Batches are packed: the tokens of their texts stand one after another, and nothing is padded.
//! A large batch is cut into shards of whole texts, and each thread computes a shard from the
//! first layer to the last, so that no thread ever waits for another. A batch too small for that
//! is computed by all threads together, layer by layer.

mod architecture;
mod engine;
mod forward;
mod kernel;
mod kernels;
mod pooling;
pub mod probe;
mod shards;
mod weights;

use candle_nn::VarBuilder;

pub use architecture::{Activation, Architecture, Family};
use engine::{Embed, Load};
pub use kernel::Kernel;
pub use pooling::{Mode, Pooling};

/// An encoder with pooling, and the threads that it computes on.
pub struct Encoder {
    engine: Box<dyn Embed>,
    architecture: Architecture,
}

impl Encoder {
    /// Loads an encoder. `threads` is at least 1, counting the thread that will ask.
    ///
    /// # Errors
    /// Weights are missing or of a wrong shape, the CPU cannot run the kernel, or the system gives
    /// no threads.
    pub fn load(
        architecture: &Architecture,
        pooling: Pooling,
        weights: VarBuilder<'_>,
        kernel: Kernel,
        threads: usize,
    ) -> candle_core::Result<Self> {
        let load = Load { architecture, pooling, weights, threads: threads.max(1) };
        let engine = kernel.with(load).unwrap_or_else(|| {
            Err(candle_core::Error::msg(format!("this CPU cannot run the kernel {kernel:?}")))
        })?;
        Ok(Self { engine, architecture: architecture.clone() })
    }

    /// Its shape.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The vectors of texts, given by their token ids, in order and not normalised.
    ///
    /// One call at a time computes on all threads; others meanwhile compute on their own. With
    /// [`Kernel::Avx512`], the last bits of a text's vector depend on the batch that it is in.
    ///
    /// # Panics
    /// A text is empty or has more tokens than there are positions, or a token is not in the
    /// vocabulary.
    pub fn embed(&self, texts: &[&[u32]]) -> Vec<Vec<f32>> {
        self.engine.embed(texts)
    }
}
