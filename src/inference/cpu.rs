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
pub(super) struct CpuBackend {
    encoder: Encoder,
    dimension: usize,
}

impl CpuBackend {
    /// Loads an encoder for a kernel that this CPU has; of each vector, `dimension` components are
    /// kept.
    pub(super) fn load(
        architecture: &Architecture,
        pooling: Pooling,
        dimension: usize,
        weights: VarBuilder<'_>,
        kernel: encoder::Kernel,
        threads: usize,
    ) -> candle_core::Result<Self> {
        let encoder = Encoder::load(architecture, pooling, weights, kernel, threads)?;
        Ok(Self { encoder, dimension })
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
        self.dimension
    }

    fn embed(&self, batch: &[Encoding]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let architecture = self.encoder.architecture();
        check(batch, architecture.vocabulary, architecture.max_tokens())?;
        let texts: Vec<&[u32]> = batch.iter().map(|text| text.ids.as_slice()).collect();
        let mut vectors = self.encoder.embed(&texts);
        for vector in &mut vectors {
            pooling::finish(vector, self.dimension)?;
        }
        Ok(vectors)
    }
}
