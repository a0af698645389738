//! From claim to batches: the first half of a job's way through a worker.

use std::collections::HashMap;

use ractor::ActorRef;
use tracing::{debug, error, warn};

use super::{
    batch::{Batch, Text},
    context::{Context, source_hash, unix_now},
    failures::{self, Failure},
    leases::LeaseKeeper,
    outage::Outage,
    throttler::{Permit, ThrottlerMsg},
};
use crate::{
    domain::{Action, FailureKind, Job, NodeStatus, TenantId, batch::plan},
    inference::{EmbedError, Encoding},
    queue::{Claimed, DeadLetter, Lease},
    store::{BeginJob, TextRow},
    telemetry::{Chain, metrics},
};

/// What one look into the queue brought.
#[derive(Default)]
pub struct Prepared {
    /// Batches to embed.
    pub batches: Vec<Batch>,
    /// Whether nothing was found, so that it is time to wait.
    pub is_idle: bool,
}

/// Looks whether it may claim, claims up to `wanted` jobs, and makes batches of them. Every
/// claimed job is in a batch, ended, or back in the queue afterwards.
pub async fn prepare(
    context: &Context,
    throttler: &ActorRef<ThrottlerMsg>,
    keeper: &LeaseKeeper,
    wanted: usize,
) -> Prepared {
    let limits = match ractor::call!(throttler, ThrottlerMsg::Ask) {
        Ok(Permit::Claim(limits)) => limits,
        Ok(Permit::Pause(pause)) => {
            tokio::time::sleep(pause).await;
            probe(context, throttler).await;
            return Prepared::default();
        }
        // The Throttler is being restarted.
        Err(_) => return Prepared { is_idle: true, ..Prepared::default() },
    };
    let claimed = match context.queue.claim(wanted, context.config.lease, limits.as_ref()).await {
        Ok(claimed) => claimed,
        Err(error) => {
            warn!(error = %Chain(&error), "cannot claim");
            let _ = throttler.cast(ThrottlerMsg::Down);
            return Prepared::default();
        }
    };
    if claimed.is_empty() {
        if limits.is_some() {
            // The queue may hold only jobs of tenants at their limit, and not block at all.
            tokio::time::sleep(context.config.poll_interval.min(BLOCKED_PAUSE)).await;
        }
        return Prepared { is_idle: true, ..Prepared::default() };
    }
    metrics::jobs_claimed(claimed.len());
    keeper.hold(claimed.iter().map(|claimed| claimed.lease.clone()));
    let by_tenant = count_tenants(claimed.iter().filter_map(|c| c.job.as_ref().ok()));
    let _ = throttler.cast(ThrottlerMsg::Took(by_tenant));

    let jobs = bury_undecodable(context, throttler, keeper, claimed).await;
    let batches = load(context, throttler, keeper, jobs).await;
    Prepared { batches, is_idle: false }
}

const BLOCKED_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// How many of these jobs each tenant has.
pub fn count_tenants<'a>(jobs: impl Iterator<Item = &'a Job>) -> HashMap<TenantId, usize> {
    let mut counts = HashMap::new();
    for job in jobs {
        *counts.entry(job.tenant_id.clone()).or_default() += 1;
    }
    counts
}

/// Forgets jobs that this worker has let go.
pub fn let_go<'a>(
    throttler: &ActorRef<ThrottlerMsg>,
    keeper: &LeaseKeeper,
    jobs: impl Iterator<Item = (&'a Lease, &'a Job)> + Clone,
) {
    keeper.release(jobs.clone().map(|(lease, _)| lease));
    // A Throttler that is being restarted starts with nothing in hand.
    let _ = throttler.cast(ThrottlerMsg::Gave(count_tenants(jobs.map(|(_, job)| job))));
}

/// Looks whether the stores are back.
async fn probe(context: &Context, throttler: &ActorRef<ThrottlerMsg>) {
    let (queue, store) = tokio::join!(context.queue.ping(), context.store.ping());
    let answer = if queue.is_ok() && store.is_ok() { ThrottlerMsg::Up } else { ThrottlerMsg::Down };
    let _ = throttler.cast(answer);
}

