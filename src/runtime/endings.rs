//! The ways in which a worker ends jobs. Each forgets the jobs afterwards.

use std::{collections::HashSet, time::Duration};

use tracing::{error, info, warn};
use uuid::Uuid;

use super::{
    context::unix_now,
    worker::{Held, Worker},
};
use crate::{
    domain::{FailureKind, Job, NodeStatus},
    queue::{DeadLetter, Lease},
    store::{Outcome, Subject},
    telemetry::{Chain, metrics},
};

/// Fails jobs: they wait for their next attempt, or end for good when the failure is permanent
/// or was the last one. Rows first: a crash in between leaves a lease that runs out, never a
/// row that waits for nothing.
///
/// A row that is not about what failed any more takes nothing, and its job goes back; but a
/// job whose row could not be read fails whatever the row says, since reading it is what failed.
pub async fn fail(worker: &Worker, failed: Vec<(Held, Subject)>, kind: FailureKind, reason: &str) {
    let retry = &worker.context.config.retry;
    let mut ended: Vec<(Held, Option<Duration>)> = Vec::with_capacity(failed.len());
    let mut outcomes = Vec::with_capacity(failed.len());
    for ((lease, mut job), subject) in failed {
        job.attempts += 1;
        let delay = match kind {
            FailureKind::Permanent => None,
            FailureKind::Transient | FailureKind::Infrastructure => retry.delay(job.attempts),
        };
        let status = if delay.is_some() { NodeStatus::Queued } else { NodeStatus::Failed };
        warn!(node = %job.node_id, attempts = job.attempts, %status, reason, "a job failed");
        outcomes.push(Outcome {
            id: job.node_id,
            status,
            error: reason.to_owned(),
            attempts: job.attempts,
            subject,
        });
        ended.push(((lease, job), delay));
    }
    let recorded = record(worker, &outcomes).await;
    let mut retries: Vec<(Lease, Job, Duration)> = Vec::new();
    let (mut letters, mut jobs, mut moot) = (Vec::new(), Vec::new(), Vec::new());
    for (((lease, job), delay), outcome) in ended.into_iter().zip(&outcomes) {
        if outcome.subject != Subject::Unread && !recorded.contains(&job.node_id) {
            // The row has another text by now, or is not this worker's any more: what failed is
            // not what it holds. The next claim finds out.
            moot.push((lease, job));
            continue;
        }
        match delay {
            Some(delay) => retries.push((lease.clone(), job.clone(), delay)),
            None => letters.push(DeadLetter::of_job(lease.clone(), &job, reason, unix_now())),
        }
        jobs.push((lease, job));
    }
    worker.hand_back_without_rows(&moot).await;
    metrics::jobs_ended("retry", retries.len());
    metrics::jobs_ended("failed", letters.len());
    match worker.insist(|| worker.context.queue.retry(&retries)).await {
        Ok(stale) => metrics::stale_leases(stale),
        Err(error) => {
            error!(error = %Chain(&error), "cannot plan retries; their leases will run out");
        }
    }
    bury(worker, &letters).await;
    worker.let_go(&jobs);
}

/// Marks nodes without a text, each with the reason, and ends their jobs.
pub async fn skip(worker: &Worker, skipped: Vec<(Held, &'static str)>) {
    let outcomes: Vec<Outcome> = skipped
        .iter()
        .map(|((_, job), reason)| Outcome {
            id: job.node_id,
            status: NodeStatus::Skipped,
            error: (*reason).to_owned(),
            attempts: job.attempts,
            subject: Subject::Text(None),
        })
        .collect();
    let recorded = record(worker, &outcomes).await;
    // As in a failure: a row that was not marked is not the one that has no text.
    let (jobs, moot): (Vec<Held>, Vec<Held>) = skipped
        .into_iter()
        .map(|(held, _)| held)
        .partition(|(_, job)| recorded.contains(&job.node_id));
    worker.hand_back_without_rows(&moot).await;
    end(worker, "skipped", &jobs).await;
}

/// Lets jobs wait for a while, with no attempt used: what they need is held by somebody else. Their
/// rows stay as they are.
pub async fn put_aside(worker: &Worker, jobs: Vec<Held>, pause: Duration) {
    let waiting: Vec<(Lease, Job, Duration)> =
        jobs.iter().map(|(lease, job)| (lease.clone(), job.clone(), pause)).collect();
    match worker.insist(|| worker.context.queue.retry(&waiting)).await {
        Ok(stale) => metrics::stale_leases(stale),
        Err(error) => {
            error!(error = %Chain(&error), "cannot put jobs aside; their leases will run out");
        }
    }
    metrics::jobs_ended("put_aside", jobs.len());
    worker.let_go(&jobs);
}

/// Ends jobs that are done; `outcome` is for the metric.
pub async fn end(worker: &Worker, outcome: &'static str, jobs: &[Held]) {
    if jobs.is_empty() {
        return;
    }
    match worker.insist(|| worker.context.queue.ack(jobs)).await {
        Ok(stale) => {
            metrics::jobs_ended(outcome, jobs.len() - stale as usize);
            metrics::stale_leases(stale);
        }
        Err(error) => error!(error = %Chain(&error), "cannot end jobs; their leases will run out"),
    }
    worker.let_go(jobs);
}

/// Puts entries that are no jobs on the list of dead letters.
pub async fn bury(worker: &Worker, letters: &[DeadLetter]) {
    match worker.insist(|| worker.context.queue.dead_letter(letters, false)).await {
        Ok((stale, evicted)) => {
            metrics::stale_leases(stale);
            report_evictions(evicted);
        }
        Err(error) => {
            error!(error = %Chain(&error), "cannot write dead letters; their leases will run out");
        }
    }
    worker.keeper.release(letters.iter().map(|letter| &letter.lease));
}

/// A full list of dead letters loses its oldest, never silently.
pub fn report_evictions(evicted: u64) {
    if evicted > 0 {
        metrics::dead_letters_evicted(evicted);
        info!(evicted, "the dead-letter list is full; its oldest entries were dropped");
    }
}

/// Writes outcomes; a statement that is refused is split, so that one bad row harms no other.
/// Answers the nodes whose rows are about these outcomes.
async fn record(worker: &Worker, outcomes: &[Outcome]) -> HashSet<Uuid> {
    let mut recorded = HashSet::with_capacity(outcomes.len());
    let mut parts = vec![outcomes];
    while let Some(part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        match worker.insist_on(part.len(), || worker.context.store.record(part)).await {
            Ok(changed) => recorded.extend(changed),
            Err(error) if part.len() == 1 => {
                error!(error = %Chain(&error), node = %part[0].id, "cannot record an outcome");
                // Its job ends all the same: another try would be refused, too.
                recorded.insert(part[0].id);
            }
            Err(_) => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([first, second]);
            }
        }
    }
    recorded
}
