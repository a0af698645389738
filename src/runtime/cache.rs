//! Texts that need no model: the same input of the same model was embedded before.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};
use tracing::warn;

use super::{
    batch::Text,
    finish::is_unit,
    outage::Outage,
    throttler::ThrottlerMsg,
    worker::{Held, Worker},
};
use crate::{
    domain::Action,
    inference::Model,
    store::{InputHash, Store, StoreError},
    telemetry::{Chain, metrics},
};

/// Identifies what a model sees of a text, and the model: a text that differs only in what the
/// tokenizer drops, or beyond the model's maximum, gets the same vector.
pub fn input_hash(model: &Model, ids: &[u32]) -> InputHash {
    let mut hasher = Sha256::new();
    for part in [model.name.as_str(), model.revision.as_str(), model.fingerprint.as_str()] {
        // As in `source_hash`.
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    for id in ids {
        hasher.update(id.to_le_bytes());
    }
    hasher.finalize().into()
}

/// The vectors of those of these inputs that were embedded before. One that could not be stored
/// today is passed over, and so are all when the database refuses to look: the model can do without.
///
/// # Errors
/// The database is away.
pub async fn known(
    store: &Store,
    model: &Model,
    inputs: impl Iterator<Item = InputHash>,
) -> Result<HashMap<InputHash, Vec<f32>>, StoreError> {
    let inputs: HashSet<InputHash> = inputs.collect();
    let inputs: Vec<InputHash> = inputs.into_iter().collect();
    let dimension = model.backend.dimension();
    match store.vectors_of(&inputs).await {
        Ok(found) => {
            Ok(found.into_iter().filter(|(_, vector)| is_unit(vector, dimension)).collect())
        }
        Err(error) if error.is_outage() => Err(error),
        Err(error) => {
            warn!(error = %Chain(&error), "cannot look for vectors");
            Ok(HashMap::new())
        }
    }
}

/// Finds the vectors of texts that were embedded before: answers the texts for the model, and
/// those that have a vector. A refresh is there to embed again, and finds none. When the database
/// is away, the jobs go back.
pub async fn find(worker: &Worker, texts: Vec<Text>) -> (Vec<Text>, Vec<(Text, Vec<f32>)>) {
    let context = &worker.context;
    let input_of = |text: &Text| text.input_hash.filter(|_| text.job.action == Action::Embed);
    let vectors =
        match known(&context.store, &context.model, texts.iter().filter_map(input_of)).await {
            Ok(vectors) => vectors,
            Err(error) => {
                warn!(error = %Chain(&error), "cannot look for vectors");
                worker.tell(ThrottlerMsg::Down);
                let jobs: Vec<Held> = texts.into_iter().map(Text::into_held).collect();
                worker.hand_back(&jobs).await;
                return (Vec::new(), Vec::new());
            }
        };
    let (mut left, mut found) = (Vec::with_capacity(texts.len()), Vec::new());
    let mut asked = 0;
    for text in texts {
        let input = input_of(&text);
        asked += usize::from(input.is_some());
        match input.and_then(|input| vectors.get(&input)) {
            Some(vector) => found.push((text, vector.clone())),
            None => left.push(text),
        }
    }
    metrics::cache_looked_up(found.len(), asked - found.len());
    (left, found)
}
