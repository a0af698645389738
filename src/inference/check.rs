//! What every backend refuses to compute.

use super::{EmbedError, Encoding};

/// Fails when a text of the batch has no tokens, too many, or one that is not in the vocabulary.
pub(super) fn check(
    batch: &[Encoding],
    vocabulary: usize,
    max_tokens: usize,
) -> Result<(), EmbedError> {
    for text in batch {
        let fault = if text.ids.is_empty() {
            "a text has no tokens"
        } else if text.ids.len() > max_tokens {
            "a text has more tokens than the model has positions"
        } else if text.ids.iter().any(|&id| id as usize >= vocabulary) {
            "a token is not in the model's vocabulary"
        } else {
            continue;
        };
        return Err(EmbedError::Model(fault.to_owned()));
    }
    Ok(())
}
