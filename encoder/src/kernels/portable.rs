//! Plain Rust, for every CPU; the compiler makes of it what it can.

use super::{
    simd::{Simd, Task},
    tile::{Multiply, check, sums},
};

const LANES: usize = 4;

/// No instruction set beyond the compiler's own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn each(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

impl Simd for Portable {
    type Vector = [f32; LANES];
    type Element = f32;

    const LANES: usize = LANES;
    const DEPTH: usize = 1;
    const ROWS: usize = 4;

    fn detect() -> Option<Self> {
        Some(Self)
    }

    #[inline(always)]
    fn vectorize<T: Task<Self>>(self, task: T) -> T::Output {
        task.run(self)
    }

    // Not inlined: beside other code the compiler does not keep the sums in registers.
    #[inline(never)]
    fn tile(
        self,
        input: &[f32],
        rows: usize,
        stride: usize,
        panel: &[f32],
        steps: usize,
        out: &mut [f32],
        out_stride: usize,
        next: &[f32],
    ) {
        check::<Self>(input, rows, stride, panel, steps, out, out_stride);
        // SAFETY: the slices hold what is read and written.
        unsafe {
            sums(
                self,
                input.as_ptr(),
                rows,
                stride,
                panel.as_ptr(),
                steps,
                out.as_mut_ptr(),
                out_stride,
                next.as_ptr(),
            )
        }
    }

    #[inline(always)]
    fn element(value: f32) -> f32 {
        value
    }

    #[cfg(test)]
    fn value(element: f32) -> f32 {
        element
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; LANES] {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> [f32; LANES] {
        [from[0], from[1], from[2], from[3]]
    }

    #[inline(always)]
    fn store(self, value: [f32; LANES], to: &mut [f32]) {
        to[..LANES].copy_from_slice(&value);
    }

    #[inline(always)]
    fn load_elements(self, from: &[f32]) -> [f32; LANES] {
        self.load(from)
    }

    #[inline(always)]
    fn store_elements(self, value: [f32; LANES], to: &mut [f32]) {
        self.store(value, to);
    }

    #[inline(always)]
    fn add(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        // Without an instruction for it, the fused operation is a slow call.
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn min(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn round(self, value: [f32; LANES]) -> [f32; LANES] {
        // Adding 1.5 · 2²³ leaves no bits behind the point.
        let shift = [12_582_912.0; LANES];
        self.sub(self.add(value, shift), shift)
    }

    #[inline(always)]
    fn power_of_two(self, n: [f32; LANES]) -> [f32; LANES] {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn sum(self, value: [f32; LANES]) -> f32 {
        (value[0] + value[2]) + (value[1] + value[3])
    }

    #[inline(always)]
    fn largest(self, value: [f32; LANES]) -> f32 {
        value.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

impl Multiply for Portable {
    type Operand = [f32; LANES];

    // SAFETY: the trait lets the caller promise one element to read.
    #[inline(always)]
    unsafe fn broadcast(self, from: *const f32) -> [f32; LANES] {
        // SAFETY: the caller lets one element be read.
        [unsafe { *from }; LANES]
    }

    // SAFETY: the trait lets the caller promise a vector of elements to read.
    #[inline(always)]
    unsafe fn operand(self, from: *const f32) -> [f32; LANES] {
        // SAFETY: the caller lets four elements be read; an array is aligned as its elements are.
        unsafe { *from.cast() }
    }

    #[inline(always)]
    fn prefetch(self, _line: *const f32) {}

    // SAFETY: the trait lets the caller promise room for a vector.
    #[inline(always)]
    unsafe fn write(self, sum: [f32; LANES], to: *mut f32) {
        // SAFETY: the caller lets four values be written; an array is aligned as its elements are.
        unsafe { *to.cast() = sum }
    }

    #[inline(always)]
    fn step(self, sum: [f32; LANES], a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        self.mul_add(a, b, sum)
    }
}
