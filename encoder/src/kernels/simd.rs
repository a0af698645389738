//! What the kernels ask of an instruction set. Each is a token type whose value proves that the
//! CPU has it, so that all kernels but the innermost are safe code, written once.

use std::fmt::Debug;

use super::tile::COLUMNS;

/// Work that is compiled anew for each instruction set.
pub(crate) trait Task<S: Simd> {
    /// What comes of it.
    type Output;

    /// Does it. Must be `#[inline(always)]`, and so must all that it calls with a `simd`: only
    /// what is inlined into [`Simd::vectorize`] is compiled for the instruction set.
    fn run(self, simd: S) -> Self::Output;
}

/// An instruction set. A value exists only where the CPU has it.
///
/// Registers hold [`LANES`](Self::LANES) `f32`. Operands of matrix products are elements: `f32`,
/// or `bf16` where the CPU multiplies those; sums are `f32` in both cases.
pub(crate) trait Simd: Copy + Debug + Send + Sync + 'static {
    /// A register of `f32`.
    type Vector: Copy;
    /// An operand of a matrix product.
    type Element: Copy + Default + Debug + PartialEq + Send + Sync;

    /// `f32` in a register.
    const LANES: usize;
    /// Elements that one step of a product takes from each row and column: 1, or 2 for `bf16`.
    const DEPTH: usize;
    /// Whether the sum of two elements is an element, but for the rounding of `f32`.
    const SUMS_ARE_OPERANDS: bool = Self::DEPTH == 1;
    /// Whether products by way of sums (see [`super::strassen`]) are faster: what they save is
    /// to be more than making the sums takes, which is longer with shorter registers.
    const SUMS_PAY: bool = false;
    /// Steps of a tile without a jump, and with one cache line of what comes next asked for.
    const UNROLL: usize = 1;
    /// The most rows of a tile: with its columns it fills the registers.
    const ROWS: usize;
    /// Columns of a tile, and of a panel of packed weights.
    const WIDTH: usize = COLUMNS * Self::LANES;

    /// The instruction set, if this CPU has it.
    fn detect() -> Option<Self>;

    /// Runs a task, compiled for this instruction set.
    fn vectorize<T: Task<Self>>(self, task: T) -> T::Output;

    /// Multiplies rows of elements with a panel (see [`super::packed`]) and writes the sums,
    /// [`WIDTH`](Self::WIDTH) of them a row.
    ///
    /// The beginning of `next`, a cache line each [`UNROLL`](Self::UNROLL) steps, is brought into the
    /// second-level cache meanwhile.
    ///
    /// `rows` rows begin `stride` elements apart in `input`, and `out_stride` apart in `out`; the
    /// panel has `steps` steps. Panics when a slice is too short or `rows` is not in
    /// 1..=[`ROWS`](Self::ROWS).
    fn tile(
        self,
        input: &[Self::Element],
        rows: usize,
        stride: usize,
        panel: &[Self::Element],
        steps: usize,
        out: &mut [f32],
        out_stride: usize,
        next: &[Self::Element],
    );

    /// The nearest element, ties to even.
    fn element(value: f32) -> Self::Element;
    /// The value of an element.
    #[cfg(test)]
    fn value(element: Self::Element) -> f32;

    /// All lanes the same.
    fn splat(self, value: f32) -> Self::Vector;
    /// The first lanes of a slice. Panics when it is shorter than a register.
    fn load(self, from: &[f32]) -> Self::Vector;
    /// The values of the first elements of a slice. Panics when it is shorter than a register.
    fn load_elements(self, from: &[Self::Element]) -> Self::Vector;
    /// Writes to the beginning of a slice. Panics when it is shorter than a register.
    fn store(self, value: Self::Vector, to: &mut [f32]);
    /// Writes the nearest elements to the beginning of a slice; panics when it is too short.
    fn store_elements(self, value: Self::Vector, to: &mut [Self::Element]);
    /// `a + b`
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a - b`
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a · b`
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a / b`
    fn div(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a · b + c`, rounded once where the CPU can.
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The smaller of each pair.
    fn min(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The larger of each pair.
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The nearest integers, of values below 2²² in size.
    fn round(self, value: Self::Vector) -> Self::Vector;
    /// `2^n` of integers from −126 to 127.
    fn power_of_two(self, n: Self::Vector) -> Self::Vector;
    /// The sum of all lanes.
    fn sum(self, value: Self::Vector) -> f32;
    /// The largest lane.
    fn largest(self, value: Self::Vector) -> f32;
}
