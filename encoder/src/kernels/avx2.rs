//! AVX2 with FMA: eight lanes.

use std::arch::x86_64::*;

use super::{
    simd::{Simd, Task},
    tile::{Multiply, check, sums},
};

/// AVX2 and FMA.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Simd for Avx2 {
    type Vector = __m256;
    type Element = f32;

    const LANES: usize = 8;
    const DEPTH: usize = 1;
    const ROWS: usize = 6;
    // A step is 20 instructions, 12 of which multiply, and a core takes in few more while it does
    // those, above all one that runs a second thread: there are none to spare for counting.
    const UNROLL: usize = 8;

    fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }

    #[inline(always)]
    fn vectorize<T: Task<Self>>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx2,fma")]
        fn run<T: Task<Avx2>>(simd: Avx2, task: T) -> T::Output {
            task.run(simd)
        }
        // SAFETY: `self` proves that the CPU has AVX2 and FMA.
        unsafe { run(self, task) }
    }

    #[inline(always)]
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
        // SAFETY: the caller has seen to the instructions that it is compiled for, and promises what
        // `sums` asks for.
        #[target_feature(enable = "avx2,fma")]
        unsafe fn run(
            simd: Avx2,
            input: *const f32,
            rows: usize,
            stride: usize,
            panel: *const f32,
            steps: usize,
            out: *mut f32,
            out_stride: usize,
            next: *const f32,
        ) {
            // SAFETY: handed on to the caller.
            unsafe { sums(simd, input, rows, stride, panel, steps, out, out_stride, next) }
        }
        check::<Self>(input, rows, stride, panel, steps, out, out_stride);
        // SAFETY: `self` proves the features; the slices hold what is read and written.
        unsafe {
            run(
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
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        assert!(from.len() >= Self::LANES);
        // SAFETY: `self` proves AVX2; the slice has eight values, aligned or not.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, value: __m256, to: &mut [f32]) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: `self` proves AVX2; the slice has room for eight values.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn load_elements(self, from: &[f32]) -> __m256 {
        self.load(from)
    }

    #[inline(always)]
    fn store_elements(self, value: __m256, to: &mut [f32]) {
        self.store(value, to);
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves that the CPU has FMA.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn round(self, value: __m256) -> __m256 {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value) }
    }

    #[inline(always)]
    fn power_of_two(self, n: __m256) -> __m256 {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        }
    }

    #[inline(always)]
    fn sum(self, value: __m256) -> f32 {
        let mut lanes = [0.0; 8];
        self.store(value, &mut lanes);
        let fours: [f32; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
        (fours[0] + fours[2]) + (fours[1] + fours[3])
    }

    #[inline(always)]
    fn largest(self, value: __m256) -> f32 {
        let mut lanes = [0.0; 8];
        self.store(value, &mut lanes);
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

impl Multiply for Avx2 {
    type Operand = __m256;

    // SAFETY: the trait lets the caller promise one element to read.
    #[inline(always)]
    unsafe fn broadcast(self, from: *const f32) -> __m256 {
        // SAFETY: the caller lets one element be read; `self` proves AVX2.
        unsafe { _mm256_set1_ps(*from) }
    }

    // SAFETY: the trait lets the caller promise a vector of elements to read.
    #[inline(always)]
    unsafe fn operand(self, from: *const f32) -> __m256 {
        // SAFETY: the caller lets eight elements be read; `self` proves AVX2.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    fn prefetch(self, line: *const f32) {
        // SAFETY: a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }

    // SAFETY: the trait lets the caller promise room for a vector.
    #[inline(always)]
    unsafe fn write(self, sum: __m256, to: *mut f32) {
        // SAFETY: `self` proves AVX2; the caller lets eight values be written.
        unsafe { _mm256_storeu_ps(to, sum) }
    }

    #[inline(always)]
    fn step(self, sum: __m256, a: __m256, b: __m256) -> __m256 {
        self.mul_add(a, b, sum)
    }
}
