//! Texts to token ids, off the async threads and on all cores.

use std::{
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread::available_parallelism,
};

use futures::future::join_all;

use super::{
    batch::Text,
    cache::input_hash,
    context::source_hash,
    endings,
    worker::{Held, Worker},
};
use crate::inference::{EmbedError, Encoding, Model, TextEncoder};

/// Texts that are worth a task of their own.
const TEXTS_PER_TASK: usize = 8;

/// A job and its text.
pub struct Source {
    /// The job.
    pub held: Held,
    /// Its text.
    pub text: String,
}

/// Tokenises texts; the jobs of those that the tokenizer refuses are ended.
pub async fn tokenise(worker: &Worker, sources: Vec<Source>) -> Vec<Text> {
    let model = worker.context.model.clone();
    let has_cache = worker.context.config.cache;
    let tokenised = in_parallel(sources, move |Source { held: (lease, job), text }| {
        match encode(model.encoder.as_ref(), &text) {
            Ok(encoding) => Ok(Text {
                lease,
                job,
                source_hash: source_hash(&model, &text),
                input_hash: has_cache.then(|| input_hash(&model, &encoding.ids)),
                text,
                encoding,
            }),
            Err(error) => Err(Box::new(((lease, job), error))),
        }
    })
    .await;
    let mut texts = Vec::with_capacity(tokenised.len());
    for result in tokenised {
        match result {
            Ok(text) => texts.push(text),
            Err(refused) => {
                let (held, error) = *refused;
                let reason = error.to_string();
                endings::fail(worker, vec![held], error.kind(), &reason).await;
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
    in_parallel(texts, move |text| {
        let encoding = encode(encoder.as_ref(), &text);
        (text, encoding)
    })
    .await
}

/// A text that makes the tokenizer panic is refused like any other.
fn encode(encoder: &dyn TextEncoder, text: &str) -> Result<Encoding, EmbedError> {
    // Encoding changes nothing that a panic could leave half-changed.
    catch_unwind(AssertUnwindSafe(|| encoder.encode(text)))
        .unwrap_or_else(|_| Err(EmbedError::Tokenizer("it panicked".to_owned())))
}

/// Does CPU-bound work on each item, in as many blocking tasks as there are cores. The results are
/// in order; a panic goes on here.
async fn in_parallel<T: Send + 'static, R: Send + 'static>(
    items: Vec<T>,
    work: impl Fn(T) -> R + Clone + Send + 'static,
) -> Vec<R> {
    let cores = available_parallelism().map_or(1, NonZero::get);
    let tasks = items.len().div_ceil(TEXTS_PER_TASK).clamp(1, cores);
    let (each, all) = (items.len().div_ceil(tasks), items.len());
    let mut items = items.into_iter();
    let tasks: Vec<_> = (0..tasks)
        .map(|_| {
            let (part, work): (Vec<T>, _) = (items.by_ref().take(each).collect(), work.clone());
            tokio::task::spawn_blocking(move || part.into_iter().map(work).collect::<Vec<R>>())
        })
        .collect();
    let mut results = Vec::with_capacity(all);
    for part in join_all(tasks).await {
        match part {
            Ok(part) => results.extend(part),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // Blocking tasks are cancelled only when the process ends.
                Err(_) => std::future::pending().await,
            },
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn results_are_in_the_order_of_the_items() {
        for items in [0, 1, 7, 8, 9, 1000] {
            let doubled = in_parallel((0..items).collect(), |item| item * 2).await;
            assert_eq!(doubled, (0..items).map(|item| item * 2).collect::<Vec<i32>>());
        }
    }

    #[tokio::test]
    #[should_panic(expected = "planned")]
    async fn a_panic_goes_on() {
        in_parallel(vec![()], |()| panic!("planned")).await;
    }
}
