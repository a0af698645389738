//! What the RetryScheduler does: due retries, lost leases, orphaned rows, wrong counts.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tracing::{error, info, warn};
use uuid::Uuid;

use super::{
    context::{Context, unix_now},
    endings::report_evictions,
    outage::Outage,
    recount::{Counting, recount, recount_in_steps},
    worker::Held,
};
use crate::{
    domain::{Action, Job, NodeStatus},
    queue::{DeadLetter, Enqueued, Lock, QueueError},
    store::{Candidate, Outcome, Store, StoreError, Subject},
    telemetry::{Chain, metrics},
};

/// A job that loses its worker this often while it is alone with the model is a dead letter. The
/// first loss, which it may share with a whole batch, only makes it run alone: under kills that have
/// nothing to do with texts, a loss that may be anybody's buried one of 6,000 harmless ones.
const LOST_MAX: u32 = 3;
/// The lock of the sweep is held as long as that lasts, but not long for a process that died in it.
const SWEEP_TTL: Duration = Duration::from_secs(30);
/// The same for a look after lost workers.
const RECLAIM_TTL: Duration = Duration::from_secs(10);
/// Rows looked at together.
const PAGE: u64 = 500;

/// Why a sweep ended early.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Redis failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Outage for SweepError {
    fn is_outage(&self) -> bool {
        match self {
            Self::Queue(error) => error.is_outage(),
            Self::Store(error) => error.is_outage(),
        }
    }
}

/// Gives jobs whose worker is lost to other workers, and buries those that lose every worker.
pub async fn reclaim(context: Arc<Context>) -> Result<(), SweepError> {
    if context.queue.expired().await?.is_empty() {
        return Ok(());
    }
    // Two at once would write rows of jobs that the other has given away already.
    let Some(lock) = context.queue.lock(Lock::Reclaim, RECLAIM_TTL).await? else { return Ok(()) };
    let outcome = reclaim_expired(&context).await;
    context.queue.unlock(Lock::Reclaim, &lock).await?;
    outcome
}

async fn reclaim_expired(context: &Context) -> Result<(), SweepError> {
    let expired = context.queue.expired().await?;
    let (mut again, mut poison, mut letters) = (Vec::new(), Vec::new(), Vec::new());
    for expired in expired {
        let lease = expired.claimed.lease;
        match expired.claimed.job {
            Ok(mut job) => {
                job.lost += u32::from(expired.started);
                if job.lost > LOST_MAX {
                    poison.push((lease, job))
                } else {
                    again.push((lease, job))
                }
            }
            Err(reason) => letters.push(DeadLetter::of_entry(
                lease,
                &expired.claimed.entry,
                &reason.to_string(),
                unix_now(),
            )),
        }
    }
    let reason = format!("worker lost {LOST_MAX} times");
    let outcomes: Vec<Outcome> = poison
        .iter()
        .map(|(_, job)| Outcome {
            id: job.node_id,
            status: NodeStatus::Failed,
            error: reason.clone(),
            attempts: job.attempts,
            // What text it was is not known any more.
            subject: Subject::Processing,
        })
        .collect();
    // Rows first: until the scripts run, the jobs are still under their leases.
    if !outcomes.is_empty() {
        let store = &context.store;
        let record = |part: Vec<Outcome>| async move { store.record(&part).await };
        let changed: Vec<Uuid> = in_parts(outcomes, record).await?.into_iter().flatten().collect();
        // A row that has another text by now has nothing to do with those losses.
        let is_moot = |(_, job): &mut Held| !changed.contains(&job.node_id);
        again.extend(poison.extract_if(.., is_moot).map(|(lease, mut job)| {
            job.lost = 0;
            (lease, job)
        }));
    }
    let nodes: Vec<Uuid> = again.iter().map(|(_, job)| job.node_id).collect();
    return_to_queue(&context.store, nodes).await?;
    let buried = |(lease, job): &Held| DeadLetter::of_job(lease.clone(), job, &reason, unix_now());
    letters.extend(poison.iter().map(buried));
    let reclaimed = context.queue.reclaim(&again).await?;
    let (_, evicted) = context.queue.dead_letter(&letters, true).await?;
    report_evictions(evicted);
    metrics::repairs("expired_lease", reclaimed);
    metrics::jobs_ended("poison", poison.len());
    warn!(reclaimed, poison = poison.len(), "jobs whose worker was lost");
    Ok(())
}

