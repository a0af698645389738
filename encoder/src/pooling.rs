//! From the vectors of a text's tokens to the vector of the text.

/// One way in which token vectors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The vector of the first token.
    Cls,
    /// The largest of each component.
    Max,
    /// The mean over all tokens of the text, special ones included.
    Mean,
    /// Their sum over the square root of their number.
    MeanSqrtLen,
    /// The mean, each token weighted by its place in the text, from 1.
    WeightedMean,
    /// The vector of the last token.
    LastToken,
}

/// How token vectors become the text's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pooling {
    /// Their results stand one after another in the vector.
    pub modes: Vec<Mode>,
    /// Tokens at the start of a text that are not pooled.
    pub skipped: usize,
}

impl Mode {
    /// What each of `count` tokens counts, the first `skipped` nothing; none for
    /// [`Max`](Self::Max), which is no sum.
    pub fn weights(self, count: usize, skipped: usize) -> Option<Vec<f32>> {
        let pooled = count.saturating_sub(skipped) as f32;
        let only = |chosen: usize| (0..count).map(|at| f32::from(at == chosen)).collect();
        let each = |weight: f32| (0..count).map(move |at| if at < skipped { 0.0 } else { weight });
        Some(match self {
            // Where all are skipped, the first is what sentence-transformers takes.
            Self::Cls => only(if skipped < count { skipped } else { 0 }),
            Self::Max => return None,
            Self::Mean => each(1.0 / pooled).collect(),
            Self::MeanSqrtLen => each(1.0 / pooled.sqrt()).collect(),
            Self::WeightedMean => {
                let sum: f32 = (skipped..count).map(|at| (at + 1) as f32).sum();
                each(1.0 / sum).enumerate().map(|(at, weight)| weight * (at + 1) as f32).collect()
            }
            Self::LastToken => only(count - 1),
        })
    }

    /// Adds this pooling of some tokens, of which there is one, to `to`.
    fn pool<'a>(
        self,
        tokens: impl ExactSizeIterator<Item = &'a [f32]>,
        skipped: usize,
        to: &mut [f32],
    ) {
        let Some(weights) = self.weights(tokens.len(), skipped) else {
            to.fill(f32::NEG_INFINITY);
            for token in tokens.skip(skipped) {
                to.iter_mut().zip(token).for_each(|(most, &value)| *most = most.max(value));
            }
            return;
        };
        for (token, weight) in tokens.zip(weights).filter(|(_, weight)| *weight != 0.0) {
            to.iter_mut().zip(token).for_each(|(sum, value)| *sum += weight * value);
        }
    }
}

impl Pooling {
    /// The pooling by one mode, over all tokens.
    pub fn of(mode: Mode) -> Self {
        Self { modes: vec![mode], skipped: 0 }
    }

    /// Pools the vectors of the tokens of one text, each of `width` components.
    pub(crate) fn pool<'a, T>(&self, tokens: impl Fn() -> T, width: usize) -> Vec<f32>
    where
        T: ExactSizeIterator<Item = &'a [f32]>,
    {
        let mut pooled = vec![0.0; width * self.modes.len()];
        for (mode, part) in self.modes.iter().zip(pooled.chunks_exact_mut(width)) {
            mode.pool(tokens(), self.skipped, part);
        }
        pooled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(modes: &[Mode], skipped: usize) -> Vec<f32> {
        let tokens = [[1.0, 2.0], [3.0, 6.0], [8.0, 1.0]];
        let pooling = Pooling { modes: modes.to_vec(), skipped };
        pooling.pool(|| tokens.iter().map(|token| token.as_slice()), 2)
    }

    fn alike(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
    }

    #[test]
    fn each_mode_is_that_of_sentence_transformers() {
        for (mode, all, without_first) in [
            (Mode::Cls, [1.0, 2.0], [3.0, 6.0]),
            (Mode::Max, [8.0, 6.0], [8.0, 6.0]),
            (Mode::Mean, [4.0, 3.0], [5.5, 3.5]),
            (Mode::MeanSqrtLen, [6.928_203, 5.196_152], [7.778_175, 4.949_747]),
            (Mode::WeightedMean, [31.0 / 6.0, 17.0 / 6.0], [6.0, 3.0]),
            (Mode::LastToken, [8.0, 1.0], [8.0, 1.0]),
        ] {
            assert!(alike(&pool(&[mode], 0), &all), "{mode:?}: {:?}", pool(&[mode], 0));
            assert!(alike(&pool(&[mode], 1), &without_first), "{mode:?}: {:?}", pool(&[mode], 1));
        }
    }

    #[test]
    fn several_modes_stand_one_after_another() {
        assert!(alike(&pool(&[Mode::Cls, Mode::Mean], 0), &[1.0, 2.0, 4.0, 3.0]));
    }
}
