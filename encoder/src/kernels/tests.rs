//! Each kernel of each instruction set that this CPU has, against the plain version of the same.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::Range;

use proptest::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{
    functions::{exp2, gelu},
    simd::Task,
    *,
};

/// Runs a test for every instruction set that this CPU has.
macro_rules! everywhere {
    ($test:ident ( $($argument:expr),* )) => {{
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(simd) = Avx512Bf16::detect() { $test(simd, $($argument),*); }
            if let Some(simd) = Avx512::detect() { $test(simd, $($argument),*); }
            if let Some(simd) = Avx2::detect() { $test(simd, $($argument),*); }
        }
        $test(Portable, $($argument),*);
    }};
}

fn pool() -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(2).build().unwrap()
}

/// Values in −1..1 without a pattern.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        // SplitMix64, Steele et al. (2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// What a value is as an operand.
fn rounded<S: Simd>(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(S::value(S::element(value)))).collect()
}

fn matrix<S: Simd>(rows: usize, columns: usize, values: &[f32]) -> Matrix<S::Element> {
    let mut matrix = Matrix::new(rows, columns);
    for (row, values) in values.chunks_exact(columns).enumerate() {
        for (to, &value) in matrix.row_mut(row).iter_mut().zip(values) {
            *to = S::element(value);
        }
    }
    matrix
}

/// Whether an element is the exact value, but for the rounding of an element and of `f32` sums.
#[track_caller]
fn assert_near<S: Simd>(element: f32, exact: f64, size: f64) {
    let precision = if S::DEPTH == 2 { 2e-2 } else { 1e-5 };
    let error = (f64::from(element) - exact).abs();
    assert!(
        error <= precision * (exact.abs() * 0.5 + size * 1e-3) + 4e-6 * size,
        "{element} for {exact}"
    );
}

fn a_product_is_that_of_the_plain_loops<S: Simd>(
    simd: S,
    (rows, inputs, outputs): (usize, usize, usize),
    with_sums: bool,
    seed: u64,
    team: &Team<'_>,
) {
    let (x, w) = (values(seed, rows * inputs), values(seed + 1, inputs * outputs));
    let bias = values(seed + 2, outputs);
    // Room for some, so that both kinds of memory are used.
    let mut arena = Arena::new(size_of::<S::Element>() * inputs * outputs + 4_096);
    let mut packed = Packed::<S>::new(&mut arena, &w, &bias);
    if with_sums {
        packed = packed.with_sums(simd, &mut arena);
    }
    // As for a wider product, and with what that left there.
    let mut parts = Parts::new(packed.summed_inputs() + 64);
    if packed.summed_inputs() > 0 {
        parts.fill(f32::NAN);
    }
    let input = matrix::<S>(rows, inputs, &x);
    let (x, w) = (rounded::<S>(&x), rounded::<S>(&w));
    let exact = |row: usize, column: usize| -> f64 {
        let products = (0..inputs).map(|at| x[row * inputs + at] * w[column * inputs + at]);
        products.sum::<f64>() + f64::from(bias[column])
    };
    let columns = packed.padded_outputs();
    let (mut stored, mut active, mut positive) =
        (Matrix::new(rows, columns), Matrix::new(rows, columns), Matrix::new(rows, columns));
    let mut added = Matrix::<f32>::new(rows, columns);
    (0..rows).for_each(|row| added.row_mut(row)[..outputs].fill(1.5));
    matmul(simd, team, rows, &input, &packed, Store, &mut stored, &mut parts);
    matmul(simd, team, rows, &input, &packed, Gelu, &mut active, &mut parts);
    matmul(simd, team, rows, &input, &packed, Relu, &mut positive, &mut parts);
    matmul(simd, team, rows, &input, &packed, AddTo, &mut added, &mut parts);
    let size = inputs as f64;
    for row in 0..rows {
        for column in 0..outputs {
            let exact = exact(row, column);
            assert_near::<S>(S::value(stored.row(row)[column]), exact, size);
            assert_near::<S>(S::value(active.row(row)[column]), plain_gelu(exact), size);
            assert_near::<S>(S::value(positive.row(row)[column]), exact.max(0.0), size);
            assert!((f64::from(added.row(row)[column]) - exact - 1.5).abs() <= 4e-6 * size);
        }
        assert!(added.row(row)[outputs..].iter().all(|&rest| rest == 0.0));
        assert!(stored.row(row)[outputs..].iter().all(|&rest| rest == S::Element::default()));
    }
}

