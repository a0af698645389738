//! The seam between the runtime and a model: token ids in, vectors out. Knows nothing of jobs.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use rayon::prelude::*;

use super::{Computation, Prompts};
use crate::domain::FailureKind;

/// One text as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, special tokens included; never more than the model's maximum.
    pub ids: Vec<u32>,
    /// Whether the text was longer than the model's maximum, and was cut.
    pub truncated: bool,
}

/// Turns a text into token ids.
pub trait TextEncoder: Send + Sync {
    /// Encodes and truncates one text. CPU-bound: call it off the async threads.
    fn encode(&self, text: &str) -> Result<Encoding, EmbedError>;
}

/// Texts that are worth another thread.
const TEXTS_PER_THREAD: usize = 8;

/// Encodes texts on all cores, each with its own answer, in order. A text that makes the tokenizer
/// panic is refused like any other. CPU-bound: call it off the async threads.
pub fn encode_all<T: AsRef<str> + Sync>(
    encoder: &dyn TextEncoder,
    texts: &[T],
) -> Vec<Result<Encoding, EmbedError>> {
    // Encoding changes nothing that a panic could leave half-changed.
    let encode = |text: &T| catch_unwind(AssertUnwindSafe(|| encoder.encode(text.as_ref())));
    let refuse = |_| Err(EmbedError::Tokenizer("it panicked".to_owned()));
    let texts = texts.par_iter().with_min_len(TEXTS_PER_THREAD);
    texts.map(|text| encode(text).unwrap_or_else(refuse)).collect()
}

/// A model that turns token ids into vectors.
///
/// # Contract
/// - Returns one vector of [`dimension`](Self::dimension) components for each text, in order,
///   L2-normalised; an empty batch gives an empty answer.
/// - An error concerns the whole batch and says nothing about which text is at fault; the
///   caller splits the batch to find out. Nothing of the batch is kept.
/// - Blocks for as long as the computation takes; runs on a thread of its own, one call at a
///   time per thread, but may be shared by several threads.
/// - May panic on a defect; the thread that called it is then replaced, the backend is not, so
///   that it must hold no state that a panic can leave half-changed.
pub trait EmbeddingBackend: Send + Sync {
    /// Components of each vector.
    fn dimension(&self) -> usize;

    /// Whether a batch costs as many tokens as its longest text times its texts; otherwise it
    /// costs the tokens of its texts together.
    fn pads_batches(&self) -> bool {
        false
    }

    /// Embeds the texts of a batch together.
    fn embed(&self, batch: &[Encoding]) -> Result<Vec<Vec<f32>>, EmbedError>;
}

/// Why a text or a batch could not be embedded. Messages never hold text.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The tokenizer refused the text.
    #[error("the tokenizer refused the text: {0}")]
    Tokenizer(String),
    /// The model failed on this batch.
    #[error("the model failed: {0}")]
    Model(String),
    /// The device cannot compute at present (out of memory, lost); no text is at fault.
    #[error("the device is not available: {0}")]
    Device(String),
}

impl EmbedError {
    /// What follows from it.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Tokenizer(_) => FailureKind::Permanent,
            Self::Model(_) => FailureKind::Transient,
            Self::Device(_) => FailureKind::Infrastructure,
        }
    }
}

/// What a model says of itself, for those who use its vectors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    /// How the vectors of a text's tokens become its own, by the names of sentence-transformers.
    pub pooling: Vec<&'static str>,
    /// What may stand before each text.
    pub prompts: Prompts,
    /// Whether the model's own steps end with vectors of length 1; ours always have it.
    pub normalises: bool,
}

/// A model ready to use: its tokenizer, its computation and what identifies its vectors.
#[derive(Clone)]
pub struct Model {
    /// The id that the operator configured.
    pub name: String,
    /// The revision or weight hash; with `name` it identifies the vectors.
    pub revision: String,
    /// A hash of all that the vectors of given tokens depend on: weights, shape, pooling, operands.
    pub fingerprint: String,
    /// Texts are cut to this many tokens.
    pub max_tokens: usize,
    /// What it says of itself.
    pub description: Description,
    /// How the vectors are computed.
    pub computation: Computation,
    /// The tokenizer.
    pub encoder: Arc<dyn TextEncoder>,
    /// The computation.
    pub backend: Arc<dyn EmbeddingBackend>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token a character; panics on an empty text.
    struct Characters;

    impl TextEncoder for Characters {
        fn encode(&self, text: &str) -> Result<Encoding, EmbedError> {
            assert!(!text.is_empty(), "planned");
            Ok(Encoding { ids: text.chars().map(u32::from).collect(), truncated: false })
        }
    }

    #[test]
    fn each_text_has_its_own_answer_even_if_the_tokenizer_panics() {
        for count in [0, 1, 7, 8, 9, 1000] {
            let texts: Vec<String> = (0..count).map(|at| "x".repeat(at % 5)).collect();
            let answers = encode_all(&Characters, &texts);
            assert_eq!(answers.len(), count);
            for (text, answer) in texts.iter().zip(answers) {
                match answer {
                    Ok(encoding) => assert_eq!(encoding.ids.len(), text.len()),
                    Err(error) => {
                        assert!(text.is_empty());
                        assert_eq!(error.kind(), FailureKind::Permanent);
                    }
                }
            }
        }
    }
}
