//! From the vectors of a text's tokens to the vector of the text.

use candle_core::{Result, Tensor};
use encoder::Pooling;

use super::EmbedError;

/// Pools `hidden` (texts × tokens × components); `mask` (texts × tokens, f32) is 1 where there is
/// a token and 0 where there is padding. Gives texts × components.
pub(super) fn pool(pooling: Pooling, hidden: &Tensor, mask: &Tensor) -> Result<Tensor> {
    match pooling {
        Pooling::Mean => {
            let sums = hidden.broadcast_mul(&mask.unsqueeze(2)?)?.sum(1)?;
            sums.broadcast_div(&mask.sum_keepdim(1)?)
        }
        Pooling::Cls => hidden.narrow(1, 0, 1)?.squeeze(1),
    }
}

/// Scales a vector to length 1. A vector that has no direction, or a component that is not
/// finite, is an error: it must not reach the database.
pub(super) fn normalise(vector: &mut [f32]) -> std::result::Result<(), EmbedError> {
    let norm = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if !norm.is_finite() {
        return Err(EmbedError::Model("a vector has a component that is not finite".into()));
    }
    if norm == 0.0 {
        return Err(EmbedError::Model("a vector has length 0".into()));
    }
    for component in vector {
        *component = (f64::from(*component) / norm) as f32;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use candle_core::Device;

    use super::*;

    #[test]
    fn padding_does_not_count() {
        let hidden =
            Tensor::new(&[[[1_f32, 2.0], [3.0, 6.0]], [[5.0, 7.0], [900.0, 900.0]]], &Device::Cpu)
                .unwrap();
        let mask = Tensor::new(&[[1_f32, 1.0], [1.0, 0.0]], &Device::Cpu).unwrap();
        let mean = pool(Pooling::Mean, &hidden, &mask).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(mean, [[2.0, 4.0], [5.0, 7.0]]);
        let cls = pool(Pooling::Cls, &hidden, &mask).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(cls, [[1.0, 2.0], [5.0, 7.0]]);
    }

    #[test]
    fn a_vector_without_direction_is_an_error() {
        let mut vector = [3.0, 4.0];
        normalise(&mut vector).unwrap();
        assert_eq!(vector, [0.6, 0.8]);
        for mut bad in [[0.0, 0.0], [f32::NAN, 1.0], [1.0, f32::INFINITY]] {
            assert!(matches!(normalise(&mut bad), Err(EmbedError::Model(_))), "{bad:?}");
        }
        let mut huge = [f32::MAX, f32::MAX];
        normalise(&mut huge).unwrap();
        assert!((huge[0] - std::f32::consts::FRAC_1_SQRT_2).abs() < 1e-6);
    }
}
