//! Jobs whose rows a claim did not get: held by another session, gone, or out of our sight.
//!
//! That a row is not found means that its node was deleted only where it would have been seen. A
//! worker on the wrong database, or one that row-level security keeps rows from, finds nothing,
//! and must not empty the queue. Our own jobs say which database their node is in. Of other jobs,
//! those of other producers and those that name another database, a row is gone if the row of a job of
//! the same origin was found: in the same claim, or among the jobs that wait. A few jobs of other
//! producers are also given up where rows of our own are found.

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
    domain::{Job, TenantId},
    store::{BeginJob, StoreError, TextRow},
    telemetry::Chain,
};

/// How long a job whose row another session holds is put aside.
const LOCKED_PAUSE: Duration = Duration::from_millis(500);
/// How long a job is put aside of whose origin no row was found.
const DOUBT_PAUSE: Duration = Duration::from_secs(30);
/// Jobs of which no row is found: up to so many in a claim of others are put aside, of more the database may be
/// a wrong one. So many of other producers may also be missed in all, once any row was found, until a
/// row of theirs is.
const MISSED_MAX: usize = 8;

/// The database that a job says its node is in; other producers say none.
type Origin = Option<String>;

/// What speaks for this database being the one that the jobs of other producers are about.
#[derive(Default)]
pub struct Sight {
    /// Rows of theirs that were missed since one was found.
    missed: AtomicUsize,
    /// Whether any row ever was.
    has_found: AtomicBool,
    /// Whether the operator was told that rows are not found.
    is_reported: AtomicBool,
}

/// Why rows that were not found may be there all the same.
enum Doubt {
    /// None of the jobs that wait, and are of the same origin, has its row here.
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
    let (here, absent): (Vec<Held>, Vec<Held>) =
        jobs.into_iter().partition(|(_, job)| found.contains(&(job.node_id, &job.tenant_id)));
    let origins = origins_of(&here);
    worker.context.sight.note(&origins);
    if !absent.is_empty() {
        explain(worker, absent, origins).await;
    }
    here
}

fn origins_of(jobs: &[Held]) -> HashSet<Origin> {
    jobs.iter().map(|(_, job)| job.database.clone()).collect()
}

/// `known` are the origins of which a row was found in the same claim.
async fn explain(worker: &Worker, absent: Vec<Held>, mut known: HashSet<Origin>) {
    let context = &worker.context;
    // A claim of nothing else may be a small part of many.
    let is_nothing_else = known.is_empty();
    let present = match self::present(context, absent.iter().map(|(_, job)| job)).await {
        Ok(present) => present,
        Err(error) => return hold_back(worker, &absent, &Doubt::Store(error)).await,
    };
    let (held, gone): (Vec<Held>, Vec<Held>) =
        absent.into_iter().partition(|(_, job)| present.contains(&job.node_id));
    if !held.is_empty() {
        debug!(jobs = held.len(), "rows are held by another session");
        let origins = origins_of(&held);
        context.sight.note(&origins);
        known.extend(origins);
        endings::put_aside(worker, held, LOCKED_PAUSE).await;
    }
    if gone.is_empty() {
        return;
    }
    if let Err(error) = context.store.check_sees_all_rows().await {
        return hold_back(worker, &gone, &Doubt::Store(error)).await;
    }
    // The right to see them may have been given since they were not found.
    let present = match self::present(context, gone.iter().map(|(_, job)| job)).await {
        Ok(present) => present,
        Err(error) => return hold_back(worker, &gone, &Doubt::Store(error)).await,
    };
    let (seen_now, gone): (Vec<Held>, Vec<Held>) =
        gone.into_iter().partition(|(_, job)| present.contains(&job.node_id));
    if !seen_now.is_empty() {
        worker.hand_back_without_rows(&seen_now).await;
    }
    if gone.is_empty() {
        return;
    }
    known.extend(context.store.identity().map(|ours| Some(ours.to_owned())));
    let doubtful = end_those_of(worker, gone, &known).await;
    if doubtful.is_empty() || context.sight.passes_over(worker, &doubtful).await {
        return;
    }
    let seen = match look_at_others(context).await {
        Ok(seen) => seen,
        Err(doubt) => return hold_back(worker, &doubtful, &doubt).await,
    };
    context.sight.note(&seen);
    let doubtful = end_those_of(worker, doubtful, &seen).await;
    let are_more =
        is_nothing_else && context.queue.depths().await.is_ok_and(|depths| depths.queue > 0);
    if doubtful.len() > MISSED_MAX || are_more && !doubtful.is_empty() {
        hold_back(worker, &doubtful, &Doubt::NothingFound).await;
    } else if !doubtful.is_empty() {
        // They are few, and may be old: nobody has to wait for them.
        context.sight.report(&Doubt::NothingFound);
        endings::put_aside(worker, doubtful, DOUBT_PAUSE).await;
    }
}

/// Ends the jobs of these origins, as those of nodes that are gone, and answers the others.
async fn end_those_of(worker: &Worker, jobs: Vec<Held>, origins: &HashSet<Origin>) -> Vec<Held> {
    let (gone, others): (Vec<Held>, Vec<Held>) =
        jobs.into_iter().partition(|(_, job)| origins.contains(&job.database));
    endings::end(worker, "gone", &gone).await;
    others
}

/// The nodes of those of the jobs whose rows are here.
async fn present(
    context: &Context,
    jobs: impl IntoIterator<Item = &Job>,
) -> Result<HashSet<Uuid>, StoreError> {
    let begin: Vec<BeginJob> = jobs.into_iter().map(begin_job).collect();
    context.store.present(&begin).await
}

/// The origins of those of the jobs that wait whose rows are here.
async fn look_at_others(context: &Context) -> Result<HashSet<Origin>, Doubt> {
    let others = context.queue.sample().await.map_err(Doubt::Queue)?;
    let present = present(context, &others).await.map_err(Doubt::Store)?;
    let here = others.into_iter().filter(|job| present.contains(&job.node_id));
    Ok(here.map(|job| job.database).collect())
}

async fn hold_back(worker: &Worker, jobs: &[Held], doubt: &Doubt) {
    worker.context.sight.report(doubt);
    worker.tell(ThrottlerMsg::Down);
    worker.hand_back_without_rows(jobs).await;
}

impl Sight {
    /// Rows of these origins were found.
    fn note(&self, origins: &HashSet<Origin>) {
        if !origins.is_empty() {
            self.has_found.store(true, Ordering::Relaxed);
        }
        if origins.contains(&None) {
            self.missed.store(0, Ordering::Relaxed);
            self.is_reported.store(false, Ordering::Relaxed);
        }
    }

    /// Ends a few jobs of other producers, if any row was found before; answers whether it did. Jobs that name another database are doubted from the first.
    async fn passes_over(&self, worker: &Worker, jobs: &[Held]) -> bool {
        let is_known = self.has_found.load(Ordering::Relaxed)
            && jobs.iter().all(|(_, job)| job.database.is_none());
        if !is_known || self.missed.load(Ordering::Relaxed) + jobs.len() > MISSED_MAX {
            return false;
        }
        self.missed.fetch_add(jobs.len(), Ordering::Relaxed);
        endings::end(worker, "gone", jobs).await;
        true
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
                        "jobs are kept for later: the database has no row of any of them, nor of \
                         others like them; see that ACTIVEKG_DSN and REDIS_URL belong together"
                    );
                }
            }
        }
    }
}
