//! Which code computes.

use crate::kernels::{self, Simd};

/// The code that computes, for one instruction set each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// AVX-512 with the BF16 extension: operands of matrix products are `bf16`, the upper half of
    /// an `f32`; sums and all else are `f32`.
    Avx512Bf16,
    /// AVX-512, all in `f32`.
    Avx512,
    /// AVX2 with FMA, all in `f32`.
    Avx2,
    /// Plain Rust, all in `f32`.
    Portable,
}

impl Kernel {
    /// All of them, the fastest first.
    pub const ALL: [Self; 4] = [Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Portable];

    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => kernels::Avx512Bf16::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => kernels::Avx512::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => kernels::Avx2::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512Bf16 | Self::Avx512 | Self::Avx2 => false,
            Self::Portable => true,
        }
    }

    /// Whether the operands of its products are `bf16`.
    pub fn is_bf16(self) -> bool {
        self == Self::Avx512Bf16
    }

    /// Calls a function with the instruction set; `None` where this CPU does not have it.
    pub(crate) fn with<V: Visit>(self, visit: V) -> Option<V::Output> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => kernels::Avx512Bf16::detect().map(|simd| visit.visit(simd)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => kernels::Avx512::detect().map(|simd| visit.visit(simd)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => kernels::Avx2::detect().map(|simd| visit.visit(simd)),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512Bf16 | Self::Avx512 | Self::Avx2 => None,
            Self::Portable => kernels::Portable::detect().map(|simd| visit.visit(simd)),
        }
    }
}

/// A function over all instruction sets.
pub(crate) trait Visit {
    /// What it returns.
    type Output;

    /// The function.
    fn visit<S: Simd>(self, simd: S) -> Self::Output;
}
