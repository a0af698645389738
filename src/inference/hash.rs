//! The `hash` backend: deterministic unit vectors without a model, for tests and benches. Equal
//! texts get equal vectors; that is all that the vectors mean.

use super::{EmbedError, EmbeddingBackend, Encoding, TextEncoder, pooling};

/// Components of each vector, as many as the default model's.
const DIMENSION: usize = 384;

/// Texts are cut to this many words, the default model's number of tokens.
pub(super) const MAX_TOKENS: usize = 256;

/// Makes a token of each word.
pub struct HashEncoder;

impl TextEncoder for HashEncoder {
    fn encode(&self, text: &str) -> Result<Encoding, EmbedError> {
        let mut words = text.split_whitespace();
        let ids = words.by_ref().take(MAX_TOKENS).map(word_id).collect();
        Ok(Encoding { ids, truncated: words.next().is_some() })
    }
}

/// FNV-1a with 32 bits.
fn word_id(word: &str) -> u32 {
    word.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Makes a pseudo-random vector of each sequence of tokens.
pub struct HashBackend;

impl EmbeddingBackend for HashBackend {
    fn dimension(&self) -> usize {
        DIMENSION
    }

    fn embed(&self, batch: &[Encoding]) -> Result<Vec<Vec<f32>>, EmbedError> {
        batch.iter().map(|text| vector(&text.ids)).collect()
    }
}

fn vector(ids: &[u32]) -> Result<Vec<f32>, EmbedError> {
    let mut state = ids.iter().fold(0, |state, &id| split_mix(state ^ u64::from(id)));
    let mut vector: Vec<f32> = (0..DIMENSION)
        .map(|_| {
            state = split_mix(state);
            ((state >> 40) as f32) / (1_u32 << 23) as f32 - 1.0
        })
        .collect();
    pooling::normalise(&mut vector)?;
    Ok(vector)
}

/// One step of SplitMix64.
fn split_mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn embed(text: &str) -> Vec<f32> {
        let encoding = HashEncoder.encode(text).unwrap();
        HashBackend.embed(&[encoding]).unwrap().remove(0)
    }

    #[test]
    fn equal_texts_get_equal_unit_vectors_and_others_do_not() {
        let (a, b) = (embed("two words"), embed("words two"));
        assert_eq!(a, embed(" two\nwords "));
        assert_eq!(a.len(), HashBackend.dimension());
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
        assert!((dot(&a, &a) - 1.0).abs() < 1e-5);
        assert!(dot(&a, &b).abs() < 0.3, "{}", dot(&a, &b));
    }

    #[test]
    fn vectors_are_the_same_in_every_release() {
        let first: Vec<i32> = embed("vecmill").iter().take(3).map(|x| (x * 1e6) as i32).collect();
        assert_eq!(first, [74_474, -86_287, 57_661]);
    }

    #[test]
    fn long_texts_are_cut() {
        let encoding = HashEncoder.encode(&"word ".repeat(MAX_TOKENS)).unwrap();
        assert_eq!((encoding.ids.len(), encoding.truncated), (MAX_TOKENS, false));
        let encoding = HashEncoder.encode(&"word ".repeat(MAX_TOKENS + 1)).unwrap();
        assert_eq!((encoding.ids.len(), encoding.truncated), (MAX_TOKENS, true));
        assert!(HashBackend.embed(&[]).unwrap().is_empty());
    }
}
