//! What every step of a job's way through a worker needs, and how jobs are let go.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ractor::ActorRef;
use tokio::sync::Notify;
use tracing::warn;
use uuid::Uuid;

use super::{context::Context, leases::LeaseKeeper, outage::Outage, throttler::ThrottlerMsg};
use crate::{
    domain::{Job, TenantId},
    queue::Lease,
    telemetry::{Chain, metrics},
};

/// A job and the right to end it.
pub type Held = (Lease, Job);

/// What marking the rows of unfinished work may take at the end.
const ROWS_TIME: Duration = Duration::from_secs(1);
/// Between two calls to a store that is away.
const PAUSE: Duration = Duration::from_millis(500);

/// The parts below, the Throttler to tell of what is in hand, and the keeper of its leases.
#[derive(Clone)]
pub struct Worker {
    /// The parts below.
    pub context: Arc<Context>,
    /// Whom it asks before it claims.
    pub throttler: ActorRef<ThrottlerMsg>,
    /// What keeps the leases alive.
    pub keeper: Arc<LeaseKeeper>,
    /// Told when jobs are let go.
    pub let_go: Arc<Notify>,
}

impl Worker {
    /// Tells the Throttler. One that is being restarted starts with nothing in hand and learns
    /// of an outage with the next call.
    pub fn tell(&self, message: ThrottlerMsg) {
        let _ = self.throttler.cast(message);
    }

    /// The same for work on `parts` things at once, which may be too many: a statement that took too
    /// long is an error then.
    ///
    /// # Errors
    /// As [`Self::insist`], and that it took too long.
    pub async fn insist_on<T, E: Outage, F: Future<Output = Result<T, E>>>(
        &self,
        parts: usize,
        mut call: impl FnMut() -> F,
    ) -> Result<T, E> {
        match call().await {
            Err(error) if parts > 1 && error.took_too_long() => Err(error),
            Err(error) if error.is_outage() => self.insist(call).await,
            Err(error) => match error.blamed(&self.context.store).await {
                error if error.is_outage() => self.insist(call).await,
                error => Err(error),
            },
            answer => answer,
        }
    }

    /// Calls until the store answers, so that work already done is not done again. A database that
    /// takes no writes at all counts as one that does not answer, whatever it says.
    ///
    /// # Errors
    /// What the store answers when it is there.
    pub async fn insist<T, E: Outage, F: Future<Output = Result<T, E>>>(
        &self,
        mut call: impl FnMut() -> F,
    ) -> Result<T, E> {
        loop {
            let answer = match call().await {
                Err(error) => Err(error.blamed(&self.context.store).await),
                answer => answer,
            };
            match answer {
                Err(error) if error.is_outage() => {
                    warn!(error = %Chain(&error), "waiting for a store with work in hand");
                    self.tell(ThrottlerMsg::Down);
                    tokio::time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    /// Forgets jobs that this worker has ended.
    pub fn let_go(&self, jobs: &[Held]) {
        self.keeper.release(jobs.iter().map(|(lease, _)| lease));
        self.tell(ThrottlerMsg::Gave(count_tenants(jobs.iter().map(|(_, job)| job))));
        self.let_go.notify_one();
    }

    /// Puts jobs back as if they had not been claimed.
    pub async fn hand_back(&self, jobs: &[Held]) {
        if jobs.is_empty() {
            return;
        }
        let nodes: Vec<_> = jobs.iter().map(|(_, job)| job.node_id).collect();
        if let Err(error) = self.context.store.return_to_queue(&nodes).await {
            // The rows say `processing` until the jobs are claimed again.
            warn!(error = %Chain(&error), "cannot mark nodes as queued");
        }
        self.hand_back_without_rows(jobs).await;
    }

    /// The same for jobs whose rows are about something else by now, and are left alone: another
    /// worker may be at them. A row whose text another program changed says `processing` until its
    /// job is claimed again.
    pub async fn hand_back_without_rows(&self, jobs: &[Held]) {
        if jobs.is_empty() {
            return;
        }
        let held = jobs.iter().map(|(lease, job)| (lease.clone(), Some(job.node_id))).collect();
        self.return_leases(held).await;
        self.let_go(jobs);
    }

    /// Puts everything in hand back, whatever is just being done with it. What is done all the
    /// same is seen to be done by the next claim.
    pub async fn hand_back_all(&self) {
        let held = self.keeper.release_all();
        let nodes: Vec<Uuid> = held.iter().filter_map(|(_, node)| *node).collect();
        // There is little time left, and the database may be why. A worker that has a job before
        // its row is `queued` again would find its own mark on the row undone.
        let rows = self.context.store.return_to_queue(&nodes);
        if !matches!(tokio::time::timeout(ROWS_TIME, rows).await, Ok(Ok(()))) {
            warn!("cannot mark nodes as queued");
        }
        self.return_leases(held).await;
    }

    async fn return_leases(&self, held: Vec<(Lease, Option<Uuid>)>) {
        match self.context.queue.hand_back(&held).await {
            Ok(handed_back) => {
                metrics::jobs_ended("handed_back", handed_back as usize);
                metrics::stale_leases((held.len() as u64).saturating_sub(handed_back));
            }
            Err(error) => {
                warn!(error = %Chain(&error), "cannot hand jobs back; their leases will run out");
            }
        }
    }
}

/// How many of these jobs each tenant has.
pub fn count_tenants<'a>(jobs: impl Iterator<Item = &'a Job>) -> HashMap<TenantId, usize> {
    let mut counts = HashMap::new();
    for job in jobs {
        *counts.entry(job.tenant_id.clone()).or_default() += 1;
    }
    counts
}
