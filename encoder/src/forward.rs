//! The forward pass of an encoder over a packed batch.

use std::ops::Range;

use crate::architecture::Activation;
use crate::kernels::{
    AddTo, Gelu, Heads, LayerNorm, Matrix, Packed, Parts, Relu, Scratches, Simd, Store, Team,
    attention, layer_norm, matmul,
};

/// The tables that turn tokens into vectors, tokens × components and positions × components.
pub(crate) struct Embeddings {
    pub(crate) words: Vec<f32>,
    /// The vector of the only token type is in every position's.
    pub(crate) positions: Vec<f32>,
    /// See [`Architecture`](crate::Architecture).
    pub(crate) first_position: usize,
    /// See [`Architecture`](crate::Architecture).
    pub(crate) padding: Option<u32>,
    pub(crate) norm: LayerNorm,
}

/// One transformer layer, normalised after each half as in BERT.
pub(crate) struct Layer<S: Simd> {
    /// Queries, keys and values as one product; the queries as [`attention`] wants them.
    pub(crate) qkv: Packed<S>,
    pub(crate) attention_output: Packed<S>,
    pub(crate) attention_norm: LayerNorm,
    pub(crate) inner: Packed<S>,
    pub(crate) output: Packed<S>,
    pub(crate) output_norm: LayerNorm,
}

/// An encoder of the BERT architecture (Devlin et al., 2018).
pub(crate) struct Layers<S: Simd> {
    pub(crate) simd: S,
    pub(crate) hidden: usize,
    pub(crate) heads: Heads,
    pub(crate) activation: Activation,
    pub(crate) embeddings: Embeddings,
    pub(crate) layers: Vec<Layer<S>>,
}

/// The activations of a batch, kept from batch to batch.
pub(crate) struct Workspace<S: Simd> {
    rows: usize,
    longest: usize,
    members: usize,
    /// Tokens × components.
    hidden: Matrix<f32>,
    /// The same as operands.
    input: Matrix<S::Element>,
    qkv: Matrix<S::Element>,
    context: Matrix<S::Element>,
    inner: Matrix<S::Element>,
    parts: Parts<S>,
    scratches: Scratches<S>,
}

impl<S: Simd> Layer<S> {
    fn products(&self) -> [&Packed<S>; 4] {
        [&self.qkv, &self.attention_output, &self.inner, &self.output]
    }
}

impl<S: Simd> Layers<S> {
    /// Memory for batches of so many tokens in texts of up to `longest`, on a team of so many.
    pub(crate) fn workspace(&self, rows: usize, longest: usize, members: usize) -> Workspace<S> {
        let hidden = self.hidden.next_multiple_of(S::WIDTH);
        let widest = |of: fn(&Layer<S>) -> &Packed<S>| {
            self.layers.iter().map(|layer| of(layer).padded_outputs()).max().unwrap_or(0)
        };
        let summed = self.layers.iter().flat_map(Layer::products).map(Packed::summed_inputs).max();
        Workspace {
            rows,
            longest,
            members,
            hidden: Matrix::new(rows, hidden),
            input: Matrix::new(rows, hidden),
            qkv: Matrix::new(rows, widest(|layer| &layer.qkv)),
            context: Matrix::new(rows, hidden),
            inner: Matrix::new(rows, widest(|layer| &layer.inner)),
            parts: Parts::new(summed.unwrap_or(0)),
            scratches: Scratches::new(members, longest, self.heads),
        }
    }

    /// Computes the vectors of all tokens of the texts, given by their token ids, one text after
    /// another. Returns the rows of the workspace that each text has.
    ///
    /// Panics on ids and positions that the tables do not have, and on a workspace that is too
    /// small.
    pub(crate) fn forward(
        &self,
        team: &Team<'_>,
        texts: &[&[u32]],
        workspace: &mut Workspace<S>,
    ) -> Vec<Range<usize>> {
        let mut rows = 0;
        let ranges: Vec<Range<usize>> = texts
            .iter()
            .map(|text| {
                let first = rows;
                rows += text.len();
                first..rows
            })
            .collect();
        assert!(workspace.fits(texts, team));
        let Workspace { hidden, input, qkv, context, inner, parts, scratches, .. } = workspace;
        let simd = self.simd;
        for (text, range) in texts.iter().zip(&ranges) {
            for ((&id, position), row) in
                text.iter().zip(self.embeddings.positions_of(text)).zip(range.clone())
            {
                self.embeddings.look_up(id as usize, position, hidden.row_mut(row), self.hidden);
            }
        }
        layer_norm(simd, rows, &self.embeddings.norm, hidden, input);
        for layer in &self.layers {
            matmul(simd, team, rows, input, &layer.qkv, Store, qkv, parts);
            attention(simd, team, &ranges, self.heads, qkv, context, scratches);
            matmul(simd, team, rows, context, &layer.attention_output, AddTo, hidden, parts);
            layer_norm(simd, rows, &layer.attention_norm, hidden, input);
            match self.activation {
                Activation::Gelu => {
                    matmul(simd, team, rows, input, &layer.inner, Gelu, inner, parts)
                }
                Activation::Relu => {
                    matmul(simd, team, rows, input, &layer.inner, Relu, inner, parts)
                }
            }
            matmul(simd, team, rows, inner, &layer.output, AddTo, hidden, parts);
            layer_norm(simd, rows, &layer.output_norm, hidden, input);
        }
        ranges
    }

    /// The vectors of the tokens in rows that [`forward`](Self::forward) gave.
    pub(crate) fn tokens<'a>(
        &self,
        workspace: &'a Workspace<S>,
        rows: Range<usize>,
    ) -> impl ExactSizeIterator<Item = &'a [f32]> {
        let hidden = self.hidden;
        rows.map(move |row| &workspace.hidden.row(row)[..hidden])
    }
}

impl Embeddings {
    /// The position of each token of a text. What is padding to the model is passed over, also
    /// where it stands in the text itself.
    fn positions_of(&self, text: &[u32]) -> impl Iterator<Item = usize> {
        let mut next = self.first_position;
        text.iter().map(move |&id| {
            if Some(id) == self.padding {
                return self.first_position - 1;
            }
            next += 1;
            next - 1
        })
    }

    fn look_up(&self, id: usize, position: usize, to: &mut [f32], width: usize) {
        let word = &self.words[id * width..][..width];
        let position = &self.positions[position * width..][..width];
        for ((to, word), position) in to.iter_mut().zip(word).zip(position) {
            *to = word + position;
        }
    }
}

impl<S: Simd> Workspace<S> {
    /// Makes room for a batch, and keeps the room that there was.
    pub(crate) fn fit(&mut self, layers: &Layers<S>, texts: &[&[u32]], team: &Team<'_>) {
        if self.fits(texts, team) {
            return;
        }
        let rows = texts.iter().map(|text| text.len()).sum::<usize>().max(self.rows);
        let longest = texts.iter().map(|text| text.len()).fold(self.longest, usize::max);
        *self = layers.workspace(rows, longest, team.size().max(self.members));
    }

    /// Whether a batch has room.
    fn fits(&self, texts: &[&[u32]], team: &Team<'_>) -> bool {
        texts.iter().map(|text| text.len()).sum::<usize>() <= self.rows
            && texts.iter().all(|text| text.len() <= self.longest)
            && team.size() <= self.members
    }
}
