//! AVX-512: sixteen lanes; with the BF16 extension, products of `bf16` pairs.

use std::arch::x86_64::*;

use super::{
    simd::{Simd, Task},
    tile::{Multiply, check, sums},
};

/// AVX-512 F, BW, DQ and VL.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

/// The same with the BF16 extension: operands of products are `bf16`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Bf16(());

/// F and the extensions that all CPUs have that have F, but for the first of them.
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// The arithmetic that both share.
macro_rules! sixteen_lanes {
    ($features:literal) => {
        type Vector = __m512;

        const LANES: usize = 16;
        const ROWS: usize = 12;

        #[inline(always)]
        fn splat(self, value: f32) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        fn load(self, from: &[f32]) -> __m512 {
            assert!(from.len() >= Self::LANES);
            // SAFETY: `self` proves AVX-512 F; the slice has sixteen values, aligned or not.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        fn store(self, value: __m512, to: &mut [f32]) {
            assert!(to.len() >= Self::LANES);
            // SAFETY: `self` proves AVX-512 F; the slice has room for sixteen values.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
        }

        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_sub_ps(a, b) }
        }

        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        fn div(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_div_ps(a, b) }
        }

        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn min(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_min_ps(a, b) }
        }

        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_max_ps(a, b) }
        }

        #[inline(always)]
        fn round(self, value: __m512) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(value) }
        }

        #[inline(always)]
        fn power_of_two(self, n: __m512) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), n) }
        }

        #[inline(always)]
        fn sum(self, value: __m512) -> f32 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_reduce_add_ps(value) }
        }

        #[inline(always)]
        fn largest(self, value: __m512) -> f32 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_reduce_max_ps(value) }
        }

        #[inline(always)]
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
        ) {
            // SAFETY: the caller has seen to the instructions that it is compiled for, and promises what
            // `sums` asks for.
            #[target_feature(enable = $features)]
            unsafe fn run<S: Multiply>(
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
    };
}

impl Simd for Avx512 {
    type Element = f32;

    const DEPTH: usize = 1;
    const SUMS_PAY: bool = true;

    sixteen_lanes!("avx512f,avx512bw,avx512dq,avx512vl");

    fn detect() -> Option<Self> {
        has_avx512().then_some(Self(()))
    }

    #[inline(always)]
    fn vectorize<T: Task<Self>>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn run<T: Task<Avx512>>(simd: Avx512, task: T) -> T::Output {
            task.run(simd)
        }
        // SAFETY: `self` proves that the CPU has AVX-512 F.
        unsafe { run(self, task) }
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
    fn load_elements(self, from: &[f32]) -> __m512 {
        self.load(from)
    }

    #[inline(always)]
    fn store_elements(self, value: __m512, to: &mut [f32]) {
        self.store(value, to);
    }
}

impl Multiply for Avx512 {
    type Operand = __m512;

    // SAFETY: the trait lets the caller promise one element to read.
    #[inline(always)]
    unsafe fn broadcast(self, from: *const f32) -> __m512 {
        // SAFETY: the caller lets one element be read; `self` proves AVX-512 F.
        unsafe { _mm512_set1_ps(*from) }
    }

    // SAFETY: the trait lets the caller promise a vector of elements to read.
    #[inline(always)]
    unsafe fn operand(self, from: *const f32) -> __m512 {
        // SAFETY: the caller lets sixteen elements be read; `self` proves AVX-512 F.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    fn prefetch(self, line: *const f32) {
        // SAFETY: a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }

    // SAFETY: the trait lets the caller promise room for a vector.
    #[inline(always)]
    unsafe fn write(self, sum: __m512, to: *mut f32) {
        // SAFETY: `self` proves AVX-512 F; the caller lets sixteen values be written.
        unsafe { _mm512_storeu_ps(to, sum) }
    }

    #[inline(always)]
    fn step(self, sum: __m512, a: __m512, b: __m512) -> __m512 {
        self.mul_add(a, b, sum)
    }
}

impl Simd for Avx512Bf16 {
    /// The upper half of an `f32`.
    type Element = u16;

    const DEPTH: usize = 2;

    sixteen_lanes!("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16");

    fn detect() -> Option<Self> {
        (has_avx512() && is_x86_feature_detected!("avx512bf16")).then_some(Self(()))
    }

    #[inline(always)]
    fn vectorize<T: Task<Self>>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
        fn run<T: Task<Avx512Bf16>>(simd: Avx512Bf16, task: T) -> T::Output {
            task.run(simd)
        }
        // SAFETY: `self` proves that the CPU has AVX-512 F and BF16.
        unsafe { run(self, task) }
    }

    #[inline(always)]
    fn element(value: f32) -> u16 {
        half::bf16::from_f32(value).to_bits()
    }

    #[cfg(test)]
    fn value(element: u16) -> f32 {
        half::bf16::from_bits(element).to_f32()
    }

    #[inline(always)]
    fn load_elements(self, from: &[u16]) -> __m512 {
        assert!(from.len() >= Self::LANES);
        // SAFETY: `self` proves AVX-512 F; the slice has the sixteen `u16`, 32 bytes, that are read.
        unsafe {
            let halves = _mm256_loadu_si256(from.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }

    #[inline(always)]
    fn store_elements(self, value: __m512, to: &mut [u16]) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: `self` proves AVX-512 BF16; sixteen `bf16` are the 32 bytes of the slice that are
        // written, and any bits are a valid `u16`.
        unsafe {
            let narrow = _mm512_cvtneps_pbh(value);
            std::ptr::write_unaligned(to.as_mut_ptr().cast::<__m256bh>(), narrow);
        }
    }
}

impl Multiply for Avx512Bf16 {
    type Operand = __m512bh;

    // SAFETY: the trait lets the caller promise one element to read.
    #[inline(always)]
    unsafe fn broadcast(self, from: *const u16) -> __m512bh {
        // SAFETY: the caller lets one pair be read, aligned or not; `self` proves AVX-512 F; the
        // two types are 64 bytes that may have any value.
        unsafe {
            std::mem::transmute(_mm512_set1_epi32(std::ptr::read_unaligned(from.cast::<i32>())))
        }
    }

    // SAFETY: the trait lets the caller promise a vector of elements to read.
    #[inline(always)]
    unsafe fn operand(self, from: *const u16) -> __m512bh {
        // SAFETY: the caller lets sixteen pairs be read, aligned or not.
        unsafe { std::ptr::read_unaligned(from.cast::<__m512bh>()) }
    }

    #[inline(always)]
    fn prefetch(self, line: *const u16) {
        // SAFETY: a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }

    // SAFETY: the trait lets the caller promise room for a vector.
    #[inline(always)]
    unsafe fn write(self, sum: __m512, to: *mut f32) {
        // SAFETY: `self` proves AVX-512 F; the caller lets sixteen values be written.
        unsafe { _mm512_storeu_ps(to, sum) }
    }

    #[inline(always)]
    fn step(self, sum: __m512, a: __m512bh, b: __m512bh) -> __m512 {
        // SAFETY: `self` proves that the CPU has AVX-512 BF16.
        unsafe { _mm512_dpbf16_ps(sum, a, b) }
    }
}
