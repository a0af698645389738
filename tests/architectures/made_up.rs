//! Encoders with made-up weights, as reference.py makes them, on every kernel.

use std::path::Path;

use candle_core::{Device, Tensor};
use vecmill::inference::{
    BackendKind, ComputeConfig, Dtype, HubConfig, Kernel, LoadError, Model, ModelConfig, load,
};

fn split_mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The values that reference.py gives a tensor of this name.
pub fn tensor(name: &str, shape: &[usize]) -> Tensor {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let is_norm = name.to_lowercase().contains("norm") && name.ends_with("weight");
    let value = |index: u64| {
        let value = split_mix(seed.wrapping_add(index)) as f64 / 2_f64.powi(64) - 0.5;
        value as f32 + if is_norm { 1.0 } else { 0.0 }
    };
    let count = shape.iter().product::<usize>() as u64;
    Tensor::from_iter((0..count).map(value), &Device::Cpu).unwrap().reshape(shape).unwrap()
}

/// Loads the model of a directory.
pub async fn load_with(
    directory: &Path,
    kernel: Kernel,
    threads: usize,
) -> Result<Model, LoadError> {
    let hub = HubConfig {
        endpoint: "http://127.0.0.1:9".to_owned(),
        token: None,
        cache_dir: directory.join("no-cache"),
        offline: true,
    };
    load(&ModelConfig {
        backend: BackendKind::Model,
        model: directory.to_str().unwrap().to_owned(),
        compute: ComputeConfig { device: "cpu".to_owned(), dtype: Dtype::Auto, kernel, threads },
        models_dir: directory.to_owned(),
        hub,
    })
    .await
}

/// The kernels that this CPU can run, and candle.
pub fn kernels() -> impl Iterator<Item = Kernel> {
    Kernel::NAMES.into_iter().map(|(_, kernel)| kernel).filter(|kernel| match kernel {
        Kernel::Ours(kernel) => kernel.is_available(),
        Kernel::Auto | Kernel::Candle => true,
    })
}
