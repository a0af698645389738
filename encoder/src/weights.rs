//! From a checkpoint to packed weights.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    architecture::{Activation, Architecture, Family},
    forward::{Embeddings, Layer, Layers},
    kernels::{Arena, Heads, LayerNorm, Packed, Simd},
};

/// The names of a layer's weights.
struct Names {
    queries: &'static str,
    keys: &'static str,
    values: &'static str,
    attention_output: &'static str,
    attention_norm: &'static str,
    inner: &'static str,
    output: &'static str,
    output_norm: &'static str,
}

const BERT: Names = Names {
    queries: "attention.self.query",
    keys: "attention.self.key",
    values: "attention.self.value",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    inner: "intermediate.dense",
    output: "output.dense",
    output_norm: "output.LayerNorm",
};

const DISTILBERT: Names = Names {
    queries: "attention.q_lin",
    keys: "attention.k_lin",
    values: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    inner: "ffn.lin1",
    output: "ffn.lin2",
    output_norm: "output_layer_norm",
};

/// Reads the weights of an encoder and packs them. Fails when one is missing or of a wrong shape.
pub(crate) fn load<S: Simd>(
    simd: S,
    architecture: &Architecture,
    weights: VarBuilder<'_>,
) -> Result<Layers<S>> {
    let Architecture { family, hidden, .. } = *architecture;
    let weights = root(family, weights);
    let (names, layers) = match family {
        Family::Bert | Family::Roberta => (BERT, weights.pp("encoder.layer")),
        Family::DistilBert => (DISTILBERT, weights.pp("transformer.layer")),
    };
    let reader = Reader {
        simd,
        hidden,
        inner: architecture.inner,
        epsilon: architecture.epsilon as f32,
        with_sums: S::SUMS_PAY && may_have_sums(architecture),
    };
    let heads = Heads { count: architecture.heads, width: hidden / architecture.heads };
    let mut arena = Arena::new(arena_size::<S>(architecture, reader.with_sums));
    let layer = |index| reader.layer(&mut arena, &layers.pp(index), &names, heads);
    Ok(Layers {
        simd,
        hidden,
        heads,
        activation: architecture.activation.unwrap_or(Activation::Gelu),
        embeddings: reader.embeddings(&weights.pp("embeddings"), architecture)?,
        layers: (0..architecture.layers).map(layer).collect::<Result<_>>()?,
    })
}