/// `x · Φ(x)`, Φ by the series of its density's integral or, far out, by its continued fraction.
fn plain_gelu(x: f64) -> f64 {
    let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let size = x.abs();
    let upper = if size < 3.0 {
        let (mut term, mut sum) = (size, size);
        for n in 1..200 {
            term *= size * size / f64::from(2 * n + 1);
            sum += term;
        }
        0.5 - density * sum
    } else {
        let fraction = (1..200).rev().fold(size, |rest, n| size + f64::from(n) / rest);
        density / fraction
    };
    x * if x > 0.0 { 1.0 - upper } else { upper }
}

fn attention_is_that_of_the_plain_loops<S: Simd>(
    simd: S,
    lengths: &[usize],
    heads: Heads,
    seed: u64,
    team: &Team<'_>,
) {
    let (hidden, rows) = (heads.count * heads.width, lengths.iter().sum::<usize>());
    let qkv = values(seed, rows * 3 * hidden);
    let input = matrix::<S>(rows, 3 * hidden, &qkv);
    let qkv = rounded::<S>(&qkv);
    let mut end = 0;
    let texts: Vec<Range<usize>> = lengths
        .iter()
        .map(|length| {
            end += length;
            end - length..end
        })
        .collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let scratches = Scratches::<S>::new(team.size(), longest, heads);
    let mut context = Matrix::new(rows, hidden);
    // Twice, with what the first left behind.
    for _ in 0..2 {
        attention(simd, team, &texts, heads, &input, &mut context, &scratches);
    }
    let at = |row: usize, part: usize, column: usize| qkv[(row * 3 + part) * hidden + column];
    for text in texts {
        for (query, head) in text.clone().flat_map(|row| (0..heads.count).map(move |h| (row, h))) {
            let columns = head * heads.width..(head + 1) * heads.width;
            let score = |key| -> f64 {
                columns.clone().map(|c| at(query, 0, c) * at(key, 1, c)).sum::<f64>().exp2()
            };
            let total: f64 = text.clone().map(score).sum();
            for column in columns.clone() {
                let sum: f64 = text.clone().map(|key| score(key) * at(key, 2, column)).sum();
                let found = f64::from(S::value(context.row(query)[column]));
                let precision = if S::DEPTH == 2 { 2e-2 } else { 1e-5 };
                assert!((found - sum / total).abs() < precision, "{found} for {}", sum / total);
            }
        }
    }
}

fn layer_norm_is_that_of_the_plain_loops<S: Simd>(simd: S, rows: usize, columns: usize, seed: u64) {
    let x = values(seed, rows * columns);
    let norm = LayerNorm {
        weight: values(seed + 1, columns),
        bias: values(seed + 2, columns),
        epsilon: 1e-5,
    };
    let mut hidden = Matrix::<f32>::new(rows, columns);
    for (row, x) in x.chunks_exact(columns).enumerate() {
        hidden.row_mut(row)[..columns].copy_from_slice(x);
    }
    let mut elements = Matrix::new(rows, columns);
    layer_norm(simd, rows, &norm, &mut hidden, &mut elements);
    for (row, x) in x.chunks_exact(columns).enumerate() {
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let mean = x.iter().sum::<f64>() / columns as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / columns as f64;
        for (column, x) in x.iter().enumerate() {
            let exact = (x - mean) / (variance + 1e-5).sqrt() * f64::from(norm.weight[column])
                + f64::from(norm.bias[column]);
            let found = hidden.row(row)[column];
            assert!((f64::from(found) - exact).abs() < 1e-4, "{found} for {exact}");
            assert_eq!(elements.row(row)[column], S::element(found));
        }
        assert!(hidden.row(row)[columns..].iter().all(|&rest| rest == 0.0));
    }
}

/// A function of registers, over a slice.
struct Over<'a, F>(&'a mut [f32], F);

impl<S: Simd, F: Fn(S, S::Vector) -> S::Vector> Task<S> for Over<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self, simd: S) {
        for x in self.0.chunks_exact_mut(S::LANES) {
            simd.store((self.1)(simd, simd.load(x)), x);
        }
    }
}

fn exp2_and_gelu_are_within_their_bounds<S: Simd>(simd: S) {
    let steps = 1 << 20;
    let all = |from: f32, to: f32| -> Vec<f32> {
        (0..steps).map(|step| from + (to - from) * step as f32 / steps as f32).collect()
    };
    let xs = all(-126.0, 0.0);
    let mut powers = xs.clone();
    simd.vectorize(Over(&mut powers, exp2::<S>));
    for (x, power) in xs.into_iter().zip(powers) {
        let exact = f64::from(x).exp2();
        let error = (f64::from(power) - exact).abs() / exact;
        assert!(error <= 2_f64.powi(-22), "2^{x} is not {power}");
    }
    let xs = all(-40.0, 40.0);
    let mut gelus = xs.clone();
    simd.vectorize(Over(&mut gelus, gelu::<S>));
    for (x, gelu) in xs.into_iter().zip(gelus) {
        let error = (f64::from(gelu) - plain_gelu(f64::from(x))).abs();
        let bound = 2_f64.powi(-21) * f64::from(x).abs().max(1.0);
        assert!(error <= bound, "gelu({x}) is not {gelu}");
    }
    let mut edges = vec![f32::NEG_INFINITY; S::LANES];
    simd.vectorize(Over(&mut edges, exp2::<S>));
    assert!(edges.iter().all(|&power| (0.0..=2_f32.powi(-125)).contains(&power)));
    let mut edges = vec![f32::NAN; S::LANES];
    simd.vectorize(Over(&mut edges, gelu::<S>));
    assert!(edges.iter().all(|gelu| gelu.is_nan()), "a defect is not hidden");
}

