//! Texts to token ids, with the model's own tokenizer.

use std::{borrow::Cow, path::Path};

use tokenizers::{PostProcessor, Tokenizer, TruncationDirection};

use super::{EmbedError, Encoding, LoadError, TextEncoder};

/// First part of a long text that is tokenised, in bytes per token of the maximum: enough for
/// almost every text to fill the maximum.
const FIRST_PART: usize = 16;

/// No more of a text than this is ever tokenised, in bytes per token of the maximum, so that a
/// huge text costs no more time and memory than a long one. A text that gives fewer tokens than
/// the maximum in so many bytes is not prose.
const LAST_PART: usize = 1024;

/// Tokens beyond the maximum that a part must give before the rest of the text may be ignored:
/// more than one word has, so that a cut inside a word cannot change the tokens that are kept.
const MARGIN: usize = 128;

/// A tokenizer of the `tokenizers` crate, with truncation of our own.
pub(super) struct ModelTokenizer {
    tokenizer: Tokenizer,
    max_tokens: usize,
    max_content: usize,
    lowercase: bool,
}

impl ModelTokenizer {
    /// Reads a `tokenizer.json`. Truncation and padding that it asks for are ignored: texts are
    /// cut to `max_tokens`, special tokens included. `lowercase` texts are lower-cased first.
    pub(super) fn from_file(
        path: &Path,
        max_tokens: usize,
        lowercase: bool,
    ) -> Result<Self, LoadError> {
        let failed = |source| LoadError::Tokenizer { path: path.to_owned(), source };
        let mut tokenizer = Tokenizer::from_file(path).map_err(failed)?;
        tokenizer.with_truncation(None).map_err(failed)?.with_padding(None);
        let special = tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(false));
        if max_tokens <= special {
            let what = format!("{special} special tokens of {max_tokens} in all");
            return Err(LoadError::Unsupported { path: path.to_owned(), what });
        }
        Ok(Self { tokenizer, max_tokens, max_content: max_tokens - special, lowercase })
    }

    /// Tokenises as much of a text as can matter; true when there was more.
    fn content(&self, text: &str) -> Result<(tokenizers::Encoding, bool), tokenizers::Error> {
        let last = text.floor_char_boundary(self.max_tokens * LAST_PART);
        let mut part = self.max_tokens * FIRST_PART;
        loop {
            let end = text.floor_char_boundary(part.min(last));
            let content = if self.lowercase {
                Cow::Owned(text[..end].to_lowercase())
            } else {
                Cow::Borrowed(&text[..end])
            };
            let encoding = self.tokenizer.encode_fast(content, false)?;
            if end == last || encoding.len() >= self.max_content + MARGIN {
                return Ok((encoding, end < text.len()));
            }
            part *= 4;
        }
    }

    fn encode(&self, text: &str) -> Result<Encoding, tokenizers::Error> {
        let (mut content, more) = self.content(text)?;
        let truncated = more || content.len() > self.max_content;
        content.truncate(self.max_content, 0, TruncationDirection::Right);
        content.take_overflowing();
        let encoding = self.tokenizer.post_process(content, None, true)?;
        Ok(Encoding { ids: encoding.get_ids().to_vec(), truncated })
    }
}

impl TextEncoder for ModelTokenizer {
    fn encode(&self, text: &str) -> Result<Encoding, EmbedError> {
        // The tokenizer's own message may quote the text.
        Self::encode(self, text).map_err(|_| EmbedError::Tokenizer("it cannot encode it".into()))
    }
}