/// Checkpoints of a larger model keep the encoder under a name of its own.
fn root(family: Family, weights: VarBuilder<'_>) -> VarBuilder<'_> {
    let name = match family {
        Family::Bert => "bert",
        Family::Roberta => "roberta",
        Family::DistilBert => "distilbert",
    };
    let is_below = weights.contains_tensor(&format!("{name}.embeddings.word_embeddings.weight"));
    if is_below { weights.pp(name) } else { weights }
}

/// The most memory, in bytes, that a model may take for the sums of its weights.
const MOST_SUMS: usize = 128 << 20;

/// Whether the layers of a model are so small that their weights may have sums beside them.
fn may_have_sums(of: &Architecture) -> bool {
    size_of_sums::<f32>(of) <= MOST_SUMS
}

/// Weights of all layers, without biases.
fn weights_of_layers(of: &Architecture) -> usize {
    of.layers * of.hidden * (4 * of.hidden + 2 * of.inner)
}

/// Bytes of the sums of all weights: five parts where the weights have four.
fn size_of_sums<T>(of: &Architecture) -> usize {
    weights_of_layers(of) * size_of::<T>() / 4 * 5
}

/// Bytes in which all packed weights have room, unless much of them is what fills panels.
fn arena_size<S: Simd>(of: &Architecture, with_sums: bool) -> usize {
    let weights = weights_of_layers(of) * size_of::<S::Element>();
    let sums = if with_sums { size_of_sums::<S::Element>(of) } else { 0 };
    weights + sums + weights / 16 + (1 << 20)
}

/// What all layers share.
struct Reader<S> {
    simd: S,
    hidden: usize,
    inner: usize,
    epsilon: f32,
    with_sums: bool,
}

impl<S: Simd> Reader<S> {
    fn embeddings(&self, weights: &VarBuilder<'_>, of: &Architecture) -> Result<Embeddings> {
        let table = |rows: usize, name: &str| -> Result<Vec<f32>> {
            values(&weights.get((rows, self.hidden), &format!("{name}.weight"))?)
        };
        let mut positions = table(of.positions, "position_embeddings")?;
        if of.token_types > 0 {
            let types = table(of.token_types, "token_type_embeddings")?;
            for row in positions.chunks_exact_mut(self.hidden) {
                row.iter_mut().zip(&types).for_each(|(position, kind)| *position += kind);
            }
        }
        Ok(Embeddings {
            words: table(of.vocabulary, "word_embeddings")?,
            positions,
            first_position: of.first_position,
            padding: of.padding,
            norm: self.norm(&weights.pp("LayerNorm"))?,
        })
    }

    fn layer(
        &self,
        arena: &mut Arena,
        weights: &VarBuilder<'_>,
        names: &Names,
        heads: Heads,
    ) -> Result<Layer<S>> {
        let (hidden, inner) = (self.hidden, self.inner);
        let mut pack = |(weights, bias): (Vec<f32>, Vec<f32>)| {
            let packed = Packed::new(arena, &weights, &bias);
            if self.with_sums { packed.with_sums(self.simd, arena) } else { packed }
        };
        // Attention raises 2, not e, to the scores.
        let scale = std::f32::consts::LOG2_E / (heads.width as f32).sqrt();
        let mut qkv = linear(&weights.pp(names.queries), hidden, hidden)?;
        qkv.0.iter_mut().chain(&mut qkv.1).for_each(|query| *query *= scale);
        for name in [names.keys, names.values] {
            let (weights, bias) = linear(&weights.pp(name), hidden, hidden)?;
            qkv.0.extend(weights);
            qkv.1.extend(bias);
        }
        Ok(Layer {
            qkv: pack(qkv),
            attention_output: pack(linear(&weights.pp(names.attention_output), hidden, hidden)?),
            attention_norm: self.norm(&weights.pp(names.attention_norm))?,
            inner: pack(linear(&weights.pp(names.inner), hidden, inner)?),
            output: pack(linear(&weights.pp(names.output), inner, hidden)?),
            output_norm: self.norm(&weights.pp(names.output_norm))?,
        })
    }

    /// The first checkpoints call the parameters gamma and beta.
    fn norm(&self, weights: &VarBuilder<'_>) -> Result<LayerNorm> {
        let (weight, bias) =
            if weights.contains_tensor("gamma") { ("gamma", "beta") } else { ("weight", "bias") };
        Ok(LayerNorm {
            weight: values(&weights.get(self.hidden, weight)?)?,
            bias: values(&weights.get(self.hidden, bias)?)?,
            epsilon: self.epsilon,
        })
    }
}

/// Weights (outputs × inputs) and bias of a linear layer.
fn linear(weights: &VarBuilder<'_>, inputs: usize, outputs: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    let matrix = values(&weights.get((outputs, inputs), "weight")?)?;
    Ok((matrix, values(&weights.get(outputs, "bias")?)?))
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn architecture(layers: usize, hidden: usize) -> Architecture {
        Architecture {
            family: Family::Bert,
            vocabulary: 30_522,
            hidden,
            layers,
            heads: hidden / 32,
            inner: 4 * hidden,
            activation: Some(Activation::Gelu),
            epsilon: 1e-12,
            positions: 512,
            first_position: 0,
            padding: None,
            token_types: 2,
        }
    }

    #[test]
    fn only_small_models_take_more_memory_to_be_faster() {
        assert!(may_have_sums(&architecture(6, 384)), "all-MiniLM-L6-v2");
        assert!(may_have_sums(&architecture(12, 384)), "bge-small");
        assert!(!may_have_sums(&architecture(12, 768)), "bge-base");
    }
}
