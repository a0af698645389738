//! `2^x` and GELU on registers, near-exact.

use super::simd::Simd;

/// Coefficients of `2^x` on [−½, ½], lowest power first: the polynomial of the fifth degree with
/// the least relative error, 7.5 · 10⁻⁸ before rounding.
const EXP2: [f32; 6] =
    [1.000_000_1, 0.693_146_97, 0.240_221_2, 0.055_507_133, 0.009_675_542, 0.001_327_647_2];

/// Where `2^x` underflows.
const LEAST_EXPONENT: f32 = -126.0;

/// `2^x` for `x ≤ 0`, within 2⁻²² of the true value relative to it; at least 2⁻¹²⁶.
#[inline(always)]
pub(super) fn exp2<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    let x = simd.max(x, simd.splat(LEAST_EXPONENT));
    let integer = simd.round(x);
    let power = polynomial(simd, EXP2, simd.sub(x, integer));
    simd.mul(power, simd.power_of_two(integer))
}

/// Beyond this, Φ is 0 or 1 to the precision of what it is added to.
const GELU_EDGE: f32 = 5.5;
/// `(Φ(x) − ½) / x ≈ P(x²) / Q(x²)` for |x| ≤ [`GELU_EDGE`], lowest power first: the quotient
/// whose product with `x · max(x, 0.3)` errs the least, by 2.2 · 10⁻⁸ before rounding.
const GELU_P: [f32; 6] =
    [0.398_942, 0.035_142_07, 0.004_761_598_7, 0.000_182_855_13, 6.530_682e-6, 2.221_593_4e-8];
const GELU_Q: [f32; 6] =
    [1.0, 0.254_751_7, 0.029_398_54, 0.001_962_418, 7.860_908e-5, 1.195_393_8e-6];

/// `x · Φ(x)`, the GELU of Hendrycks and Gimpel (2016) with the true error function, within
/// 2⁻²¹ · max(1, |x|) of the true value.
#[inline(always)]
pub(super) fn gelu<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    let within = simd.max(simd.min(x, simd.splat(GELU_EDGE)), simd.splat(-GELU_EDGE));
    let square = simd.mul(within, within);
    let quotient = simd.div(polynomial(simd, GELU_P, square), polynomial(simd, GELU_Q, square));
    simd.mul(x, simd.mul_add(within, quotient, simd.splat(0.5)))
}

/// Horner's rule.
#[inline(always)]
fn polynomial<S: Simd>(simd: S, coefficients: [f32; 6], x: S::Vector) -> S::Vector {
    let mut sum = simd.splat(coefficients[5]);
    for power in (0..5).rev() {
        sum = simd.mul_add(sum, x, simd.splat(coefficients[power]));
    }
    sum
}
