//! The matrix products of all-MiniLM-L6-v2 on one thread, for each kernel, beside the ceiling of
//! this CPU. An item is a floating-point operation: "Gitem/s" reads "GFLOP/s".
//!
//!     cargo bench -p encoder

use divan::{Bencher, counter::ItemsCount};
use encoder::{Kernel, probe};

/// Inputs and outputs: queries, keys and values; attention output; inner; output.
const SHAPES: [(usize, usize); 4] = [(384, 1152), (384, 384), (384, 1536), (1536, 384)];
/// Tokens.
const ROWS: [usize; 5] = [1, 16, 128, 1_024, 8_192];

fn main() {
    divan::main();
}

fn kernels() -> impl Iterator<Item = Kernel> {
    Kernel::ALL.into_iter().filter(|kernel| kernel.is_available())
}

fn products() -> Vec<(Kernel, (usize, usize), usize)> {
    kernels()
        .flat_map(|kernel| SHAPES.map(|shape| (kernel, shape)))
        .flat_map(|(kernel, shape)| ROWS.map(|rows| (kernel, shape, rows)))
        .collect()
}

#[divan::bench(args = kernels())]
fn ceiling(bencher: Bencher<'_, '_>, kernel: Kernel) {
    let Some((operations, run)) = probe::ceiling(kernel) else { return };
    bencher.counter(ItemsCount::new(operations)).bench_local(run);
}

#[divan::bench(args = products())]
fn product(bencher: Bencher<'_, '_>, arguments: (Kernel, (usize, usize), usize)) {
    let (kernel, (inputs, outputs), rows) = arguments;
    let Some(run) = probe::product(kernel, rows, inputs, outputs) else { return };
    let operations = 2 * rows * inputs * outputs;
    bencher.counter(ItemsCount::new(operations)).bench_local(run);
}
