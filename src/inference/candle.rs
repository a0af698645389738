//! Encoders on candle: the reference computation, on CPU or GPU, over padded batches.

use candle_core::{Device, Error, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{
    bert::BertModel,
    xlm_roberta::{self, XLMRobertaModel},
};
use encoder::{Architecture, Family, Pooling};
use serde_json::Value;

use super::{
    EmbedError, EmbeddingBackend, Encoding,
    check::check,
    pooling::{self, pool},
};

/// An encoder with pooling.
pub(super) struct CandleBackend {
    model: Model,
    device: Device,
    pooling: Pooling,
    architecture: Architecture,
    padding: u32,
}

enum Model {
    Bert(BertModel),
    Roberta(XLMRobertaModel),
}

/// What transformers calls GELU by way of the hyperbolic tangent (Hendrycks and Gimpel, 2016).
const TANH_GELUS: [&str; 3] = ["gelu_new", "gelu_fast", "gelu_pytorch_tanh"];

impl CandleBackend {
    /// Whether candle computes this encoder as its authors do; its DistilBERT has another GELU.
    pub(super) fn knows(architecture: &Architecture) -> bool {
        architecture.family != Family::DistilBert
    }

    /// Loads an encoder that candle [`knows`](Self::knows). `config` is the model's
    /// `config.json`.
    pub(super) fn load(
        architecture: Architecture,
        config: &Value,
        pooling: Pooling,
        weights: VarBuilder<'_>,
    ) -> Result<Self> {
        let device = weights.device().clone();
        let padding = config.get("pad_token_id").and_then(Value::as_u64).unwrap_or_default();
        let model = match architecture.family {
            Family::Bert => {
                let mut config = config.clone();
                // Candle has one name for what transformers calls by several.
                if TANH_GELUS.iter().any(|name| config["hidden_act"] == *name) {
                    config["hidden_act"] = "geluapproximate".into();
                }
                Model::Bert(BertModel::load(weights, &parse(&config)?)?)
            }
            Family::Roberta => {
                let name = "roberta";
                let is_below = weights.contains_tensor("roberta.embeddings.word_embeddings.weight");
                let weights = if is_below { weights.pp(name) } else { weights };
                let mut config = config.clone();
                // Newer checkpoints leave the only kind out.
                config["position_embedding_type"] = "absolute".into();
                let config: xlm_roberta::Config = parse(&config)?;
                Model::Roberta(XLMRobertaModel::new(&config, weights)?)
            }
            Family::DistilBert => return Err(Error::msg("candle's DistilBERT is not used")),
        };
        Ok(Self { model, device, pooling, architecture, padding: padding as u32 })
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
        let ids = Tensor::from_vec(ids, shape, &self.device)?;
        let mask = Tensor::from_vec(mask, shape, &self.device)?;
        let types = ids.zeros_like()?;
        let hidden = match &self.model {
            Model::Bert(model) => model.forward(&ids, &types, Some(&mask))?,
            Model::Roberta(model) => model.forward(&ids, &mask, &types, None, None, None)?,
        };
        pool(self.pooling, &hidden, &mask)?.to_vec2()
    }
}

impl EmbeddingBackend for CandleBackend {
    fn dimension(&self) -> usize {
        self.architecture.hidden
    }

    fn pads_batches(&self) -> bool {
        true
    }

    fn embed(&self, batch: &[Encoding]) -> std::result::Result<Vec<Vec<f32>>, EmbedError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        check(batch, self.architecture.vocabulary, self.architecture.max_tokens())?;
        let mut vectors = self.forward(batch).map_err(embed_error)?;
        for vector in &mut vectors {
            pooling::normalise(vector)?;
        }
        Ok(vectors)
    }
}

fn parse<T: serde::de::DeserializeOwned>(config: &Value) -> Result<T> {
    serde_json::from_value(config.clone())
        .map_err(|error| Error::msg(format!("config.json: {error}")))
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