async fn bury_undecodable(
    context: &Context,
    throttler: &ActorRef<ThrottlerMsg>,
    keeper: &LeaseKeeper,
    claimed: Vec<Claimed>,
) -> Vec<(Lease, Job)> {
    let mut jobs = Vec::with_capacity(claimed.len());
    let mut letters = Vec::new();
    for Claimed { lease, entry, job } in claimed {
        match job {
            Ok(job) => jobs.push((lease, job)),
            Err(reason) => {
                warn!(%reason, bytes = entry.len(), "an entry of the queue is no job");
                letters.push(DeadLetter::of_entry(lease, &entry, &reason.to_string(), unix_now()));
            }
        }
    }
    failures::bury(context, throttler, &letters).await;
    keeper.release(letters.iter().map(|letter| &letter.lease));
    metrics::jobs_ended("undecodable", letters.len());
    jobs
}

/// Reads the rows, ends the jobs that need no embedding, and batches the others.
async fn load(
    context: &Context,
    throttler: &ActorRef<ThrottlerMsg>,
    keeper: &LeaseKeeper,
    jobs: Vec<(Lease, Job)>,
) -> Vec<Batch> {
    if jobs.is_empty() {
        return Vec::new();
    }
    let (jobs, rows) = read_rows(context, throttler, keeper, jobs).await;
    let mut rows: HashMap<_, TextRow> = rows.into_iter().map(|row| (row.id, row)).collect();
    let (mut gone, mut unchanged, mut skipped, mut texts) = (vec![], vec![], vec![], vec![]);
    for (lease, job) in jobs {
        // A foreign producer may enqueue a node twice; the second job finds nothing to do.
        let Some(row) = rows.remove(&job.node_id) else {
            gone.push((lease, job));
            continue;
        };
        let Some(text) = row.text else {
            skipped.push((lease, job, reason_without_text(row.payload_ref.is_some()).to_owned()));
            continue;
        };
        let source_hash = source_hash(&context.model, &text);
        let is_done = row.status == NodeStatus::Ready
            && row.has_embedding
            && row.source_hash.as_deref() == Some(source_hash.as_str());
        if is_done && job.action == Action::Embed {
            unchanged.push((lease, job));
        } else {
            texts.push((lease, job, text, source_hash));
        }
    }
    if !skipped.is_empty() {
        let ended: Vec<(Lease, Job)> =
            skipped.iter().map(|(lease, job, _)| (lease.clone(), job.clone())).collect();
        failures::skip(context, throttler, skipped).await;
        let_go(throttler, keeper, ended.iter().map(|(lease, job)| (lease, job)));
    }
    for (outcome, jobs) in [("gone", gone), ("unchanged", unchanged)] {
        if !jobs.is_empty() {
            debug!(outcome, jobs = jobs.len(), "jobs with nothing to do");
            failures::end(context, throttler, outcome, &jobs).await;
            let_go(throttler, keeper, jobs.iter().map(|(lease, job)| (lease, job)));
        }
    }
    tokenise(context, throttler, keeper, texts).await
}

/// Marks the rows as being worked on and reads them. A statement that the database refuses is
/// split, so that one bad row harms no other; when the database is away, jobs go back. Returns
/// the jobs still in hand.
async fn read_rows(
    context: &Context,
    throttler: &ActorRef<ThrottlerMsg>,
    keeper: &LeaseKeeper,
    jobs: Vec<(Lease, Job)>,
) -> (Vec<(Lease, Job)>, Vec<TextRow>) {
    let (mut read, mut rows) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
    let mut parts = vec![jobs];
    while let Some(mut part) = parts.pop() {
        let begin: Vec<BeginJob> = part
            .iter()
            .map(|(_, job)| BeginJob {
                id: job.node_id,
                tenant_id: job.tenant_id.clone(),
                refresh: job.action == Action::Refresh,
            })
            .collect();
        match context.store.begin(&begin).await {
            Ok(found) => {
                rows.extend(found);
                read.extend(part);
            }
            Err(error) if error.is_outage() => {
                warn!(error = %Chain(&error), "cannot load texts");
                let _ = throttler.cast(ThrottlerMsg::Down);
                hand_back(context, throttler, keeper, &part).await;
            }
            Err(error) if part.len() == 1 => {
                error!(error = %Chain(&error), node = %part[0].1.node_id, "cannot load a text");
                let reason = "the database refused to read the node";
                failures::fail(context, throttler, keeper, part, reason).await;
            }
            Err(_) => {
                let second = part.split_off(part.len() / 2);
                // The first half is done first.
                parts.extend([second, part]);
            }
        }
    }
    (read, rows)
}

