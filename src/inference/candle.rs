//! BERT on candle: the reference computation, on CPU or GPU, over padded batches.

use candle_core::{Device, Error, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config, DTYPE};

use super::{
    EmbedError, EmbeddingBackend, Encoding,
    pooling::{self, Pooling},
};

/// A BERT encoder with pooling.
pub(super) struct CandleBackend {
    model: BertModel,
    pooling: Pooling,
    dimension: usize,
    vocabulary: usize,
    max_tokens: usize,
    padding: u32,
}

impl CandleBackend {
    /// Loads weights in the safetensors format onto a device.
    pub(super) fn load(
        config: &Config,
        pooling: Pooling,
        weights: &[u8],
        device: &Device,
    ) -> Result<Self> {
        let weights = VarBuilder::from_slice_safetensors(weights, DTYPE, device)?;
        Ok(Self {
            model: BertModel::load(weights, config)?,
            pooling,
            dimension: config.hidden_size,
            vocabulary: config.vocab_size,
            max_tokens: config.max_position_embeddings,
            padding: config.pad_token_id as u32,
        })
    }

    /// Checks what candle would only report by a position in a tensor, or not at all.
    fn check(&self, batch: &[Encoding]) -> std::result::Result<(), EmbedError> {
        for text in batch {
            let fault = if text.ids.is_empty() {
                "a text has no tokens"
            } else if text.ids.len() > self.max_tokens {
                "a text has more tokens than the model has positions"
            } else if text.ids.iter().any(|&id| id as usize >= self.vocabulary) {
                "a token is not in the model's vocabulary"
            } else {
                continue;
            };
            return Err(EmbedError::Model(fault.to_owned()));
        }
        Ok(())
    }

    fn forward(&self, batch: &[Encoding]) -> Result<Vec<Vec<f32>>> {
        let longest = batch.iter().map(|text| text.ids.len()).max().unwrap_or(0);
        let shape = (batch.len(), longest);
        let mut ids = Vec::with_capacity(batch.len() * longest);
        let mut mask = Vec::with_capacity(batch.len() * longest);
        for text in batch {
            ids.extend_from_slice(&text.ids);
            mask.resize(ids.len(), 1_f32);
            ids.resize(mask.len() + longest - text.ids.len(), self.padding);
            mask.resize(ids.len(), 0.0);
        }
        let device = &self.model.device;
        let ids = Tensor::from_vec(ids, shape, device)?;
        let mask = Tensor::from_vec(mask, shape, device)?;
        let hidden = self.model.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
        self.pooling.pool(&hidden, &mask)?.to_vec2()
    }
}

impl EmbeddingBackend for CandleBackend {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn pads_batches(&self) -> bool {
        true
    }

    fn embed(&self, batch: &[Encoding]) -> std::result::Result<Vec<Vec<f32>>, EmbedError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.check(batch)?;
        let mut vectors = self.forward(batch).map_err(embed_error)?;
        for vector in &mut vectors {
            pooling::normalise(vector)?;
        }
        Ok(vectors)
    }
}

/// Tells a fault of the device from a fault of the computation.
fn embed_error(error: Error) -> EmbedError {
    match error {
        Error::Context { inner, .. }
        | Error::WithPath { inner, .. }
        | Error::WithBacktrace { inner, .. } => embed_error(*inner),
        Error::Cuda(error) => EmbedError::Device(first_line(&error.to_string())),
        error => EmbedError::Model(first_line(&error.to_string())),
    }
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_of_the_device_is_told_from_one_of_the_batch() {
        let device = Error::Cuda("out of memory".into()).context("while embedding").bt();
        assert!(matches!(embed_error(device), EmbedError::Device(why) if why == "out of memory"));
        let model = Error::msg("shape mismatch\nframes");
        assert!(matches!(embed_error(model), EmbedError::Model(why) if why == "shape mismatch"));
    }
}
