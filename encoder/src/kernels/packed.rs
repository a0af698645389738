//! Weights in the order in which the kernel reads them.

use super::{arena::Arena, matrix::Aligned, simd::Simd, strassen::WeightSums};

/// The weights and the bias of a linear layer, `y = x · Wᵀ + b`.
///
/// The columns of the product are cut into panels of [`Simd::WIDTH`]; a panel holds, step by step
/// along the depth, [`Simd::DEPTH`] elements of each of its columns. What is missing in the last
/// panel and the last step is zero.
#[derive(Debug)]
pub(crate) struct Packed<S: Simd> {
    elements: Aligned<S::Element>,
    bias: Aligned<f32>,
    sums: Option<WeightSums<S>>,
    outputs: usize,
    steps: usize,
}

impl<S: Simd> Packed<S> {
    /// Packs weights of shape outputs × inputs, row after row, as checkpoints have them, and one
    /// bias an output. Panics when the lengths do not fit.
    pub(crate) fn new(arena: &mut Arena, weights: &[f32], bias: &[f32]) -> Self {
        let outputs = bias.len();
        let inputs = weights.len() / outputs;
        assert_eq!(weights.len(), inputs * outputs);
        let steps = inputs.div_ceil(S::DEPTH);
        let panels = outputs.div_ceil(S::WIDTH);
        let mut elements = Aligned::new_in(arena, panels * steps * S::WIDTH * S::DEPTH);
        let mut padded = Aligned::new_in(arena, panels * S::WIDTH);
        padded.as_mut_slice()[..outputs].copy_from_slice(bias);
        let panel_length = steps * S::WIDTH * S::DEPTH;
        for (output, row) in weights.chunks_exact(inputs).enumerate() {
            let panel = &mut elements.as_mut_slice()[output / S::WIDTH * panel_length..];
            let column = output % S::WIDTH;
            for (input, &weight) in row.iter().enumerate() {
                let step = input / S::DEPTH;
                panel[(step * S::WIDTH + column) * S::DEPTH + input % S::DEPTH] =
                    S::element(weight);
            }
        }
        Self { elements, bias: padded, sums: None, outputs, steps }
    }

    /// The same weights with their sums (see [`super::strassen`]), where they can have them: one
    /// thread multiplies many rows with fewer operations then. They take 5/4 of the memory of the
    /// weights.
    pub(crate) fn with_sums(mut self, simd: S, arena: &mut Arena) -> Self {
        self.sums = WeightSums::new(simd, arena, &self);
        self
    }

    /// The sums, if it has them.
    pub(super) fn sums(&self) -> Option<&WeightSums<S>> {
        self.sums.as_ref()
    }

    /// Columns of the rows that are multiplied by way of sums; 0 if none are.
    pub(crate) fn summed_inputs(&self) -> usize {
        if self.sums.is_some() { self.steps * S::DEPTH } else { 0 }
    }

    /// Columns of the product, with those that fill the last panel.
    pub(crate) fn padded_outputs(&self) -> usize {
        self.panels() * S::WIDTH
    }

    /// Panels of [`Simd::WIDTH`] columns.
    pub(super) fn panels(&self) -> usize {
        self.outputs.div_ceil(S::WIDTH)
    }

    /// Panels without anything that fills them.
    pub(super) fn whole_panels(&self) -> usize {
        self.outputs / S::WIDTH
    }

    /// Steps along the depth.
    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// The elements and the bias of a panel.
    pub(super) fn panel(&self, panel: usize) -> (&[S::Element], &[f32]) {
        let length = self.steps * S::WIDTH * S::DEPTH;
        (
            &self.elements.as_slice()[panel * length..][..length],
            &self.bias.as_slice()[panel * S::WIDTH..][..S::WIDTH],
        )
    }
}
