//! Texts to token ids, off the async threads and on all cores.

use super::{
    batch::Text,
    cache::input_hash,
    context::source_hash,
    endings,
    off_async::off_async,
    worker::{Held, Worker},
};
use crate::{
    inference::{self, EmbedError, Encoding, Model},
    store::{Subject, TextHash, text_hash},
};

/// A job and its text.
pub struct Source {
    /// The job.
    pub held: Held,
    /// Its text.
    pub text: String,
    /// Identifies the text, where the text alone does not.
    pub text_hash: Option<TextHash>,
}

impl AsRef<str> for Source {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

/// Tokenises texts; the jobs of those that the tokenizer refuses are ended.
pub async fn tokenise(worker: &Worker, sources: Vec<Source>) -> Vec<Text> {
    let model = worker.context.model.clone();
    let has_cache = worker.context.config.cache;
    let tokenised = off_async(move || {
        let encodings = inference::encode_all(model.encoder.as_ref(), &sources);
        let to_text = |(Source { held: (lease, job), text, text_hash: hash }, encoding): (
            _,
            Result<Encoding, _>,
        )| {
            let text_hash = hash.unwrap_or_else(|| text_hash(&text));
            match encoding {
                Ok(encoding) => Ok(Text {
                    lease,
                    job,
                    source_hash: source_hash(&model, &text),
                    input_hash: has_cache.then(|| input_hash(&model, &encoding.ids)),
                    text_hash,
                    encoding,
                }),
                Err(error) => Err(Box::new(((lease, job), text_hash, error))),
            }
        };
        sources.into_iter().zip(encodings).map(to_text).collect::<Vec<Result<_, _>>>()
    })
    .await;
    let mut texts = Vec::with_capacity(tokenised.len());
    for result in tokenised {
        match result {
            Ok(text) => texts.push(text),
            Err(refused) => {
                let (held, hash, error) = *refused;
                let reason = error.to_string();
                let subject = Subject::Text(Some(hash));
                endings::fail(worker, vec![(held, subject)], error.kind(), &reason).await;
            }
        }
    }
    texts
}

/// Tokenises texts: for nodes embedded while the client waits.
pub async fn encode_all(
    model: &Model,
    texts: Vec<String>,
) -> Vec<(String, Result<Encoding, EmbedError>)> {
    let encoder = model.encoder.clone();
    off_async(move || {
        let encodings = inference::encode_all(encoder.as_ref(), &texts);
        texts.into_iter().zip(encodings).collect()
    })
    .await
}