/// Why a node has nothing to embed.
pub fn reason_without_text(has_payload_ref: bool) -> &'static str {
    if has_payload_ref {
        "payload_ref is not readable here, and props hold no text"
    } else {
        "props hold no text: set text, resume_text, content, body or description"
    }
}

async fn tokenise(
    context: &Context,
    throttler: &ActorRef<ThrottlerMsg>,
    keeper: &LeaseKeeper,
    texts: Vec<(Lease, Job, String, String)>,
) -> Vec<Batch> {
    let encoder = context.model.encoder.clone();
    let (good, bad) = run_blocking(move || {
        let mut good: Vec<Text> = Vec::with_capacity(texts.len());
        let mut bad: Vec<(Lease, Job, EmbedError)> = Vec::new();
        for (lease, job, text, source_hash) in texts {
            match encoder.encode(&text) {
                Ok(encoding) => good.push(Text { lease, job, text, source_hash, encoding }),
                Err(error) => bad.push((lease, job, error)),
            }
        }
        (good, bad)
    })
    .await;
    if !bad.is_empty() {
        let ended: Vec<(Lease, Job)> =
            bad.iter().map(|(lease, job, _)| (lease.clone(), job.clone())).collect();
        let failed = bad.into_iter().map(|(lease, job, error)| Failure {
            lease,
            job,
            kind: FailureKind::Permanent,
            reason: error.to_string(),
        });
        failures::settle(context, throttler, failed.collect()).await;
        let_go(throttler, keeper, ended.iter().map(|(lease, job)| (lease, job)));
    }
    into_batches(good, context.config.batch_tokens, context.config.batch_texts)
}

/// Runs CPU-bound work off the async threads; a panic in it goes on here.
async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking tasks are cancelled only when the process ends.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Jobs that lost a worker before run alone.
fn into_batches(texts: Vec<Text>, max_tokens: usize, max_texts: usize) -> Vec<Batch> {
    let (suspects, others): (Vec<Text>, Vec<Text>) =
        texts.into_iter().partition(|text| text.job.lost > 0);
    let counts: Vec<usize> = others.iter().map(|text: &Text| text.encoding.ids.len()).collect();
    let mut others: Vec<Option<Text>> = others.into_iter().map(Some).collect();
    let mut batches: Vec<Batch> = plan(&counts, max_tokens, max_texts)
        .into_iter()
        .map(|indices| Batch {
            texts: indices.into_iter().filter_map(|index| others[index].take()).collect(),
            suspect: false,
        })
        .collect();
    batches.extend(suspects.into_iter().map(|text| Batch { texts: vec![text], suspect: true }));
    batches
}

/// Puts jobs back as if they had not been claimed.
pub async fn hand_back(
    context: &Context,
    throttler: &ActorRef<ThrottlerMsg>,
    keeper: &LeaseKeeper,
    jobs: &[(Lease, Job)],
) {
    let nodes: Vec<_> = jobs.iter().map(|(_, job)| job.node_id).collect();
    if let Err(error) = context.store.return_to_queue(&nodes).await {
        // The rows say `processing` until the jobs are claimed again.
        warn!(error = %Chain(&error), "cannot mark nodes as queued");
    }
    let leases: Vec<Lease> = jobs.iter().map(|(lease, _)| lease.clone()).collect();
    match context.queue.hand_back(&leases).await {
        Ok(handed_back) => metrics::jobs_ended("handed_back", handed_back as usize),
        Err(error) => {
            warn!(error = %Chain(&error), "cannot hand jobs back; their leases will run out")
        }
    }
    let_go(throttler, keeper, jobs.iter().map(|(lease, job)| (lease, job)));
}

/// A single text, encoded off the async threads: for nodes embedded while the client waits.
pub async fn encode_all(
    model: &crate::inference::Model,
    texts: Vec<String>,
) -> Vec<(String, Result<Encoding, EmbedError>)> {
    let encoder = model.encoder.clone();
    run_blocking(move || {
        texts
            .into_iter()
            .map(|text| {
                let encoding = encoder.encode(&text);
                (text, encoding)
            })
            .collect()
    })
    .await
}
