//! From vectors to rows: the second half of a job's way through a worker.

use std::{collections::HashSet, time::Duration};

use tracing::{debug, error, warn};
use uuid::Uuid;

use super::{
    batch::{Batch, Text},
    context::unix_now,
    endings,
    room::Load,
    throttler::ThrottlerMsg,
    worker::{Held, Worker},
};
use crate::{
    domain::FailureKind,
    inference::EmbedError,
    store::{StoreError, Subject, TextHash, Vector},
    telemetry::{Chain, metrics},
};

/// Texts that have their vectors.
pub enum Done {
    /// A batch that came back from a model.
    Batch {
        /// The texts.
        batch: Batch,
        /// A vector for each input that differs.
        vectors: Vec<Vec<f32>>,
        /// Time from submission to answer.
        took: Duration,
    },
    /// Texts that were embedded before.
    Known(Vec<(Text, Vec<f32>)>),
}

impl Done {
    /// How much it is.
    pub fn load(&self) -> Load {
        match self {
            Self::Batch { batch, .. } => Load::of([batch]),
            Self::Known(known) => Load {
                texts: known.len(),
                tokens: known.iter().map(|(text, _)| text.encoding.ids.len()).sum(),
            },
        }
    }
}

/// How many batches came back from a model. Only their texts can be blamed for what a suspect does.
pub fn batches(done: &[Done]) -> usize {
    done.iter().filter(|done| matches!(done, Done::Batch { .. })).count()
}

/// Stores vectors and ends the jobs of their texts: all of them together, because a database that
/// keeps what it is given takes as long for much as for little.
pub async fn finish(worker: &Worker, done: Vec<Done>) {
    let mut embedded = Vec::new();
    for done in done {
        match done {
            Done::Batch { batch, vectors, took } => {
                worker.context.device_up.send_replace(true);
                embedded.extend(vectors_of(worker, batch, &vectors, took).await);
            }
            Done::Known(known) => embedded.extend(known),
        }
    }
    store(worker, embedded).await;
    // What was embedded before says nothing of a device that is away.
    if *worker.context.device_up.borrow() {
        worker.tell(ThrottlerMsg::Up);
    }
}

/// The texts of a batch with their vectors.
async fn vectors_of(
    worker: &Worker,
    batch: Batch,
    vectors: &[Vec<f32>],
    took: Duration,
) -> Vec<(Text, Vec<f32>)> {
    let distinct = batch.distinct();
    let texts = distinct.len();
    let tokens = distinct.iter().map(|text| text.encoding.ids.len()).sum();
    debug!(texts, tokens, ?took, "a batch was embedded");
    metrics::batch_embedded(texts, tokens, took);
    metrics::duplicates_in_batch(batch.texts.len() - texts);
    if vectors.len() != texts {
        let reason = "the model lost count of the texts";
        endings::fail(worker, failing(batch.texts), FailureKind::Transient, reason).await;
        return Vec::new();
    }
    let inputs = batch.inputs();
    let vectors = inputs.into_iter().map(|input| vectors[input].clone());
    batch.texts.into_iter().zip(vectors).collect()
}

/// A batch that failed is split until the text at fault is alone; a device that ran out of memory
/// may also manage the halves. Returns the batches to embed again; all other jobs are let go.
pub async fn failed(worker: &Worker, batch: Batch, error: &EmbedError) -> Vec<Batch> {
    let single = match batch.split() {
        Ok(halves) => {
            warn!(error = %Chain(error), "a batch failed; splitting it");
            return halves.into();
        }
        Err(single) => single.texts,
    };
    match error.kind() {
        FailureKind::Infrastructure => {
            error!(error = %Chain(error), "the device is away");
            worker.context.device_up.send_replace(false);
            worker.tell(ThrottlerMsg::Down);
            let jobs: Vec<Held> = single.into_iter().map(Text::into_held).collect();
            worker.hand_back(&jobs).await;
        }
        kind => endings::fail(worker, failing(single), kind, &error.to_string()).await,
    }
    Vec::new()
}

/// How far from 1 the length of a stored vector may be.
const LENGTH_TOLERANCE: f32 = 1e-2;

/// Whether a vector may be stored: no NaN, no zero vector, length 1.
pub fn is_unit(vector: &[f32], dimension: usize) -> bool {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    // A NaN fails the comparison.
    vector.len() == dimension && (length - 1.0).abs() <= LENGTH_TOLERANCE
}

fn failing(texts: impl IntoIterator<Item = Text>) -> Vec<(Held, Subject)> {
    texts.into_iter().map(Text::into_failing).collect()
}

