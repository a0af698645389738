//! From vectors to rows: the second half of a job's way through a worker.

use std::collections::HashSet;

use tracing::{debug, error, warn};
use uuid::Uuid;

use super::{
    batch::{Batch, Text},
    context::unix_now,
    embedder::EmbedResult,
    endings,
    throttler::ThrottlerMsg,
    worker::{Held, Worker},
};
use crate::{
    domain::FailureKind,
    inference::EmbedError,
    store::Vector,
    telemetry::{Chain, metrics},
};

/// Stores the vectors of a batch and ends its jobs. Returns the batches to embed again, when
/// the batch failed and could be split; all other jobs are let go.
pub async fn finish(worker: &Worker, batch: Batch, result: EmbedResult) -> Vec<Batch> {
    match result.vectors {
        Ok(vectors) => {
            let (texts, tokens) = (batch.texts.len(), batch.tokens());
            debug!(texts, tokens, took = ?result.took, "a batch was embedded");
            metrics::batch_embedded(texts, tokens, result.took);
            worker.context.device_up.send_replace(true);
            store(worker, batch.texts, vectors).await;
            worker.tell(ThrottlerMsg::Up);
            Vec::new()
        }
        Err(error) => failed(worker, batch, &error).await,
    }
}

/// A batch that failed is split until the text at fault is alone; a device that ran out of memory
/// may also manage the halves.
async fn failed(worker: &Worker, batch: Batch, error: &EmbedError) -> Vec<Batch> {
    let single = match batch.split() {
        Ok(halves) => {
            warn!(error = %Chain(error), "a batch failed; splitting it");
            return halves.into();
        }
        Err(single) => jobs_of(single.texts),
    };
    match error.kind() {
        FailureKind::Infrastructure => {
            error!(error = %Chain(error), "the device is away");
            worker.context.device_up.send_replace(false);
            worker.tell(ThrottlerMsg::Down);
            worker.hand_back(&single).await;
        }
        kind => endings::fail(worker, single, kind, &error.to_string()).await,
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

fn jobs_of(texts: impl IntoIterator<Item = Text>) -> Vec<Held> {
    texts.into_iter().map(Text::into_held).collect()
}

async fn store(worker: &Worker, texts: Vec<Text>, vectors: Vec<Vec<f32>>) {
    if vectors.len() != texts.len() {
        let reason = "the model lost count of the texts";
        return endings::fail(worker, jobs_of(texts), FailureKind::Transient, reason).await;
    }
    let dimension = worker.context.model.backend.dimension();
    let (good, bad): (Vec<_>, Vec<_>) =
        texts.into_iter().zip(vectors).partition(|(_, values)| is_unit(values, dimension));
    if !bad.is_empty() {
        let jobs = jobs_of(bad.into_iter().map(|(text, _)| text));
        let reason = "the model's vector is not of length 1";
        endings::fail(worker, jobs, FailureKind::Transient, reason).await;
    }
    let mut jobs: Vec<Held> = Vec::with_capacity(good.len());
    let mut rows = Vec::with_capacity(good.len());
    for (text, values) in good {
        rows.push(Vector {
            id: text.job.node_id,
            text: text.text,
            source_hash: text.source_hash,
            values,
            truncated: text.encoding.truncated,
            attempts: text.job.attempts,
        });
        jobs.push((text.lease, text.job));
    }
    let (stored, refused) = write(worker, &rows).await;
    let (done, rest): (Vec<Held>, Vec<Held>) =
        jobs.into_iter().partition(|(_, job)| stored.contains(&job.node_id));
    let (refused, changed): (Vec<Held>, Vec<Held>) =
        rest.into_iter().partition(|(_, job)| refused.contains(&job.node_id));
    let now = unix_now();
    for (_, job) in &done {
        if let Some(enqueued_at) = job.enqueued_at {
            metrics::job_stored(now - enqueued_at);
        }
    }
    endings::end(worker, "ready", &done).await;
    if !refused.is_empty() {
        let reason = "the database refused the vector";
        endings::fail(worker, refused, FailureKind::Transient, reason).await;
    }
    if !changed.is_empty() {
        // The text changed meanwhile, or the row is gone: the next claim finds out which.
        metrics::stale_vectors(changed.len());
        worker.hand_back(&changed).await;
    }
}

/// Writes vectors; a statement that is refused is split, so that one bad row harms no other.
/// Returns the nodes stored, and those whose row was refused.
async fn write(worker: &Worker, rows: &[Vector]) -> (HashSet<Uuid>, HashSet<Uuid>) {
    let (mut stored, mut refused) = (HashSet::new(), HashSet::new());
    let mut parts = vec![rows];
    while let Some(part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        match worker.insist(|| worker.context.store.complete(part)).await {
            Ok(ids) => stored.extend(ids),
            Err(error) if part.len() == 1 => {
                error!(error = %Chain(&error), node = %part[0].id, "cannot store a vector");
                refused.insert(part[0].id);
            }
            Err(_) => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([first, second]);
            }
        }
    }
    (stored, refused)
}

#[cfg(test)]
mod tests {
    use super::is_unit;

    #[test]
    fn only_unit_vectors_may_be_stored() {
        assert!(is_unit(&[0.6, 0.8], 2));
        for bad in [vec![f32::NAN, 1.0], vec![0.0, 0.0], vec![1.0], vec![f32::INFINITY, 0.0]] {
            assert!(!is_unit(&bad, 2), "{bad:?}");
        }
    }
}
