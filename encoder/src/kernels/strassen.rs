//! One level of Strassen's algorithm, "Gaussian Elimination is not Optimal" (1969): the product of
//! two matrices, each cut into 2 × 2 parts, by seven products of parts and of their sums. The
//! definition takes eight.
//!
//! With `a` the rows, cut in the middle of rows and columns, and `b` two panels of weights, cut in
//! the middle of their steps:
//!
//! ```text
//! m1 = (a11 + a22)(b11 + b22)   c11 = m1 + m4 − m5 + m7
//! m2 = (a21 + a22) b11          c12 = m3 + m5
//! m3 = a11 (b12 − b22)          c21 = m2 + m4
//! m4 = a22 (b21 − b11)          c22 = m1 − m2 + m3 + m6
//! m5 = (a11 + a12) b22
//! m6 = (a21 − a11)(b11 + b12)
//! m7 = (a12 − a22)(b21 + b22)
//! ```
//!
//! It is for operands that are `f32`: a sum of two `bf16` would have to be rounded to `bf16` again.
//! [`Simd::SUMS_PAY`] says where it is faster.
//!
//! The error stays small beside the largest products of a block, not beside each sum (Higham,
//! "Exploiting Fast Matrix Multiplication Within the Level 3 BLAS", 1990), and a row's sums depend
//! in their last bits on the row that it is computed with.

use std::ops::Range;

use super::{
    arena::Arena,
    matmul::{End, tiles},
    matrix::{Aligned, Matrix, SharedMatrix},
    packed::Packed,
    simd::{Simd, Task},
    tile::share_of,
};

/// Products of parts.
const PRODUCTS: usize = 7;
/// Operands that are sums, of the rows as of the weights.
const SUMS: usize = 5;
/// The most rows of a part.
const HEIGHT: usize = 96;

/// The fewest rows that are worth it: the sums of the weights are read beside the weights, which
/// for a few rows takes longer than the products.
pub(super) const MIN_ROWS: usize = 64;

/// The operands that are made of weights.
#[derive(Debug)]
pub(super) struct WeightSums<S: Simd> {
    elements: Aligned<S::Element>,
    /// Elements of a part: half the steps of a panel.
    part: usize,
}

impl<S: Simd> WeightSums<S> {
    /// Those of all pairs of whole panels: what fills the last one must stay zero. `None` where sums
    /// are no operands, or a part of a row would not end with a register.
    pub(super) fn new(simd: S, arena: &mut Arena, weights: &Packed<S>) -> Option<Self> {
        let pairs = weights.whole_panels() / 2;
        if !S::SUMS_ARE_OPERANDS || !weights.steps().is_multiple_of(2 * S::LANES) || pairs == 0 {
            return None;
        }
        let part = weights.steps() / 2 * S::WIDTH;
        let mut elements = Aligned::new_in(arena, pairs * SUMS * part);
        for (pair, sums) in elements.as_mut_slice().chunks_exact_mut(SUMS * part).enumerate() {
            let (b11, b21) = weights.panel(2 * pair).0.split_at(part);
            let (b12, b22) = weights.panel(2 * pair + 1).0.split_at(part);
            for at in (0..part).step_by(S::LANES) {
                let [b11, b12, b21, b22] =
                    [b11, b12, b21, b22].map(|part| simd.load_elements(&part[at..]));
                let of_register = [
                    simd.add(b11, b22),
                    simd.sub(b12, b22),
                    simd.sub(b21, b11),
                    simd.add(b11, b12),
                    simd.add(b21, b22),
                ];
                for (sum, to) in of_register.into_iter().zip(sums.chunks_exact_mut(part)) {
                    simd.store_elements(sum, &mut to[at..]);
                }
            }
        }
        Some(Self { elements, part })
    }

    /// Pairs of panels.
    pub(super) fn pairs(&self) -> usize {
        self.elements.as_slice().len() / (SUMS * self.part)
    }

    /// The sums of a pair, in the order of the products that they are operands of.
    fn of_pair(&self, pair: usize) -> [&[S::Element]; SUMS] {
        let sums = &self.elements.as_slice()[pair * SUMS * self.part..];
        std::array::from_fn(|index| &sums[index * self.part..][..self.part])
    }
}

/// Memory for a block of rows, kept from product to product.
pub(crate) struct Parts<S: Simd> {
    /// The operands that are made of rows, [`HEIGHT`] rows each.
    sums: Matrix<S::Element>,
    /// Products of parts, [`HEIGHT`] rows of a panel's width each.
    products: Aligned<f32>,
}

impl<S: Simd> Parts<S> {
    /// For rows of up to so many columns; none if there are to be no such products.
    pub(crate) fn new(columns: usize) -> Self {
        let height = if columns > 0 { HEIGHT } else { 0 };
        Self {
            sums: Matrix::new(SUMS * height, columns / 2),
            products: Aligned::new(PRODUCTS * height * S::WIDTH),
        }
    }
}

#[cfg(test)]
impl<S: Simd> Parts<S> {
    /// Writes a value everywhere.
    pub(super) fn fill(&mut self, value: f32) {
        (0..SUMS * HEIGHT).for_each(|row| self.sums.row_mut(row).fill(S::element(value)));
        self.products.as_mut_slice().fill(value);
    }
}

/// The product of rows with all pairs of panels.
pub(super) struct Pairs<'a, S: Simd, E: End<S>> {
    pub(super) rows: usize,
    pub(super) input: &'a Matrix<S::Element>,
    pub(super) weights: &'a Packed<S>,
    pub(super) sums: &'a WeightSums<S>,
    pub(super) parts: &'a mut Parts<S>,
    pub(super) end: E,
    pub(super) out: SharedMatrix<'a, E::Out>,
}

