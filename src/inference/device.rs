//! Which device computes.

use std::panic;

use candle_core::Device;

use super::LoadError;

/// The device of a name: `cpu`, `cuda`, `cuda:N`, or `auto`, the first GPU where there is one
/// that this program can use.
pub(super) fn select(name: &str) -> Result<Device, LoadError> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" if cfg!(feature = "cuda") => Ok(cuda("cuda:0", 0).unwrap_or_else(|error| {
            tracing::warn!(%error, "no GPU: embedding on the CPU");
            Device::Cpu
        })),
        "auto" => Ok(Device::Cpu),
        "cuda" => cuda(name, 0),
        _ => {
            let ordinal = name.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok());
            cuda(name, ordinal.ok_or_else(|| LoadError::DeviceName(name.to_owned()))?)
        }
    }
}

fn cuda(name: &str, ordinal: usize) -> Result<Device, LoadError> {
    if cfg!(not(feature = "cuda")) {
        return Err(LoadError::NoCuda(name.to_owned()));
    }
    let failed = |reason: String| LoadError::Device { name: name.to_owned(), reason };
    // The CUDA binding panics where the driver's library is missing.
    match panic::catch_unwind(|| Device::new_cuda(ordinal)) {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(error)) => {
            Err(failed(error.to_string().lines().next().unwrap_or_default().to_owned()))
        }
        Err(_) => Err(failed("the CUDA driver is missing".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn an_unknown_device_is_refused() {
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(matches!(select(name), Err(LoadError::DeviceName(_))), "{name:?}");
        }
        assert!(select("cpu").unwrap().is_cpu());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_gpu_needs_a_build_with_cuda() {
        assert!(select("auto").unwrap().is_cpu());
        for name in ["cuda", "cuda:1"] {
            let error = select(name).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("--features cuda"), "{error}");
        }
    }
}