async fn store(worker: &Worker, embedded: Vec<(Text, Vec<f32>)>) {
    let dimension = worker.context.model.backend.dimension();
    let (good, bad): (Vec<_>, Vec<_>) =
        embedded.into_iter().partition(|(_, values)| is_unit(values, dimension));
    if !bad.is_empty() {
        let jobs = failing(bad.into_iter().map(|(text, _)| text));
        let reason = "the model's vector is not of length 1";
        endings::fail(worker, jobs, FailureKind::Transient, reason).await;
    }
    let mut jobs: Vec<(Held, TextHash)> = Vec::with_capacity(good.len());
    let mut rows = Vec::with_capacity(good.len());
    for (text, values) in good {
        rows.push(Vector {
            id: text.job.node_id,
            text_hash: Some(text.text_hash),
            source_hash: text.source_hash,
            input_hash: text.input_hash,
            values,
            truncated: text.encoding.truncated,
            failed_attempts: text.job.attempts,
        });
        jobs.push(((text.lease, text.job), text.text_hash));
    }
    let (stored, refused) = write(worker, &rows).await;
    let (mut done, mut failed, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    for (held, hash) in jobs {
        let node = held.1.node_id;
        if refused.contains(&(node, hash)) {
            failed.push((held, Subject::Text(Some(hash))));
        } else if stored.contains(&node) {
            done.push(held);
        } else {
            changed.push(held);
        }
    }
    let now = unix_now();
    for (_, job) in &done {
        if let Some(enqueued_at) = job.enqueued_at {
            metrics::job_stored(now - enqueued_at);
        }
    }
    endings::end(worker, "ready", &done).await;
    if !failed.is_empty() {
        let reason = "the database refused the vector";
        endings::fail(worker, failed, FailureKind::Transient, reason).await;
    }
    if !changed.is_empty() {
        // The text changed meanwhile, the row is gone, held, or takes nothing without a word: a later
        // claim finds out which.
        metrics::stale_vectors(changed.len());
        endings::put_aside(worker, changed, NOT_STORED_PAUSE).await;
    }
}

/// Writes vectors; a statement that is refused is split, so that one bad row harms no other.
/// Returns the nodes stored, and those whose row was refused, with their texts.
async fn write(worker: &Worker, rows: &[Vector]) -> (HashSet<Uuid>, HashSet<(Uuid, TextHash)>) {
    let (mut stored, mut refused) = (HashSet::new(), HashSet::new());
    let mut parts = vec![rows];
    while let Some(part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        match complete(worker, part).await {
            Ok(ids) => stored.extend(ids),
            Err(error) if part.len() == 1 => {
                error!(error = %Chain(&error), node = %part[0].id, "cannot store a vector");
                refused.extend(part[0].text_hash.map(|hash| (part[0].id, hash)));
            }
            Err(_) => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([first, second]);
            }
        }
    }
    (stored, refused)
}

/// How long a job waits whose row took no vector.
const NOT_STORED_PAUSE: Duration = Duration::from_millis(200);
/// How long a row that another session holds is waited for.
const HELD_PAUSE: Duration = Duration::from_millis(50);

/// Stores vectors; those whose rows take none are tried once more after a moment, because another
/// session may just have held them.
async fn complete(worker: &Worker, rows: &[Vector]) -> Result<Vec<Uuid>, StoreError> {
    let store = &worker.context.store;
    let mut stored = worker.insist_on(rows.len(), || store.complete(rows)).await?;
    if stored.len() < rows.len() {
        tokio::time::sleep(HELD_PAUSE).await;
        let left: Vec<Vector> =
            rows.iter().filter(|row| !stored.contains(&row.id)).cloned().collect();
        // What is refused now is told by the next claim; the others are stored.
        match worker.insist_on(left.len(), || store.complete(&left)).await {
            Ok(more) => stored.extend(more),
            Err(error) => warn!(error = %Chain(&error), "rows that were held take no vector"),
        }
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::{Batch, Done, Duration, batches, is_unit};

    #[test]
    fn only_unit_vectors_may_be_stored() {
        assert!(is_unit(&[0.6, 0.8], 2));
        for bad in [vec![f32::NAN, 1.0], vec![0.0, 0.0], vec![1.0], vec![f32::INFINITY, 0.0]] {
            assert!(!is_unit(&bad, 2), "{bad:?}");
        }
    }

    #[test]
    fn what_was_embedded_before_is_no_batch() {
        let batch = Batch { texts: Vec::new(), suspect: false };
        let embedded = Done::Batch { batch, vectors: Vec::new(), took: Duration::ZERO };
        assert_eq!(batches(&[Done::Known(Vec::new()), embedded, Done::Known(Vec::new())]), 1);
    }
}
