//! From vectors to rows: the second half of a job's way through a worker.

use std::collections::HashSet;

use ractor::ActorRef;
use tracing::{error, warn};
use uuid::Uuid;

use super::{
    batch::{Batch, Text},
    context::{Context, unix_now},
    embedder::EmbedResult,
    failures,
    leases::LeaseKeeper,
    outage::insist,
    prepare::{hand_back, let_go},
    throttler::ThrottlerMsg,
};
use crate::{
    domain::Job,
    inference::EmbedError,
    queue::Lease,
    store::{StoreError, Vector},
    telemetry::{Chain, metrics},
};

/// Stores the vectors of a batch and ends its jobs. Returns the batches to embed again, when
/// the batch failed and could be split; all other jobs are let go.
pub async fn finish(
    context: &Context,
    throttler: &ActorRef<ThrottlerMsg>,
    keeper: &LeaseKeeper,
    batch: Batch,
    result: EmbedResult,
) -> Vec<Batch> {
    match result.vectors {
        Ok(vectors) => {
            metrics::batch_embedded(batch.texts.len(), batch.tokens(), result.took);
            store(context, throttler, keeper, batch.texts, vectors).await;
            Vec::new()
        }
        Err(error @ EmbedError::Device(_)) => {
            error!(error = %Chain(&error), "the device is away");
            let _ = throttler.cast(ThrottlerMsg::Down);
            let jobs = jobs_of(batch.texts);
            hand_back(context, throttler, keeper, &jobs).await;
            Vec::new()
        }
        Err(error) => match batch.split() {
            Ok(halves) => {
                warn!(error = %Chain(&error), "a batch failed; splitting it");
                halves.into()
            }
            Err(single) => {
                let reason = error.to_string();
                failures::fail(context, throttler, keeper, jobs_of(single.texts), &reason).await;
                Vec::new()
            }
        },
    }
}

/// How far from 1 the length of a stored vector may be.
const LENGTH_TOLERANCE: f32 = 1e-2;

/// Whether a vector may be stored: no NaN, no zero vector, length 1.
pub fn is_unit(vector: &[f32], dimension: usize) -> bool {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    // A NaN fails the comparison.
    vector.len() == dimension && (length - 1.0).abs() <= LENGTH_TOLERANCE
}

fn jobs_of(texts: impl IntoIterator<Item = Text>) -> Vec<(Lease, Job)> {
    texts.into_iter().map(|text| (text.lease, text.job)).collect()
}

async fn store(
    context: &Context,
    throttler: &ActorRef<ThrottlerMsg>,
    keeper: &LeaseKeeper,
    texts: Vec<Text>,
    vectors: Vec<Vec<f32>>,
) {
    let dimension = context.model.backend.dimension();
    if vectors.len() != texts.len() {
        let reason = "the model lost count of the texts";
        return failures::fail(context, throttler, keeper, jobs_of(texts), reason).await;
    }
    let (good, bad): (Vec<_>, Vec<_>) =
        texts.into_iter().zip(vectors).partition(|(_, values)| is_unit(values, dimension));
    if !bad.is_empty() {
        let jobs = jobs_of(bad.into_iter().map(|(text, _)| text));
        let reason = "the model's vector is not of length 1";
        failures::fail(context, throttler, keeper, jobs, reason).await;
    }
    let mut done: Vec<(Lease, Job)> = Vec::with_capacity(good.len());
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
        done.push((text.lease, text.job));
    }
    let (stored, refused) = write(context, throttler, &rows).await;
    let now = unix_now();
    let (mut acked, mut stale) = (Vec::with_capacity(done.len()), Vec::new());
    for (lease, job) in done {
        if stored.contains(&job.node_id) {
            metrics::job_stored(now - job.enqueued_at);
            acked.push((lease, job));
        } else if refused.contains(&job.node_id) {
            let reason = "the database refused the vector";
            failures::fail(context, throttler, keeper, vec![(lease, job)], reason).await;
        } else {
            stale.push((lease, job));
        }
    }
    failures::end(context, throttler, "ready", &acked).await;
    let_go(throttler, keeper, acked.iter().map(|(lease, job)| (lease, job)));
    if !stale.is_empty() {
        // The text changed meanwhile, or the row is gone: the next claim finds out which.
        hand_back(context, throttler, keeper, &stale).await;
    }
}

/// Writes vectors; a statement that is refused is split, so that one bad row harms no other.
/// Returns the nodes stored, and those whose row was refused.
async fn write(
    context: &Context,
    throttler: &ActorRef<ThrottlerMsg>,
    rows: &[Vector],
) -> (HashSet<Uuid>, HashSet<Uuid>) {
    let (mut stored, mut refused) = (HashSet::new(), HashSet::new());
    let mut parts = vec![rows];
    while let Some(part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        let answer: Result<Vec<Uuid>, StoreError> =
            insist(throttler, || context.store.complete(part)).await;
        match answer {
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
