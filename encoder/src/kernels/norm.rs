//! Layer normalisation.

use super::{
    matrix::Matrix,
    simd::{Simd, Task},
};

/// Normalises the first rows of `values` in place, as Ba, Kiros and Hinton (2016) have it, and
/// writes them as operands of the next product beside. A row has as many columns as there are
/// weights; the variance is not corrected for the number of samples.
///
/// Values, weights and biases of up to 1 give results within 10⁻⁴ of the exact ones, the worst
/// where a row hardly varies.
pub(crate) fn layer_norm<S: Simd>(
    simd: S,
    rows: usize,
    norm: &LayerNorm,
    values: &mut Matrix<f32>,
    elements: &mut Matrix<S::Element>,
) {
    simd.vectorize(Rows { rows, norm, values, elements });
}

/// The parameters of a layer normalisation.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    /// One factor a column.
    pub(crate) weight: Vec<f32>,
    /// One summand a column.
    pub(crate) bias: Vec<f32>,
    /// Added to the variance.
    pub(crate) epsilon: f32,
}

struct Rows<'a, S: Simd> {
    rows: usize,
    norm: &'a LayerNorm,
    values: &'a mut Matrix<f32>,
    elements: &'a mut Matrix<S::Element>,
}

impl<S: Simd> Task<S> for Rows<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self, simd: S) {
        let LayerNorm { weight, bias, epsilon } = self.norm;
        let columns = weight.len();
        for row in 0..self.rows {
            let values = &mut self.values.row_mut(row)[..columns];
            let elements = &mut self.elements.row_mut(row)[..columns];
            let mean = total(simd, values, |x| x, |x| x) / columns as f32;
            let means = simd.splat(mean);
            let squares = total(
                simd,
                values,
                |x| simd.mul(simd.sub(x, means), simd.sub(x, means)),
                |x| (x - mean) * (x - mean),
            );
            let scale = 1.0 / (squares / columns as f32 + epsilon).sqrt();
            let scales = simd.splat(scale);

            let whole = columns - columns % S::LANES;
            for at in (0..whole).step_by(S::LANES) {
                let x = simd.mul(simd.sub(simd.load(&values[at..]), means), scales);
                let y = simd.mul_add(x, simd.load(&weight[at..]), simd.load(&bias[at..]));
                simd.store(y, &mut values[at..]);
                simd.store_elements(y, &mut elements[at..]);
            }
            for at in whole..columns {
                values[at] = (values[at] - mean) * scale * weight[at] + bias[at];
                elements[at] = S::element(values[at]);
            }
        }
    }
}

/// Sums a function of all values, in registers and of what is left over.
#[inline(always)]
fn total<S: Simd>(
    simd: S,
    values: &[f32],
    of_register: impl Fn(S::Vector) -> S::Vector,
    of_value: impl Fn(f32) -> f32,
) -> f32 {
    // Four sums at once, so that no addition waits for the one before.
    let mut sums = [simd.splat(0.0); 4];
    let mut blocks = values.chunks_exact(4 * S::LANES);
    for block in &mut blocks {
        for (sum, part) in sums.iter_mut().zip(block.chunks_exact(S::LANES)) {
            *sum = simd.add(*sum, of_register(simd.load(part)));
        }
    }
    let mut registers = blocks.remainder().chunks_exact(S::LANES);
    for part in &mut registers {
        sums[0] = simd.add(sums[0], of_register(simd.load(part)));
    }
    let rest: f32 = registers.remainder().iter().copied().map(of_value).sum();
    simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]))) + rest
}