impl<S: Simd, E: End<S>> Task<S> for Pairs<'_, S, E> {
    type Output = ();

    #[inline(always)]
    fn run(mut self, simd: S) {
        for rows in tiles(self.rows, 2 * HEIGHT) {
            let block = Block::new(rows);
            self.add_rows(simd, &block);
            for pair in 0..self.sums.pairs() {
                self.multiply(simd, &block, pair);
                self.finish(simd, &block, pair);
            }
        }
    }
}

/// Two halves of some rows. The middle one of an odd number of rows is in both.
struct Block {
    upper: usize,
    lower: usize,
    height: usize,
}

impl Block {
    fn new(rows: Range<usize>) -> Self {
        let height = rows.len().div_ceil(2);
        Self { upper: rows.start, lower: rows.end - height, height }
    }
}

impl<S: Simd, E: End<S>> Pairs<'_, S, E> {
    /// The operands that are made of rows.
    #[inline(always)]
    fn add_rows(&mut self, simd: S, block: &Block) {
        let half = self.weights.steps() / 2;
        for row in 0..block.height {
            let (a11, a12) = self.input.row(block.upper + row).split_at(half);
            let (a21, a22) = self.input.row(block.lower + row).split_at(half);
            for at in (0..half).step_by(S::LANES) {
                let [a11, a12, a21, a22] =
                    [a11, a12, a21, a22].map(|part| simd.load_elements(&part[at..]));
                let sums = [
                    simd.add(a11, a22),
                    simd.add(a21, a22),
                    simd.add(a11, a12),
                    simd.sub(a21, a11),
                    simd.sub(a12, a22),
                ];
                for (index, sum) in sums.into_iter().enumerate() {
                    let to = self.parts.sums.row_mut(index * HEIGHT + row);
                    simd.store_elements(sum, &mut to[at..]);
                }
            }
        }
    }

    /// The seven products.
    #[inline(always)]
    fn multiply(&mut self, simd: S, block: &Block, pair: usize) {
        let steps = self.weights.steps() / 2;
        let part = steps * S::WIDTH;
        let (left, right) = (self.weights.panel(2 * pair).0, self.weights.panel(2 * pair + 1).0);
        let (b11, b22) = (&left[..part], &right[part..]);
        let sums = self.sums.of_pair(pair);
        let Parts { sums: row_sums, products } = &mut *self.parts;
        let a = |index| (row_sums.rows_from(index * HEIGHT), row_sums.stride());
        let a11 = (self.input.rows_from(block.upper), self.input.stride());
        let a22 = (&self.input.rows_from(block.lower)[steps..], self.input.stride());
        let operands: [_; PRODUCTS] = [
            (a(0), sums[0]),
            (a(1), b11),
            (a11, sums[1]),
            (a22, sums[2]),
            (a(2), b22),
            (a(3), sums[3]),
            (a(4), sums[4]),
        ];
        let next = if pair + 1 < self.sums.pairs() { pair + 1 } else { pair };
        let after = [self.sums.of_pair(next)[0]];
        let nexts = operands.into_iter().skip(1).map(|(_, panel)| panel).chain(after);
        let products = products.as_mut_slice().chunks_exact_mut(HEIGHT * S::WIDTH);
        for ((((rows, stride), panel), next), product) in
            operands.into_iter().zip(nexts).zip(products)
        {
            for (index, tile) in tiles(block.height, S::ROWS).enumerate() {
                let (rows, out) =
                    (&rows[tile.start * stride..], &mut product[tile.start * S::WIDTH..]);
                let next = share_of::<S>(next, index, steps);
                simd.tile(rows, tile.len(), stride, panel, steps, out, S::WIDTH, next);
            }
        }
    }

    /// What the products make together, with the bias.
    #[inline(always)]
    fn finish(&self, simd: S, block: &Block, pair: usize) {
        let (left, right) = (self.weights.panel(2 * pair).1, self.weights.panel(2 * pair + 1).1);
        let products = self.parts.products.as_slice();
        for row in 0..block.height {
            for at in (0..S::WIDTH).step_by(S::LANES) {
                let [m1, m2, m3, m4, m5, m6, m7] = std::array::from_fn(|index| {
                    simd.load(&products[(index * HEIGHT + row) * S::WIDTH + at..])
                });
                let (left, right) = (simd.load(&left[at..]), simd.load(&right[at..]));
                let c11 = simd.add(simd.add(m1, simd.sub(m4, m5)), m7);
                let c12 = simd.add(m3, m5);
                let column = 2 * pair * S::WIDTH + at;
                self.write(simd, block.upper + row, column, simd.add(c11, left));
                self.write(simd, block.upper + row, column + S::WIDTH, simd.add(c12, right));
                // The middle row is written already.
                if block.lower + row >= block.upper + block.height {
                    let c21 = simd.add(m2, m4);
                    let c22 = simd.add(simd.add(simd.sub(m1, m2), m3), m6);
                    self.write(simd, block.lower + row, column, simd.add(c21, left));
                    self.write(simd, block.lower + row, column + S::WIDTH, simd.add(c22, right));
                }
            }
        }
    }

    #[inline(always)]
    fn write(&self, simd: S, row: usize, column: usize, sums: S::Vector) {
        // SAFETY: no other thread has a part of the matrix, and this one has no second.
        let out = unsafe { self.out.part(row, column..column + S::LANES) };
        self.end.write(simd, sums, out);
    }
}
