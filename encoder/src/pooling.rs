//! From the vectors of a text's tokens to the vector of the text.

/// How token vectors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens of the text, special ones included.
    Mean,
    /// The vector of the first token.
    Cls,
}

impl Pooling {
    /// Pools the vectors of the tokens of one text.
    pub(crate) fn pool<'a>(self, tokens: impl ExactSizeIterator<Item = &'a [f32]>) -> Vec<f32> {
        let count = match self {
            Self::Mean => tokens.len(),
            Self::Cls => 1,
        };
        let mut pooled = Vec::new();
        for token in tokens.take(count) {
            pooled.resize(token.len(), 0.0);
            pooled.iter_mut().zip(token).for_each(|(sum, component)| *sum += component);
        }
        pooled.iter_mut().for_each(|sum| *sum /= count as f32);
        pooled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_over_all_tokens_and_cls_is_the_first() {
        let tokens = || [[1.0, 2.0], [3.0, 6.0]].iter().map(|token| token.as_slice());
        assert_eq!(Pooling::Mean.pool(tokens()), [2.0, 4.0]);
        assert_eq!(Pooling::Cls.pool(tokens()), [1.0, 2.0]);
    }
}