/// Changes rows, in halves of halves where the database refuses some: one that it refuses must not
/// keep the jobs of others from coming back.
async fn in_parts<T: Clone, R, F: Future<Output = Result<R, StoreError>>>(
    all: Vec<T>,
    change: impl Fn(Vec<T>) -> F,
) -> Result<Vec<R>, StoreError> {
    let (mut parts, mut answers) = (vec![all], Vec::new());
    while let Some(mut part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        match change(part.clone()).await {
            Ok(answer) => answers.push(answer),
            Err(error) if error.is_outage() => return Err(error),
            Err(error) if part.len() == 1 => {
                error!(error = %Chain(&error), "cannot change a row of a job that was lost");
            }
            Err(_) => {
                let second = part.split_off(part.len() / 2);
                parts.extend([second, part]);
            }
        }
    }
    Ok(answers)
}

async fn return_to_queue(store: &Store, nodes: Vec<Uuid>) -> Result<(), StoreError> {
    let change = |part: Vec<Uuid>| async move { store.return_to_queue(&part).await };
    in_parts(nodes, change).await.map(drop)
}

/// One sweep, unless another process is at it.
pub async fn sweep(context: Arc<Context>) -> Result<(), SweepError> {
    let queue = &context.queue;
    let Some(lock) = queue.lock(Lock::Sweep, SWEEP_TTL).await? else { return Ok(()) };
    let lost = async {
        loop {
            tokio::time::sleep(SWEEP_TTL / 3).await;
            // A server that does not answer now may do so before the lock runs out.
            if let Ok(false) = queue.hold(Lock::Sweep, &lock, SWEEP_TTL).await {
                return;
            }
        }
    };
    let outcome = tokio::select! {
        outcome = sweep_all(&context) => outcome,
        () = lost => {
            info!("another process sweeps");
            return Ok(());
        }
    };
    queue.unlock(Lock::Sweep, &lock).await?;
    outcome
}

async fn sweep_all(context: &Context) -> Result<(), SweepError> {
    // What can be done without the key that is named here is done.
    let keys = context.queue.check_keys().await;
    let recounted = recount(context).await;
    enqueue_lost(context).await?;
    if recounted? == Counting::IsDeep {
        recount_in_steps(context).await?;
    }
    Ok(keys?)
}

/// Enqueues rows that wait for a job that does not exist.
pub(super) async fn enqueue_lost(context: &Context) -> Result<(), SweepError> {
    match context.store.reopen_overwritten().await {
        Ok(overwritten) => metrics::repairs("overwritten", overwritten),
        Err(error) if error.is_outage() => return Err(error.into()),
        // A row that the database refuses must not keep others from their jobs.
        Err(error) => error!(error = %Chain(&error), "cannot reopen rows"),
    }
    // A younger row may still be on its way into the queue.
    let settled = (context.config.sweep_interval / 3).as_secs_f64();
    let mut after = None;
    loop {
        let page = context.store.open_nodes(after, PAGE, settled).await?;
        enqueue_lost_among(context, page.nodes).await?;
        if page.next.is_none() {
            return Ok(());
        }
        after = page.next;
    }
}

async fn enqueue_lost_among(context: &Context, open: Vec<Candidate>) -> Result<(), SweepError> {
    let ids: Vec<Uuid> = open.iter().map(|node| node.id).collect();
    let without_job = context.queue.without_job(&ids).await?;
    if without_job.is_empty() {
        return Ok(());
    }
    // A job that ended since the page was read left its mark on the row before it went.
    let lost: HashSet<Uuid> = context.store.open_among(&without_job).await?.into_iter().collect();
    let now = unix_now();
    let jobs: Vec<Job> = open
        .into_iter()
        .filter(|node| lost.contains(&node.id))
        .map(|node| {
            // One whose vector is there was to be embedded again.
            let action = if node.has_current_embedding { Action::Refresh } else { Action::Embed };
            Job::new(node.id, node.tenant_id, action, now).in_database(context.store.identity())
        })
        .collect();
    if jobs.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = jobs.iter().map(|job| job.node_id).collect();
    return_to_queue(&context.store, ids).await?;
    let answers = context.queue.enqueue(&jobs, None).await?;
    let enqueued = answers.iter().filter(|answer| **answer == Enqueued::New).count() as u64;
    metrics::repairs("lost_job", enqueued);
    info!(enqueued, "the sweep enqueued nodes that had no job");
    Ok(())
}

/// Logs why a repair could not be done; the next one tries again.
pub fn report(what: &'static str, error: &SweepError) {
    if error.is_outage() {
        warn!(what, error = %Chain(error), "a repair has to wait");
    } else {
        error!(what, error = %Chain(error), "a repair failed");
    }
}
