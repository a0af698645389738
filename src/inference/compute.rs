//! How vectors are computed: on which device, with which numbers, by which code.

use std::thread;

/// What an operator asks for.
#[derive(Debug, Clone)]
pub struct ComputeConfig {
    /// `EMBEDDING_DEVICE`: `cpu`, `cuda`, `cuda:N` or `auto`.
    pub device: String,
    /// `EMBEDDING_DTYPE`.
    pub dtype: Dtype,
    /// `EMBEDDING_KERNEL`.
    pub kernel: Kernel,
    /// `EMBEDDING_THREADS`: threads that compute on a CPU; 0: one for each core.
    pub threads: usize,
}

impl ComputeConfig {
    /// What there is: the fastest.
    pub fn auto() -> Self {
        Self { device: "auto".to_owned(), dtype: Dtype::Auto, kernel: Kernel::Auto, threads: 0 }
    }

    /// Threads that compute on a CPU.
    pub fn threads(&self) -> usize {
        match self.threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

/// The type of the operands of matrix products. Sums and all else are `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// `bf16` where the CPU multiplies those, else `f32`.
    Auto,
    /// 32 bits.
    F32,
    /// The upper 16 bits of an `f32`.
    Bf16,
}

/// The code that computes on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The fastest that this CPU can run.
    Auto,
    /// The encoder's own.
    Ours(encoder::Kernel),
    /// The candle library: the reference.
    Candle,
}

impl Dtype {
    /// The names of `EMBEDDING_DTYPE`.
    pub const NAMES: [(&'static str, Self); 3] =
        [("auto", Self::Auto), ("f32", Self::F32), ("bf16", Self::Bf16)];

    /// Its name.
    pub fn name(self) -> &'static str {
        name_of(&Self::NAMES, self)
    }

    /// The one of that name; [`Auto`](Self::Auto) when it is no name.
    pub fn named(name: &str) -> Self {
        let found = Self::NAMES.into_iter().find(|(other, _)| *other == name);
        found.map_or(Self::Auto, |(_, value)| value)
    }
}

impl Kernel {
    /// The names of `EMBEDDING_KERNEL`.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("auto", Self::Auto),
        ("avx512-bf16", Self::Ours(encoder::Kernel::Avx512Bf16)),
        ("avx512", Self::Ours(encoder::Kernel::Avx512)),
        ("avx2", Self::Ours(encoder::Kernel::Avx2)),
        ("portable", Self::Ours(encoder::Kernel::Portable)),
        ("candle", Self::Candle),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        name_of(&Self::NAMES, self)
    }

    /// The one of that name; [`Auto`](Self::Auto) when it is no name.
    pub fn named(name: &str) -> Self {
        let found = Self::NAMES.into_iter().find(|(other, _)| *other == name);
        found.map_or(Self::Auto, |(_, value)| value)
    }
}

fn name_of<T: Copy + PartialEq>(names: &[(&'static str, T)], of: T) -> &'static str {
    names.iter().find(|(_, value)| *value == of).map_or("", |(name, _)| name)
}

/// How the vectors of a loaded model are computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Computation {
    /// The code.
    pub kernel: Kernel,
    /// The type of the operands of matrix products.
    pub dtype: &'static str,
    /// Threads that compute.
    pub threads: usize,
}
