//! Encoders on the CPU, on kernels of our own over packed batches.

use candle_nn::VarBuilder;
use encoder::{Architecture, Encoder, Pooling};

use super::{
    EmbedError, EmbeddingBackend, Encoding,
    check::check,
    compute::{Dtype, Kernel},
    pooling,
};

/// An encoder with pooling, on threads of its own.
pub(super) struct CpuBackend(Encoder);

impl CpuBackend {
    /// Loads an encoder for a kernel that this CPU has.
    pub(super) fn load(
        architecture: &Architecture,
        pooling: Pooling,
        weights: VarBuilder<'_>,
        kernel: encoder::Kernel,
        threads: usize,
    ) -> candle_core::Result<Self> {
        Encoder::load(architecture, pooling, weights, kernel, threads).map(Self)
    }
}

/// The fastest kernel that the operator allows, if this CPU has one.
pub(super) fn choose(kernel: Kernel, dtype: Dtype) -> Option<encoder::Kernel> {
    encoder::Kernel::ALL.into_iter().find(|&candidate| {
        let fits = match dtype {
            Dtype::Auto => true,
            Dtype::F32 => !candidate.is_bf16(),
            Dtype::Bf16 => candidate.is_bf16(),
        };
        let is_allowed = kernel == Kernel::Auto || kernel == Kernel::Ours(candidate);
        is_allowed && fits && candidate.is_available()
    })
}

impl EmbeddingBackend for CpuBackend {
    fn dimension(&self) -> usize {
        self.0.architecture().hidden
    }

    fn embed(&self, batch: &[Encoding]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let architecture = self.0.architecture();
        check(batch, architecture.vocabulary, architecture.max_tokens())?;
        let texts: Vec<&[u32]> = batch.iter().map(|text| text.ids.as_slice()).collect();
        let mut vectors = self.0.embed(&texts);
        for vector in &mut vectors {
            pooling::normalise(vector)?;
        }
        Ok(vectors)
    }
}
