//! Matrix products, attention and normalisation, for each instruction set: all `unsafe` code of
//! the program, behind functions that are safe to call.

#![allow(unsafe_code, reason = "the kernels are where it is allowed")]
#![allow(clippy::too_many_arguments, reason = "two matrices and their strides")]

mod arena;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod functions;
mod matmul;
mod matrix;
mod norm;
mod packed;
mod portable;
mod simd;
mod strassen;
mod team;
#[cfg(test)]
mod tests;
mod tile;

pub(crate) use arena::Arena;
pub(crate) use attention::{Heads, Scratches, attention};
#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, Avx512Bf16};
pub(crate) use matmul::{AddTo, Gelu, Relu, Store, matmul};
pub(crate) use matrix::Matrix;
pub(crate) use norm::{LayerNorm, layer_norm};
pub(crate) use packed::Packed;
pub(crate) use portable::Portable;
pub(crate) use simd::Simd;
pub(crate) use strassen::Parts;
pub(crate) use team::Team;
