//! Parts of the encoder by themselves, for benches.

use crate::{
    kernel::{Kernel, Visit},
    kernels::{Arena, Matrix, Packed, Parts, Simd, Store, Team, matmul},
};

/// A linear layer with weights of `outputs` × `inputs` over `rows` tokens, on one thread: each
/// call computes it once, `2 · rows · inputs · outputs` operations. `None` where this CPU cannot
/// run the kernel.
pub fn product(
    kernel: Kernel,
    rows: usize,
    inputs: usize,
    outputs: usize,
) -> Option<Box<dyn FnMut()>> {
    kernel.with(Product { rows, inputs, outputs })
}

/// As many multiplications and additions in registers as fit into `steps` steps of the kernel,
/// with operands that never leave the first-level cache: the ceiling of [`product`]. Each call
/// does the operations that are returned beside it.
pub fn ceiling(kernel: Kernel) -> Option<(u64, Box<dyn FnMut()>)> {
    kernel.with(Ceiling)
}

struct Product {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl Visit for Product {
    type Output = Box<dyn FnMut()>;

    fn visit<S: Simd>(self, simd: S) -> Self::Output {
        let Self { rows, inputs, outputs } = self;
        let mut arena = Arena::new(12 * inputs * outputs);
        let (weights, bias) = (vec![0.5; inputs * outputs], vec![0.0; outputs]);
        let mut weights = Packed::<S>::new(&mut arena, &weights, &bias);
        if S::SUMS_PAY {
            weights = weights.with_sums(simd, &mut arena);
        }
        let input = Matrix::new(rows, inputs);
        let mut out = Matrix::new(rows, weights.padded_outputs());
        let mut parts = Parts::new(weights.summed_inputs());
        Box::new(move || {
            matmul(simd, &Team::SOLO, rows, &input, &weights, Store, &mut out, &mut parts)
        })
    }
}

struct Ceiling;

impl Visit for Ceiling {
    type Output = (u64, Box<dyn FnMut()>);

    fn visit<S: Simd>(self, simd: S) -> Self::Output {
        // A panel of so few steps stays in the first-level cache, as do the rows.
        let steps = 64;
        let rows = S::ROWS;
        let panel = vec![S::Element::default(); steps * S::DEPTH * S::WIDTH];
        let input = vec![S::Element::default(); steps * S::DEPTH * rows];
        let mut out = vec![0.0; rows * S::WIDTH];
        let times = 1_000;
        let operations = 2 * times * rows * steps * S::DEPTH * S::WIDTH;
        let run = move || {
            for _ in 0..times {
                simd.tile(
                    &input,
                    rows,
                    steps * S::DEPTH,
                    &panel,
                    steps,
                    &mut out,
                    S::WIDTH,
                    &panel,
                );
                std::hint::black_box(&mut out);
            }
        };
        (operations as u64, Box::new(run))
    }
}
