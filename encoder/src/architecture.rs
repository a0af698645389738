//! Which encoder a model's `config.json` describes.

use serde::Deserialize;

/// Encoders that differ in the names of their weights and in where positions begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// BERT (Devlin et al., 2018), and all that load as one: MiniLM, BGE, E5, GTE.
    Bert,
    /// RoBERTa (Liu et al., 2019), XLM-RoBERTa, CamemBERT: positions begin after the padding's.
    Roberta,
    /// DistilBERT (Sanh et al., 2019): no token types.
    DistilBert,
}

/// What stands between the two products of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · Φ(x)`.
    #[serde(alias = "gelu_python")]
    Gelu,
    /// The positive part.
    Relu,
}

/// The shape of an encoder.
#[derive(Debug, Clone)]
pub struct Architecture {
    /// Whose names the weights have.
    pub family: Family,
    /// Tokens it knows.
    pub vocabulary: usize,
    /// Components of a token's vector.
    pub hidden: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads of a layer.
    pub heads: usize,
    /// Components between the two products of a feed-forward layer.
    pub inner: usize,
    /// What stands between them; none when only another program knows it.
    pub activation: Option<Activation>,
    /// Added to the variance when a vector is normalised.
    pub epsilon: f64,
    /// Positions in the table.
    pub positions: usize,
    /// The position of a text's first token.
    pub first_position: usize,
    /// The token that takes no place in a text and has the position before the first; none where
    /// every token takes one.
    pub padding: Option<u32>,
    /// Token types in the table; 0 where there is none. All texts are of the first.
    pub token_types: usize,
}

impl Architecture {
    /// The longest text, in tokens.
    pub fn max_tokens(&self) -> usize {
        self.positions.saturating_sub(self.first_position)
    }
}