#[test]
fn functions_are_within_their_bounds() {
    everywhere!(exp2_and_gelu_are_within_their_bounds());
}

fn elements_have_their_values<S: Simd>(simd: S, seed: u64) {
    let numbers = values(seed, S::LANES);
    let mut elements = vec![S::Element::default(); S::LANES];
    simd.store_elements(simd.load(&numbers), &mut elements);
    let mut found = vec![0.0; S::LANES];
    simd.store(simd.load_elements(&elements), &mut found);
    let expected: Vec<f32> = numbers.iter().map(|&x| S::value(S::element(x))).collect();
    assert_eq!(found, expected);
}

#[test]
fn elements_are_read_as_they_are_written() {
    everywhere!(elements_have_their_values(7));
}

fn a_tile_beyond_its_slices_panics<S: Simd>(simd: S) {
    // More than two rounds without a jump, of any instruction set.
    const STEPS: usize = 19;
    let panel = vec![S::Element::default(); STEPS * S::WIDTH * S::DEPTH];
    let run = |input: usize, rows: usize, steps: usize, out: usize| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let input = vec![S::Element::default(); input];
            let mut out = vec![0.0; out];
            simd.tile(&input, rows, STEPS * S::DEPTH, &panel, steps, &mut out, S::WIDTH, &panel);
        }))
    };
    let (input, out) = (2 * STEPS * S::DEPTH, 2 * S::WIDTH);
    assert!(run(input, 2, STEPS, out).is_ok());
    assert!(run(input - 1, 2, STEPS, out).is_err());
    assert!(run(input, 2, STEPS, out - 1).is_err());
    assert!(run(input * 4, 2, STEPS + 1, out).is_err(), "the panel has fewer steps");
    assert!(run(input, 0, STEPS, out).is_err());
    assert!(run(input * 100, S::ROWS + 1, STEPS, out * 100).is_err());
}

#[test]
fn nothing_is_read_or_written_out_of_bounds() {
    everywhere!(a_tile_beyond_its_slices_panics());
}

proptest! {
    // PROPTEST_CASES sets another number, for a run under valgrind.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.div_ceil(4)))]

    #[test]
    fn products(
        shape in (1_usize..40, 1_usize..100, 1_usize..100),
        seed in any::<u32>(),
        in_a_team in any::<bool>(),
    ) {
        let seed = u64::from(seed);
        if in_a_team {
            Team::lead(&pool(), |team| {
                everywhere!(a_product_is_that_of_the_plain_loops(shape, true, seed, team));
            });
        } else {
            everywhere!(a_product_is_that_of_the_plain_loops(shape, true, seed, &Team::SOLO));
        }
    }

    /// As many rows, and inputs of whole registers, as products by way of sums are for.
    #[test]
    fn large_products(
        rows in 60_usize..260,
        registers in 1_usize..5,
        outputs in 1_usize..140,
        seed in any::<u32>(),
    ) {
        let shape = (rows, 32 * registers, outputs);
        let seed = u64::from(seed);
        everywhere!(a_product_is_that_of_the_plain_loops(shape, true, seed, &Team::SOLO));
        everywhere!(a_product_is_that_of_the_plain_loops(shape, false, seed, &Team::SOLO));
    }

    #[test]
    fn attentions(
        lengths in prop::collection::vec(1_usize..80, 1..4),
        count in 1_usize..4,
        width in 1_usize..70,
        seed in any::<u32>(),
        in_a_team in any::<bool>(),
    ) {
        let heads = Heads { count, width };
        let seed = u64::from(seed);
        if in_a_team {
            Team::lead(&pool(), |team| {
                everywhere!(attention_is_that_of_the_plain_loops(&lengths, heads, seed, team));
            });
        } else {
            everywhere!(attention_is_that_of_the_plain_loops(&lengths, heads, seed, &Team::SOLO));
        }
    }

    #[test]
    fn layer_norms(rows in 1_usize..4, columns in 2_usize..200, seed in any::<u32>()) {
        everywhere!(layer_norm_is_that_of_the_plain_loops(rows, columns, u64::from(seed)));
    }
}
