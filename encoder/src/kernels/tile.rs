//! The innermost kernel of all matrix products: a few rows times one panel.
//!
//! A tile's sums stay in registers while its operands stream by: each step loads the panel's next
//! columns once and one element, or pair, of each row. This is the register blocking of Goto and
//! van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008). As the steps go by, what
//! the next tiles want is asked for line by line, so that their first does not wait for memory.

use super::{arena::CACHE_LINE, simd::Simd};

/// Registers side by side in a tile.
pub(super) const COLUMNS: usize = 2;
/// The most rows of a tile, over all instruction sets.
pub(super) const MAX_ROWS: usize = 12;
/// The most columns of a tile, over all instruction sets.
const MAX_WIDTH: usize = 32;

/// How an instruction set multiplies.
pub(super) trait Multiply: Simd {
    /// A register of operands.
    type Operand: Copy;

    /// Reads one step of a row, [`DEPTH`](Simd::DEPTH) elements, into all lanes.
    ///
    /// # Safety
    /// These elements are there.
    unsafe fn broadcast(self, from: *const Self::Element) -> Self::Operand;
    /// Reads one step of as many columns as there are lanes.
    ///
    /// # Safety
    /// These elements are there.
    unsafe fn operand(self, from: *const Self::Element) -> Self::Operand;
    /// Asks for a cache line, which need not be there, to be brought into the second-level cache.
    fn prefetch(self, line: *const Self::Element);
    /// Writes a register of sums.
    ///
    /// # Safety
    /// There is room for it, which nobody else reads or writes meanwhile.
    unsafe fn write(self, sum: Self::Vector, to: *mut f32);
    /// Adds the products of a step.
    fn step(self, sum: Self::Vector, a: Self::Operand, b: Self::Operand) -> Self::Vector;
}

/// Panics when a tile would read or write beyond the slices.
#[inline(always)]
pub(super) fn check<S: Simd>(
    input: &[S::Element],
    rows: usize,
    stride: usize,
    panel: &[S::Element],
    steps: usize,
    out: &[f32],
    out_stride: usize,
) {
    assert!((1..=S::ROWS).contains(&rows));
    assert!(input.len() >= (rows - 1) * stride + steps * S::DEPTH);
    assert!(panel.len() >= steps * S::WIDTH * S::DEPTH);
    assert!(out.len() >= (rows - 1) * out_stride + S::WIDTH);
}

/// Computes a tile of `rows` rows.
///
/// # Safety
/// The slices that the pointers were made of passed [`check`].
#[inline(always)]
pub(super) unsafe fn sums<S: Multiply>(
    simd: S,
    input: *const S::Element,
    rows: usize,
    stride: usize,
    panel: *const S::Element,
    steps: usize,
    out: *mut f32,
    out_stride: usize,
    next: *const S::Element,
) {
    // The number of rows is a constant of each copy, so that the sums stay in registers.
    macro_rules! of_rows {
        ($($rows:literal)*) => {
            match rows {
                $($rows if $rows <= S::ROWS => {
                    // SAFETY: handed on to the caller.
                    unsafe { rows_of::<S, $rows>(simd, input, stride, panel, steps, out, out_stride, next) }
                })*
                _ => unreachable!("checked by the caller"),
            }
        };
    }
    of_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// Computes a tile of `ROWS` rows; see [`sums`].
///
/// # Safety
/// As for [`sums`].
#[inline(always)]
unsafe fn rows_of<S: Multiply, const ROWS: usize>(
    simd: S,
    input: *const S::Element,
    stride: usize,
    panel: *const S::Element,
    steps: usize,
    out: *mut f32,
    out_stride: usize,
    next: *const S::Element,
) {
    let mut sums = [[simd.splat(0.0); COLUMNS]; ROWS];
    let rounds = steps / S::UNROLL;
    for round in 0..rounds {
        simd.prefetch(next.wrapping_byte_add(round * CACHE_LINE));
        for part in 0..S::UNROLL {
            // SAFETY: `check` saw `steps` steps of every row and of the panel.
            unsafe { add_step(simd, input, stride, panel, round * S::UNROLL + part, &mut sums) };
        }
    }
    for step in rounds * S::UNROLL..steps {
        // SAFETY: as above.
        unsafe { add_step(simd, input, stride, panel, step, &mut sums) };
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (column, sum) in sums.into_iter().enumerate() {
            // SAFETY: `check` saw room for a tile's width in every row.
            unsafe { simd.write(sum, out.add(row * out_stride + column * S::LANES)) };
        }
    }
}

/// Adds the products of a step to the sums of a tile.
///
/// # Safety
/// The rows and the panel have this step.
#[inline(always)]
unsafe fn add_step<S: Multiply, const ROWS: usize>(
    simd: S,
    input: *const S::Element,
    stride: usize,
    panel: *const S::Element,
    step: usize,
    sums: &mut [[S::Vector; COLUMNS]; ROWS],
) {
    // SAFETY: handed on to the caller.
    unsafe {
        let columns = panel.add(step * S::WIDTH * S::DEPTH);
        let columns = [simd.operand(columns), simd.operand(columns.add(S::LANES * S::DEPTH))];
        for (row, sums) in sums.iter_mut().enumerate() {
            let element = simd.broadcast(input.add(row * stride + step * S::DEPTH));
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum = simd.step(*sum, element, column);
            }
        }
    }
}

/// What the tile of this number, of several that use the same operands, is to bring into the cache of
/// the operands that come next.
#[inline(always)]
pub(super) fn share_of<S: Simd>(next: &[S::Element], tile: usize, steps: usize) -> &[S::Element] {
    let lines = steps / S::UNROLL;
    let from = tile * lines * (CACHE_LINE / size_of::<S::Element>());
    let rest = next.get(from..).unwrap_or(&[]);
    // When all has been asked for, what is there already is asked for again.
    if rest.is_empty() { next } else { rest }
}

/// Room for the sums of any tile, with nothing between its rows.
#[repr(align(64))]
pub(super) struct TileBuffer(pub(super) [f32; MAX_ROWS * MAX_WIDTH]);

/// A buffer of zeros.
#[inline(always)]
pub(super) fn tile_buffer() -> TileBuffer {
    TileBuffer([0.0; MAX_ROWS * MAX_WIDTH])
}

#[cfg(test)]
mod tests {
    use super::{super::portable::Portable, share_of};

    #[test]
    fn tiles_ask_for_one_part_each_and_then_for_the_first_again() {
        let next: Vec<f32> = (0..96).map(|at| at as f32).collect();
        let firsts = [0, 1, 2, 3, 4].map(|tile| share_of::<Portable>(&next, tile, 3)[0]);
        assert_eq!(firsts, [0.0, 48.0, 0.0, 0.0, 0.0]);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn where_eight_steps_are_a_round_a_line_is_asked_for_in_each_round() {
        let next: Vec<f32> = (0..96).map(|at| at as f32).collect();
        let firsts =
            [0, 1, 2, 3].map(|tile| share_of::<super::super::avx2::Avx2>(&next, tile, 23)[0]);
        assert_eq!(firsts, [0.0, 32.0, 64.0, 0.0]);
    }
}
