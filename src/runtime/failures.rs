//! What becomes of jobs that end without a vector.

use std::time::Duration;

use ractor::ActorRef;
use tracing::{error, info, warn};

use super::{
    context::{Context, unix_now},
    leases::LeaseKeeper,
    outage::insist,
    prepare::let_go,
    throttler::ThrottlerMsg,
};
use crate::{
    domain::{FailureKind, Job, NodeStatus},
    queue::{DeadLetter, Lease},
    store::Outcome,
    telemetry::{Chain, metrics},
};

/// A job that failed.
pub struct Failure {
    /// The right to end it.
    pub lease: Lease,
    /// The job.
    pub job: Job,
    /// `Transient` or `Permanent`; infrastructure is nobody's failure.
    pub kind: FailureKind,
    /// Why, without text.
    pub reason: String,
}

/// Lets jobs wait for their next attempt, or ends them for good. Rows first: a crash in between
/// leaves a lease that runs out, never a row that waits for nothing.
pub async fn settle(context: &Context, throttler: &ActorRef<ThrottlerMsg>, failures: Vec<Failure>) {
    let mut outcomes = Vec::with_capacity(failures.len());
    let mut retries: Vec<(Lease, Job, Duration)> = Vec::new();
    let mut letters = Vec::new();
    for Failure { lease, mut job, kind, reason } in failures {
        job.attempts += 1;
        let delay = match kind {
            FailureKind::Permanent => None,
            _ => context.config.retry.delay(job.attempts),
        };
        let status = if delay.is_some() { NodeStatus::Queued } else { NodeStatus::Failed };
        warn!(
            node = %job.node_id, attempts = job.attempts, %status, reason, "a job failed"
        );
        outcomes.push(Outcome {
            id: job.node_id,
            status,
            error: reason.clone(),
            attempts: job.attempts,
        });
        match delay {
            Some(delay) => retries.push((lease, job, delay)),
            None => letters.push(DeadLetter::of_job(lease, &job, &reason, unix_now())),
        }
    }
    record(context, throttler, &outcomes).await;
    metrics::jobs_ended("retry", retries.len());
    metrics::jobs_ended("failed", letters.len());
    match insist(throttler, || context.queue.retry(&retries)).await {
        Ok(stale) => metrics::stale_leases(stale),
        Err(error) => {
            error!(error = %Chain(&error), "cannot plan retries; their leases will run out")
        }
    }
    bury(context, throttler, &letters).await;
}

/// Fails jobs that may succeed next time, and forgets them.
pub async fn fail(
    context: &Context,
    throttler: &ActorRef<ThrottlerMsg>,
    keeper: &LeaseKeeper,
    jobs: Vec<(Lease, Job)>,
    reason: &str,
) {
    let failed = jobs.iter().map(|(lease, job)| Failure {
        lease: lease.clone(),
        job: job.clone(),
        kind: FailureKind::Transient,
        reason: reason.to_owned(),
    });
    settle(context, throttler, failed.collect()).await;
    let_go(throttler, keeper, jobs.iter().map(|(lease, job)| (lease, job)));
}

/// Marks nodes without a text, and ends their jobs.
pub async fn skip(
    context: &Context,
    throttler: &ActorRef<ThrottlerMsg>,
    skipped: Vec<(Lease, Job, String)>,
) {
    let outcomes: Vec<Outcome> = skipped
        .iter()
        .map(|(_, job, reason)| Outcome {
            id: job.node_id,
            status: NodeStatus::Skipped,
            error: reason.clone(),
            attempts: job.attempts,
        })
        .collect();
    record(context, throttler, &outcomes).await;
    let done: Vec<(Lease, Job)> = skipped.into_iter().map(|(lease, job, _)| (lease, job)).collect();
    end(context, throttler, "skipped", &done).await;
}

/// Ends jobs that are done; `outcome` is for the metric.
pub async fn end(
    context: &Context,
    throttler: &ActorRef<ThrottlerMsg>,
    outcome: &'static str,
    done: &[(Lease, Job)],
) {
    match insist(throttler, || context.queue.ack(done)).await {
        Ok(stale) => {
            metrics::jobs_ended(outcome, done.len() - stale as usize);
            metrics::stale_leases(stale);
        }
        Err(error) => error!(error = %Chain(&error), "cannot end jobs; their leases will run out"),
    }
}

/// Puts dead letters on their list.
pub async fn bury(context: &Context, throttler: &ActorRef<ThrottlerMsg>, letters: &[DeadLetter]) {
    match insist(throttler, || context.queue.dead_letter(letters, false)).await {
        Ok((stale, evicted)) => {
            metrics::stale_leases(stale);
            report_evictions(evicted);
        }
        Err(error) => {
            error!(error = %Chain(&error), "cannot write dead letters; their leases will run out")
        }
    }
}

/// A full list of dead letters loses its oldest, never silently.
pub fn report_evictions(evicted: u64) {
    if evicted > 0 {
        metrics::dead_letters_evicted(evicted);
        info!(evicted, "the dead-letter list is full; its oldest entries were dropped");
    }
}

async fn record(context: &Context, throttler: &ActorRef<ThrottlerMsg>, outcomes: &[Outcome]) {
    if outcomes.is_empty() {
        return;
    }
    if let Err(error) = insist(throttler, || context.store.record(outcomes)).await {
        // The job still ends: one that its row refuses would come back for ever.
        error!(error = %Chain(&error), "cannot record outcomes");
    }
}
