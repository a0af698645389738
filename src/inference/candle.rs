//! Encoders on candle: the reference computation, on CPU or GPU, over padded batches.

use candle_core::{Device, Error, Result, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{
    bert::BertModel,
    xlm_roberta::{self, XLMRobertaModel},
};
use encoder::{Architecture, Family, Pooling};
use serde_json::{Value, json};

use super::{
    EmbedError, EmbeddingBackend, Encoding,
    check::check,
    error,
    pooling::{self, pool},
};

/// An encoder with pooling.
pub(super) struct CandleBackend {
    model: Model,
    device: Device,
    pooling: Pooling,
    architecture: Architecture,
    dimension: usize,
    padding: u32,
}

enum Model {
    Bert(BertModel),
    Roberta(XLMRobertaModel),
}

/// What transformers calls GELU by way of the hyperbolic tangent (Hendrycks and Gimpel, 2016).
const TANH_GELUS: [&str; 3] = ["gelu_new", "gelu_fast", "gelu_pytorch_tanh"];

/// Whether candle has an activation, by its name in transformers, for a family.
pub(super) fn has_activation(family: Family, name: &Value) -> bool {
    match family {
        Family::Bert => bert_activation(name).is_some(),
        Family::Roberta => roberta_activation(name).is_some(),
        Family::DistilBert => false,
    }
}

fn bert_activation(name: &Value) -> Option<&str> {
    match name.as_str()? {
        // Candle has one name for what transformers calls by several.
        tanh if TANH_GELUS.contains(&tanh) => Some("geluapproximate"),
        "gelu" | "gelu_python" => Some("gelu"),
        "relu" => Some("relu"),
        _ => None,
    }
}

fn roberta_activation(name: &Value) -> Option<Activation> {
    match name.as_str()? {
        tanh if TANH_GELUS.contains(&tanh) => Some(Activation::NewGelu),
        "gelu" | "gelu_python" => Some(Activation::Gelu),
        "relu" => Some(Activation::Relu),
        "silu" | "swish" => Some(Activation::Silu),
        _ => None,
    }
}

impl CandleBackend {
    /// Whether candle computes this encoder as its authors do; its DistilBERT has another GELU.
    pub(super) fn knows(architecture: &Architecture) -> bool {
        architecture.family != Family::DistilBert
    }

    /// Loads an encoder that candle [`knows`](Self::knows). `config` is the model's
    /// `config.json`; of each vector, `dimension` components are kept.
    pub(super) fn load(
        architecture: Architecture,
        config: &Value,
        pooling: Pooling,
        dimension: usize,
        weights: VarBuilder<'_>,
    ) -> Result<Self> {
        let device = weights.device().clone();
        let padding = architecture.padding.unwrap_or(0);
        let act = config.get("hidden_act").unwrap_or(&Value::Null);
        let model = match architecture.family {
            Family::Bert => {
                let act = bert_activation(act).unwrap_or("gelu");
                Model::Bert(BertModel::load(weights, &parse(shape(&architecture, act.into()))?)?)
            }
            Family::Roberta => {
                let name = "roberta";
                let is_below = weights.contains_tensor("roberta.embeddings.word_embeddings.weight");
                let weights = if is_below { weights.pp(name) } else { weights };
                let act = serde_json::to_value(roberta_activation(act).unwrap_or_default());
                let act = act.map_err(Error::wrap)?;
                let config: xlm_roberta::Config = parse(shape(&architecture, act))?;
                Model::Roberta(XLMRobertaModel::new(&config, weights)?)
            }
            Family::DistilBert => return Err(Error::msg("candle's DistilBERT is not used")),
        };
        Ok(Self { model, device, pooling, architecture, dimension, padding })
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
        let lengths: Vec<usize> = batch.iter().map(|text| text.ids.len()).collect();
        pool(&self.pooling, &hidden, &lengths)?.to_vec2()
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
        check(batch, self.architecture.vocabulary, self.architecture.max_tokens())?;
        let mut vectors = self.forward(batch).map_err(embed_error)?;
        for vector in &mut vectors {
            pooling::finish(vector, self.dimension)?;
        }
        Ok(vectors)
    }
}

/// What candle's models ask for; the rest of the model's own file may lack.
fn shape(of: &Architecture, hidden_act: Value) -> Value {
    json!({
        "vocab_size": of.vocabulary, "hidden_size": of.hidden, "num_hidden_layers": of.layers,
        "num_attention_heads": of.heads, "intermediate_size": of.inner, "hidden_act": hidden_act,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": of.positions, "type_vocab_size": of.token_types,
        "initializer_range": 0.02, "layer_norm_eps": of.epsilon,
        "position_embedding_type": "absolute", "pad_token_id": of.padding.unwrap_or(0),
    })
}

fn parse<T: serde::de::DeserializeOwned>(config: Value) -> Result<T> {
    serde_json::from_value(config).map_err(Error::wrap)
}

/// Tells a fault of the device from a fault of the computation.
fn embed_error(error: Error) -> EmbedError {
    match error {
        Error::Context { inner, .. }
        | Error::WithPath { inner, .. }
        | Error::WithBacktrace { inner, .. } => embed_error(*inner),
        Error::Cuda(_) => EmbedError::Device(error::plain(error)),
        error => EmbedError::Model(error::plain(error)),
    }
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
