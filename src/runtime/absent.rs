//! Jobs whose rows a claim did not get: held by another session, gone, or out of our sight.
//!
//! That a row is not found means that its node was deleted only where it would have been seen. A
//! worker on the wrong database, or one that row-level security keeps rows from, finds nothing,
//! and must not empty the queue. Our own jobs say which database their node is in. Those of other
//! producers do not: once the row of any job was found, a few of them may be about nodes that are
//! gone; before that, and where rows are missing in bulk, the row of another job that waits must be
//! found first.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use tracing::{debug, error, warn};
use uuid::Uuid;

use super::{
    context::Context,
    endings,
    outage::Outage,
    prepare::begin_job,
    throttler::ThrottlerMsg,
    worker::{Held, Worker},
};
use crate::{
    domain::TenantId,
    store::{BeginJob, StoreError, TextRow},
    telemetry::Chain,
};

/// How long a job whose row another session holds is put aside.
const LOCKED_PAUSE: Duration = Duration::from_millis(500);
/// Rows that may be missed one after the other, with none found between them, before the queue is
/// asked whether any of its rows is here.
const MISSED_MAX: usize = 8;

/// What speaks for this database being the one that the jobs are about.
#[derive(Default)]
pub struct Sight {
    /// Rows missed since one was found.
    missed: AtomicUsize,
    /// Whether one ever was.
    has_found: AtomicBool,
    /// Whether the operator was told that jobs are held back.
    is_reported: AtomicBool,
}

/// Why rows that were not found may be there all the same.
enum Doubt {
    /// None of the jobs that wait has its row here.
    NothingFound,
    /// The database says so, or does not answer.
    Store(StoreError),
    /// Redis does not answer.
    Queue(crate::queue::QueueError),
}

/// Ends the jobs whose nodes are gone, puts those aside whose rows another session holds, and
/// answers the others.
pub async fn sort_out(worker: &Worker, jobs: Vec<Held>, rows: &[TextRow]) -> Vec<Held> {
    let found: HashSet<(Uuid, &TenantId)> =
        rows.iter().map(|row| (row.id, &row.tenant_id)).collect();
    if !found.is_empty() {
        worker.context.sight.found();
    }
    let (here, absent): (Vec<Held>, Vec<Held>) =
        jobs.into_iter().partition(|(_, job)| found.contains(&(job.node_id, &job.tenant_id)));
    if !absent.is_empty() {
        explain(worker, absent, !found.is_empty()).await;
    }
    here
}

/// With a row that was `found` in the same claim, this is the database that the jobs are about.
async fn explain(worker: &Worker, absent: Vec<Held>, found: bool) {
    let begin: Vec<BeginJob> = absent.iter().map(|(_, job)| begin_job(job)).collect();
    let present = match worker.context.store.present(&begin).await {
        Ok(present) => present,
        Err(error) => return hold_back(worker, &absent, &Doubt::Store(error)).await,
    };
    let (held, gone): (Vec<Held>, Vec<Held>) =
        absent.into_iter().partition(|(_, job)| present.contains(&job.node_id));
    if !held.is_empty() {
        debug!(jobs = held.len(), "rows are held by another session");
        worker.context.sight.found();
        endings::put_aside(worker, held, LOCKED_PAUSE).await;
    }
    if gone.is_empty() {
        return;
    }
    if let Err(error) = worker.context.store.check_sees_all_rows().await {
        return hold_back(worker, &gone, &Doubt::Store(error)).await;
    }
    let (certain, doubtful): (Vec<Held>, Vec<Held>) = gone.into_iter().partition(|(_, job)| {
        let is_ours = || job.database.as_deref() == worker.context.store.identity();
        found || job.database.is_some() && is_ours()
    });
    endings::end(worker, "gone", &certain).await;
    if doubtful.is_empty() {
        return;
    }
    let foreign = doubtful.iter().filter(|(_, job)| job.database.is_none()).count();
    let of_others = foreign < doubtful.len();
    match worker.context.sight.are_gone(&worker.context, doubtful.len(), of_others).await {
        Ok(()) => endings::end(worker, "gone", &doubtful).await,
        Err(doubt) => hold_back(worker, &doubtful, &doubt).await,
    }
}

async fn hold_back(worker: &Worker, jobs: &[Held], doubt: &Doubt) {
    worker.context.sight.report(doubt);
    worker.tell(ThrottlerMsg::Down);
    worker.hand_back_without_rows(jobs).await;
}

impl Sight {
    fn found(&self) {
        self.missed.store(0, Ordering::Relaxed);
        self.has_found.store(true, Ordering::Relaxed);
        self.is_reported.store(false, Ordering::Relaxed);
    }

    /// Whether so many rows that were not found are gone. Jobs that name another database are
    /// doubted from the first.
    async fn are_gone(&self, context: &Context, rows: usize, of_others: bool) -> Result<(), Doubt> {
        let is_known = !of_others && self.has_found.load(Ordering::Relaxed);
        if is_known && self.missed.load(Ordering::Relaxed) + rows <= MISSED_MAX {
            self.missed.fetch_add(rows, Ordering::Relaxed);
            return Ok(());
        }
        let others = context.queue.sample().await.map_err(Doubt::Queue)?;
        let others: Vec<BeginJob> = others.iter().map(begin_job).collect();
        if context.store.present(&others).await.map_err(Doubt::Store)?.is_empty() {
            return Err(Doubt::NothingFound);
        }
        self.found();
        Ok(())
    }

    fn report(&self, doubt: &Doubt) {
        match doubt {
            Doubt::Store(error) if error.is_outage() => {
                warn!(error = %Chain(error), "cannot look for rows");
            }
            Doubt::Queue(error) => warn!(error = %Chain(error), "cannot look for jobs"),
            Doubt::Store(error) => {
                if !self.is_reported.swap(true, Ordering::Relaxed) {
                    error!(error = %Chain(error), "jobs are handed back: their rows are not to be seen");
                }
            }
            Doubt::NothingFound => {
                if !self.is_reported.swap(true, Ordering::Relaxed) {
                    error!(
                        "jobs are handed back: the database has no row of any of them; see that \
                         ACTIVEKG_DSN and REDIS_URL belong together"
                    );
                }
            }
        }
    }
}
