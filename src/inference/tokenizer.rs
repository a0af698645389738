//! Texts to token ids, with the model's own tokenizer.

use std::{
    borrow::Cow,
    path::Path,
    sync::{Mutex, PoisonError},
};

use tokenizers::{
    Model, OffsetReferential, OffsetType, PostProcessor, PreTokenizer, Token, Tokenizer,
    normalizers::{Lowercase, NormalizerWrapper, Sequence},
};

use super::{
    EmbedError, Encoding, LoadError, TextEncoder,
    sentence::{BertRules, Casing},
};

/// First part of a long text that is tokenised, in bytes per token of the maximum: enough for
/// almost every text to fill the maximum. A part that does not is replaced by one of four times
/// the size, so that all parts together cost no more than the last and a third.
const FIRST_PART: usize = 16;

/// What is tokenised next, in bytes, after a part without a word.
const NEXT_PART: usize = 1 << 16;

/// No part is longer, in bytes; only a single word of more can fill it.
const LONGEST_PART: usize = 16 << 20;

/// One part of at least so many bytes is tokenised at a time, so that the memory that the
/// tokenizer takes for it, many times its size, is taken once.
const LARGE_PART: usize = 1 << 20;

/// Words at the end of a part that the rest of the text may change: the one that is cut, and
/// those before it that a tokenizer has cut off from it by what it sees there.
const UNSETTLED: usize = 8;

/// Names of files that hold a tokenizer for other programs only.
pub(super) const FOREIGN: [&str; 4] =
    ["vocab.txt", "sentencepiece.bpe.model", "spiece.model", "vocab.json"];

/// A tokenizer of the `tokenizers` crate, with truncation of our own.
///
/// A word, here, is what the tokenizer makes tokens of by itself: its tokens depend on no other.
/// For a tokenizer that does not cut texts into words, the whole text is one.
pub(super) struct ModelTokenizer {
    tokenizer: Tokenizer,
    max_tokens: usize,
    max_content: usize,
    /// Stands before each text.
    prompt: String,
    prompt_tokens: usize,
    /// Held while a large part is tokenised.
    large: Mutex<()>,
}

/// The first tokens of a text, without special ones.
struct Content {
    tokens: Vec<Token>,
    /// Whether the text has more.
    truncated: bool,
}

