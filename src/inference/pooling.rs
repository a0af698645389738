//! From the vectors of a text's tokens to the vector of the text.

use candle_core::{Result, Tensor};
use encoder::{Mode, Pooling};

use super::EmbedError;

/// Pools `hidden` (texts × tokens × components); the rest of a text's row, past its length, is
/// padding. Gives texts × components.
pub(super) fn pool(pooling: &Pooling, hidden: &Tensor, lengths: &[usize]) -> Result<Tensor> {
    let longest = hidden.dim(1)?;
    let per_token =
        |values: Vec<f32>| Tensor::from_vec(values, (lengths.len(), longest, 1), hidden.device());
    let mut parts = Vec::with_capacity(pooling.modes.len());
    for mode in &pooling.modes {
        let mut weights = Vec::with_capacity(lengths.len() * longest);
        for (text, &length) in lengths.iter().enumerate() {
            weights.extend(mode.weights(length, pooling.skipped).unwrap_or_else(|| {
                (0..length).map(|at| f32::from(at >= pooling.skipped)).collect()
            }));
            weights.resize((text + 1) * longest, 0.0);
        }
        parts.push(match mode {
            Mode::Max => {
                let hide = |weight: f32| if weight == 0.0 { f32::NEG_INFINITY } else { 0.0 };
                let hidden_away = per_token(weights.into_iter().map(hide).collect())?;
                hidden.broadcast_add(&hidden_away)?.max(1)?
            }
            _ => hidden.broadcast_mul(&per_token(weights)?)?.sum(1)?,
        });
    }
    Tensor::cat(&parts, 1)
}

/// Keeps the first components of a vector, and scales it to length 1. An error is as that of
/// [`normalise`].
pub(super) fn finish(
    vector: &mut Vec<f32>,
    dimension: usize,
) -> std::result::Result<(), EmbedError> {
    vector.truncate(dimension);
    normalise(vector)
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
        let pooled = |modes: &[Mode], skipped| {
            let pooling = Pooling { modes: modes.to_vec(), skipped };
            pool(&pooling, &hidden, &[2, 1]).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(pooled(&[Mode::Mean], 0), [[2.0, 4.0], [5.0, 7.0]]);
        assert_eq!(pooled(&[Mode::Cls], 0), [[1.0, 2.0], [5.0, 7.0]]);
        assert_eq!(pooled(&[Mode::Max], 0), [[3.0, 6.0], [5.0, 7.0]]);
        assert_eq!(pooled(&[Mode::LastToken], 1), [[3.0, 6.0], [5.0, 7.0]]);
        let both = [[3.0, 6.0, 1.0, 2.0], [5.0, 7.0, 5.0, 7.0]];
        assert_eq!(pooled(&[Mode::Max, Mode::Cls], 0), both);
        assert_eq!(pooled(&[Mode::Mean], 1)[0], [3.0, 6.0]);
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
