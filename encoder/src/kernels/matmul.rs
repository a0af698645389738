//! Linear layers over packed weights, with what follows them done while the sums are warm.

use std::{marker::PhantomData, ops::Range};

use super::{
    functions::gelu,
    matrix::{Matrix, SharedMatrix},
    packed::Packed,
    simd::{Simd, Task},
    strassen::{MIN_ROWS, Pairs, Parts},
    team::{Team, share},
    tile::{share_of, tile_buffer},
};

/// What becomes of the sums of a product, bias included.
pub(crate) trait End<S: Simd>: Copy + Send + Sync {
    /// What the product is written as.
    type Out: Copy + Default + Send + Sync;

    /// Writes a register of sums to the beginning of a slice.
    fn write(self, simd: S, sums: S::Vector, to: &mut [Self::Out]);
}

/// Writes the sums as operands of the next product.
#[derive(Clone, Copy)]
pub(crate) struct Store;

/// Writes the GELU of the sums as operands of the next product.
#[derive(Clone, Copy)]
pub(crate) struct Gelu;

/// Writes the positive part of the sums as operands of the next product.
#[derive(Clone, Copy)]
pub(crate) struct Relu;

/// Adds the sums to what is there: the residual connection.
#[derive(Clone, Copy)]
pub(crate) struct AddTo;

impl<S: Simd> End<S> for Store {
    type Out = S::Element;

    #[inline(always)]
    fn write(self, simd: S, sums: S::Vector, to: &mut [S::Element]) {
        simd.store_elements(sums, to);
    }
}

impl<S: Simd> End<S> for Gelu {
    type Out = S::Element;

    #[inline(always)]
    fn write(self, simd: S, sums: S::Vector, to: &mut [S::Element]) {
        simd.store_elements(gelu(simd, sums), to);
    }
}

impl<S: Simd> End<S> for Relu {
    type Out = S::Element;

    #[inline(always)]
    fn write(self, simd: S, sums: S::Vector, to: &mut [S::Element]) {
        simd.store_elements(simd.max(sums, simd.splat(0.0)), to);
    }
}

impl<S: Simd> End<S> for AddTo {
    type Out = f32;

    #[inline(always)]
    fn write(self, simd: S, sums: S::Vector, to: &mut [f32]) {
        simd.store(simd.add(sums, simd.load(to)), to);
    }
}

/// Multiplies the first `rows` rows of `input` with `weights`, adds the bias, and lets `end`
/// write the result to `out`. The members of the team share the panels. `parts` is memory for a
/// thread without helpers.
///
/// Panics when a matrix is too small.
pub(crate) fn matmul<S: Simd, E: End<S>>(
    simd: S,
    team: &Team<'_>,
    rows: usize,
    input: &Matrix<S::Element>,
    weights: &Packed<S>,
    end: E,
    out: &mut Matrix<E::Out>,
    parts: &mut Parts<S>,
) {
    let (out, size) = (out.shared(), team.size());
    let mut done = 0;
    if let Some(sums) = weights.sums()
        && size == 1
        && rows >= MIN_ROWS
    {
        simd.vectorize(Pairs { rows, input, weights, sums, parts, end, out });
        done = 2 * sums.pairs();
    }
    team.run(&|rank| {
        let share = share(rank, size, weights.panels() - done);
        let panels = done + share.start..done + share.end;
        simd.vectorize(Panels { rows, input, weights, panels, end, out, simd: PhantomData });
    });
}

/// One thread's share of a product.
struct Panels<'a, S: Simd, E: End<S>> {
    rows: usize,
    input: &'a Matrix<S::Element>,
    weights: &'a Packed<S>,
    panels: Range<usize>,
    end: E,
    out: SharedMatrix<'a, E::Out>,
    simd: PhantomData<S>,
}

impl<S: Simd, E: End<S>> Task<S> for Panels<'_, S, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, simd: S) {
        let mut tile = tile_buffer();
        let steps = self.weights.steps();
        for block in tiles(self.rows, BLOCK) {
            for panel in self.panels.clone() {
                let (elements, bias) = self.weights.panel(panel);
                let columns = panel * S::WIDTH..(panel + 1) * S::WIDTH;
                let next = (panel + 1 < self.panels.end).then(|| self.weights.panel(panel + 1).0);
                for (tile_index, part) in tiles(block.len(), S::ROWS).enumerate() {
                    let rows = block.start + part.start..block.start + part.end;
                    let input = self.input.rows_from(rows.start);
                    let (height, stride) = (rows.len(), self.input.stride());
                    let next = share_of::<S>(next.unwrap_or(elements), tile_index, steps);
                    simd.tile(input, height, stride, elements, steps, &mut tile.0, S::WIDTH, next);
                    for (row, sums) in rows.zip(tile.0.chunks_exact(S::WIDTH)) {
                        // SAFETY: the panels of the team's members are apart, and so are the rows.
                        let out = unsafe { self.out.part(row, columns.clone()) };
                        self.finish(simd, sums, bias, out);
                    }
                }
            }
        }
    }
}

impl<S: Simd, E: End<S>> Panels<'_, S, E> {
    /// Writes a row of a tile.
    #[inline(always)]
    fn finish(&self, simd: S, sums: &[f32], bias: &[f32], out: &mut [E::Out]) {
        let parts = sums.chunks_exact(S::LANES).zip(bias.chunks_exact(S::LANES));
        for ((sums, bias), out) in parts.zip(out.chunks_exact_mut(S::LANES)) {
            self.end.write(simd, simd.add(simd.load(sums), simd.load(bias)), out);
        }
    }
}

/// Rows that are multiplied with one panel after another: few enough to stay in the second-level
/// cache meanwhile.
const BLOCK: usize = 192;

/// Cuts rows into as few tiles as possible, all of nearly the same height.
#[inline(always)]
pub(super) fn tiles(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = rows.div_ceil(most);
    (0..count).map(move |tile| tile * rows / count..(tile + 1) * rows / count)
}