impl ModelTokenizer {
    /// Reads a `tokenizer.json`. Truncation and padding that it asks for are ignored: texts are
    /// cut to `max_tokens`, special tokens included. `prompt` is put before each.
    pub(super) fn from_file(
        path: &Path,
        max_tokens: usize,
        casing: Casing,
        prompt: &str,
    ) -> Result<Self, LoadError> {
        if !path.is_file() {
            let directory = path.parent().unwrap_or(path);
            let foreign = FOREIGN.into_iter().find(|file| directory.join(file).is_file());
            return Err(LoadError::NoTokenizer { place: directory.display().to_string(), foreign });
        }
        let failed = |source| LoadError::Tokenizer { path: path.to_owned(), source };
        let unsupported = |what| LoadError::Unsupported { path: path.to_owned(), what };
        let mut tokenizer = Tokenizer::from_file(path).map_err(failed)?;
        tokenizer.with_truncation(None).map_err(failed)?.with_padding(None);
        follow(casing.bert, &mut tokenizer).map_err(failed)?;
        if casing.lowercase {
            lower(&mut tokenizer).map_err(failed)?;
        }
        let special = tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(false));
        if max_tokens <= special {
            return Err(unsupported(format!("{special} special tokens of {max_tokens} in all")));
        }
        let mut tokenizer = Self {
            tokenizer,
            max_tokens,
            max_content: max_tokens - special,
            prompt: String::new(),
            prompt_tokens: 0,
            large: Mutex::new(()),
        };
        if !prompt.is_empty() {
            let content = tokenizer.content(prompt).map_err(failed)?;
            if content.truncated || content.tokens.len() == tokenizer.max_content {
                return Err(LoadError::LongPrompt { max_tokens });
            }
            tokenizer.prompt_tokens = tokenizer.tokens_before_text(content).map_err(failed)?;
            tokenizer.prompt = prompt.to_owned();
        }
        Ok(tokenizer)
    }

    /// Tokens of the prompt, special ones before it included.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// As sentence-transformers counts: all but a special token at the end.
    fn tokens_before_text(&self, prompt: Content) -> Result<usize, tokenizers::Error> {
        let encoding = self.with_special(prompt.tokens)?;
        let is_added = encoding.get_special_tokens_mask().last() == Some(&1);
        let special =
            |token: &String| self.tokenizer.get_added_vocabulary().is_special_token(token);
        let is_special = is_added || encoding.get_tokens().last().is_some_and(special);
        Ok(encoding.len() - usize::from(is_special))
    }

    fn with_special(&self, tokens: Vec<Token>) -> Result<tokenizers::Encoding, tokenizers::Error> {
        self.tokenizer.post_process(tokenizers::Encoding::from_tokens(tokens, 0), None, true)
    }

    /// Tokenises as much of a text as can matter.
    fn content(&self, text: &str) -> Result<Content, tokenizers::Error> {
        let (mut start, mut size) = (0, self.max_tokens * FIRST_PART);
        loop {
            let end = text.floor_char_boundary(start + size.min(LONGEST_PART));
            let is_last = end == text.len() || size >= LONGEST_PART;
            let turn = (end - start >= LARGE_PART)
                .then(|| self.large.lock().unwrap_or_else(PoisonError::into_inner));
            let tokens = self.first_tokens(&text[start..end], is_last)?;
            drop(turn);
            match tokens {
                // What was there is nothing to the tokenizer. Its last character stays, for what
                // depends on whether a word begins the text.
                None if end < text.len() => {
                    start = text.floor_char_boundary(end - 1);
                    size = NEXT_PART;
                }
                Some(mut tokens) if is_last || tokens.len() > self.max_content => {
                    let truncated = end < text.len() || tokens.len() > self.max_content;
                    tokens.truncate(self.max_content);
                    return Ok(Content { tokens, truncated });
                }
                None => return Ok(Content { tokens: Vec::new(), truncated: false }),
                Some(_) => size *= 4,
            }
        }
    }

    /// The first tokens of a part of a text, more than the maximum where it has more. Of a part
    /// that is not the last, only those that no continuation can change. None where there is no
    /// word.
    fn first_tokens(
        &self,
        part: &str,
        is_last: bool,
    ) -> Result<Option<Vec<Token>>, tokenizers::Error> {
        let added = self.tokenizer.get_added_vocabulary();
        let mut words = added.extract_and_normalize(self.tokenizer.get_normalizer(), part);
        if let Some(pre_tokenizer) = self.tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        let words = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
        let settled = match is_last {
            true => words.len(),
            false => words.len().saturating_sub(UNSETTLED),
        };
        let mut first = Vec::new();
        for (word, _, added) in &words[..settled] {
            match added {
                Some(tokens) => first.extend_from_slice(tokens),
                None => first.extend(self.tokenizer.get_model().tokenize(word)?),
            }
            if first.len() > self.max_content {
                break;
            }
        }
        Ok((!words.is_empty()).then_some(first))
    }

    fn encode(&self, text: &str) -> Result<Encoding, tokenizers::Error> {
        let text = match self.prompt.as_str() {
            "" => Cow::Borrowed(text),
            prompt => Cow::Owned(format!("{prompt}{text}")),
        };
        let Content { tokens, truncated } = self.content(&text)?;
        let encoding = self.with_special(tokens)?;
        Ok(Encoding { ids: encoding.get_ids().to_vec(), truncated })
    }
}

/// Makes a tokenizer of BERT see texts as its settings say, where its file says otherwise.
fn follow(rules: BertRules, tokenizer: &mut Tokenizer) -> Result<(), tokenizers::Error> {
    let Some(NormalizerWrapper::BertNormalizer(bert)) = tokenizer.get_normalizer() else {
        return Ok(());
    };
    let mut bert = *bert;
    bert.lowercase = rules.do_lower_case.unwrap_or(bert.lowercase);
    bert.strip_accents = rules.strip_accents.or(bert.strip_accents);
    bert.handle_chinese_chars = rules.tokenize_chinese_chars.unwrap_or(bert.handle_chinese_chars);
    tokenizer.with_normalizer(Some(bert)).map(|_| ())
}

/// Makes a tokenizer lower-case texts, unless it does so already, as sentence-transformers does.
fn lower(tokenizer: &mut Tokenizer) -> Result<(), tokenizers::Error> {
    let is_lower = |one: &NormalizerWrapper| matches!(one, NormalizerWrapper::Lowercase(_));
    let mut all: Vec<NormalizerWrapper> = match tokenizer.get_normalizer() {
        Some(NormalizerWrapper::Sequence(sequence)) => sequence.as_ref().to_vec(),
        Some(one) => vec![one.clone()],
        None => Vec::new(),
    };
    if !all.iter().any(is_lower) {
        all.insert(0, Lowercase.into());
        tokenizer.with_normalizer(Some(Sequence::new(all)))?;
    }
    Ok(())
}

impl TextEncoder for ModelTokenizer {
    fn encode(&self, text: &str) -> Result<Encoding, EmbedError> {
        // The tokenizer's own message may quote the text.
        Self::encode(self, text).map_err(|_| EmbedError::Tokenizer("it cannot encode it".into()))
    }
}
