//! From claim to batches: the first half of a job's way through a worker.

use std::{
    collections::{HashMap, HashSet},
    mem::take,
};

use tracing::{debug, error, warn};
use uuid::Uuid;

use super::{
    absent,
    batch::{Batch, Text},
    cache,
    context::{source_hash, unix_now},
    endings,
    outage::Outage,
    throttler::{Permit, ThrottlerMsg},
    tokenise::{Source, tokenise},
    worker::{Held, Worker, count_tenants},
};
use crate::{
    domain::{
        Action, FailureKind, Job, NodeStatus, TenantId,
        batch::{Cost, plan},
    },
    inference::Model,
    queue::{Claimed, DeadLetter},
    store::{BeginJob, InputHash, Subject, TextRow},
    telemetry::{Chain, metrics},
};

/// What one look into the queue brought.
#[derive(Default)]
pub struct Look {
    /// Entries taken from it.
    pub claimed: Vec<Claimed>,
    /// Whether nothing was found, so that it is time to wait.
    pub wait: Option<Wait>,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// A job.
    Job,
    /// Jobs beside those that wait, which may be of tenants at their limits, or the end of a job in
    /// hand.
    Change,
}

/// What became of claimed entries that are not ended and not back in the queue.
#[derive(Default)]
pub struct Prepared {
    /// Batches to embed.
    pub batches: Vec<Batch>,
    /// Texts that have a vector without a model.
    pub known: Vec<(Text, Vec<f32>)>,
}

/// Looks whether it may claim, and claims up to `wanted` entries.
pub async fn look(worker: &Worker, wanted: usize) -> Look {
    let limits = match ractor::call!(worker.throttler, ThrottlerMsg::Ask) {
        Ok(Permit::Claim(limits)) => limits,
        Ok(Permit::Pause(pause, limits)) => {
            tokio::time::sleep(pause).await;
            // A store that answers may still refuse its work, and a device has no ping: only work
            // that succeeds ends the pauses.
            if let Err(reason) = stores_answer(worker).await {
                warn!(reason, "not claiming");
                worker.tell(ThrottlerMsg::Down);
                return Look::default();
            }
            limits
        }
        Err(_) => {
            // The Throttler is being restarted.
            tokio::time::sleep(worker.context.config.poll_interval).await;
            return Look::default();
        }
    };
    let config = &worker.context.config;
    let claimed = match worker.context.queue.claim(wanted, config.lease, limits.as_ref()).await {
        Ok(claimed) => claimed,
        Err(error) => {
            warn!(error = %Chain(&error), "cannot claim");
            worker.tell(ThrottlerMsg::Down);
            return Look::default();
        }
    };
    if claimed.is_empty() {
        worker.tell(ThrottlerMsg::Up);
        let wait = if limits.is_some() { Wait::Change } else { Wait::Job };
        return Look { claimed, wait: Some(wait) };
    }
    metrics::jobs_claimed(claimed.len());
    worker.keeper.hold(
        claimed.iter().map(|claimed| {
            (claimed.lease.clone(), claimed.job.as_ref().ok().map(|job| job.node_id))
        }),
    );
    let decoded = claimed.iter().filter_map(|claimed| claimed.job.as_ref().ok());
    worker.tell(ThrottlerMsg::Took(count_tenants(decoded)));
    Look { claimed, wait: None }
}

/// Waits until there may be work again, for the poll interval at most.
pub async fn wait(worker: &Worker, wait: Wait) {
    let (queue, longest) = (&worker.context.queue, worker.context.config.poll_interval);
    let waited = match wait {
        Wait::Job => queue.wait_for_job(longest).await,
        Wait::Change => tokio::select! {
            () = worker.let_go.notified() => return,
            waited = queue.wait_for_more(longest) => waited,
        },
    };
    if let Err(error) = waited {
        warn!(error = %Chain(&error), "cannot wait for jobs");
        tokio::time::sleep(longest).await;
    }
}

/// Makes batches, of so many tokens at most, of claimed entries. Each is in a batch, known, ended, or
/// back in the queue afterwards. Texts are read as many at a time as there is memory for.
pub async fn prepare(worker: &Worker, claimed: Vec<Claimed>, batch_tokens: usize) -> Prepared {
    let mut jobs = bury_undecodable(worker, claimed).await;
    let mut texts = Vec::with_capacity(jobs.len());
    let mut at_once = jobs.len();
    while !jobs.is_empty() {
        let rest = jobs.split_off(at_once.min(jobs.len()));
        let (read, rows) = read_rows(worker, jobs).await;
        let read = absent::sort_out(worker, read, &rows).await;
        let (later, rows): (Vec<TextRow>, Vec<TextRow>) =
            rows.into_iter().partition(|row| row.is_left);
        let later: HashSet<(Uuid, TenantId)> =
            later.into_iter().map(|row| (row.id, row.tenant_id)).collect();
        let now;
        (jobs, now) = read.into_iter().partition(|(_, job)| later.contains(&node_of(job)));
        // About as many as there was memory for, or each row would be looked at again and again.
        at_once = 2 * now.len().max(1);
        jobs.extend(rest);
        let sources = select_texts(worker, now, rows).await;
        texts.extend(tokenise(worker, sources).await);
    }
    let (texts, known) = cache::find(worker, texts).await;
    let cost = cost_of(&worker.context.model);
    let batches = into_batches(texts, cost, batch_tokens, worker.context.config.batch_texts);
    Prepared { batches, known }
}

fn node_of(job: &Job) -> (Uuid, TenantId) {
    (job.node_id, job.tenant_id.clone())
}

/// Whether both stores take writes; the error says which does not, and why.
async fn stores_answer(worker: &Worker) -> Result<(), String> {
    let context = &worker.context;
    let (queue, store) = tokio::join!(context.queue.ping(), context.store.check_writable());
    queue.map_err(|error| Chain(&error).to_string())?;
    store.map_err(|error| error.for_operators())
}

async fn bury_undecodable(worker: &Worker, claimed: Vec<Claimed>) -> Vec<Held> {
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
    metrics::jobs_ended("undecodable", letters.len());
    endings::bury(worker, &letters).await;
    jobs
}

/// Marks the rows as being worked on and reads them. A statement that the database refuses is
/// split, so that one bad row harms no other; when the database is away, jobs go back. Returns
/// the jobs still in hand.
async fn read_rows(worker: &Worker, jobs: Vec<Held>) -> (Vec<Held>, Vec<TextRow>) {
    let (mut read, mut rows) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
    let mut parts = vec![jobs];
    while let Some(mut part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        let begin: Vec<BeginJob> = part.iter().map(|(_, job)| begin_job(job)).collect();
        let found = match worker.context.store.begin(&begin, worker.context.config.text_bytes).await
        {
            Err(error) => Err(worker.context.store.blame(error).await),
            found => found,
        };
        match found {
            Ok(found) => {
                rows.extend(found);
                read.extend(part);
            }
            Err(error) if error.is_outage() && !(part.len() > 1 && error.took_too_long()) => {
                warn!(error = %Chain(&error), "cannot load texts");
                worker.tell(ThrottlerMsg::Down);
                worker.hand_back(&part).await;
            }
            Err(error) if part.len() == 1 => {
                error!(error = %Chain(&error), node = %part[0].1.node_id, "cannot load a text");
                let reason = "the database refused to read the node";
                let unread = part.into_iter().map(|held| (held, Subject::Unread)).collect();
                endings::fail(worker, unread, FailureKind::Transient, reason).await;
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

/// Ends the jobs that need no embedding, and returns the others with their texts.
async fn select_texts(worker: &Worker, jobs: Vec<Held>, rows: Vec<TextRow>) -> Vec<Source> {
    let mut rows: HashMap<(Uuid, TenantId), TextRow> =
        rows.into_iter().map(|row| ((row.id, row.tenant_id.clone()), row)).collect();
    let (mut covered, mut unchanged, mut skipped, mut sources) = (vec![], vec![], vec![], vec![]);
    let mut unmarked: Vec<BeginJob> = Vec::new();
    let refreshed: HashSet<(Uuid, TenantId)> = jobs
        .iter()
        .filter(|(_, job)| job.action == Action::Refresh)
        .map(|(_, job)| node_of(job))
        .collect();
    for (lease, job) in jobs {
        // A foreign producer may enqueue a node twice: a refresh does the work, else the first job.
        let node = node_of(&job);
        let is_covered = job.action == Action::Embed && refreshed.contains(&node);
        let row = if is_covered { None } else { rows.remove(&node) };
        let Some(row) = row else {
            covered.push((lease, job));
            continue;
        };
        let looks_done =
            row.status == NodeStatus::Ready && row.has_embedding && job.action == Action::Embed;
        let Some(text) = row.text else {
            if looks_done {
                // The row was not marked `processing`, and so takes no outcome.
                unchanged.push((lease, job));
                continue;
            }
            skipped.push(((lease, job), reason_without_text(row.payload_ref.is_some())));
            continue;
        };
        if looks_done {
            if row.source_hash == Some(source_hash(&worker.context.model, &text)) {
                unchanged.push((lease, job));
                continue;
            }
            unmarked.push(BeginJob { refresh: true, ..begin_job(&job) });
        }
        sources.push(Source { held: (lease, job), text, text_hash: row.text_hash });
    }
    // Another model made the vector, or another program. A row that is not `processing` would not
    // take the failure of its job, which would then be tried for ever.
    if let Err(error) = worker.context.store.begin(&unmarked, 0).await {
        warn!(error = %Chain(&error), "cannot mark nodes whose vector is of another model");
    }
    if !skipped.is_empty() {
        endings::skip(worker, skipped).await;
    }
    if covered.len() + unchanged.len() > 0 {
        let (covered, unchanged) = (covered.len(), unchanged.len());
        debug!(covered, unchanged, "jobs with nothing to do");
    }
    endings::end(worker, "covered", &covered).await;
    endings::end(worker, "unchanged", &unchanged).await;
    sources
}

/// What the store needs to know of a job.
pub fn begin_job(job: &Job) -> BeginJob {
    BeginJob {
        id: job.node_id,
        tenant_id: job.tenant_id.clone(),
        refresh: job.action == Action::Refresh,
        failed_attempts: job.attempts,
    }
}

/// Why a node has nothing to embed.
pub fn reason_without_text(has_payload_ref: bool) -> &'static str {
    if has_payload_ref {
        "payload_ref is not readable here, and props hold no text"
    } else {
        "props hold no text: set text, resume_text, content, body or description"
    }
}

/// Jobs that lost a worker before run alone. Texts that are the same to the model go together, and
/// count as one.
fn into_batches(texts: Vec<Text>, cost: Cost, max_tokens: usize, max_texts: usize) -> Vec<Batch> {
    let (suspects, others): (Vec<Text>, Vec<Text>) =
        texts.into_iter().partition(|text| text.job.lost > 0);
    let mut inputs: Vec<Vec<Text>> = Vec::with_capacity(others.len());
    let mut places: HashMap<InputHash, usize> = HashMap::new();
    for text in others {
        let place = text.input_hash.map(|hash| *places.entry(hash).or_insert(inputs.len()));
        match place.and_then(|place| inputs.get_mut(place)) {
            Some(same) => same.push(text),
            None => inputs.push(vec![text]),
        }
    }
    let counts: Vec<usize> = inputs.iter().map(|same| same[0].encoding.ids.len()).collect();
    let mut batches: Vec<Batch> = plan(&counts, cost, max_tokens, max_texts)
        .into_iter()
        .map(|places| Batch {
            texts: places.into_iter().flat_map(|place| take(&mut inputs[place])).collect(),
            suspect: false,
        })
        .collect();
    batches.extend(suspects.into_iter().map(|text| Batch { texts: vec![text], suspect: true }));
    batches
}

/// How a model counts the tokens of a batch.
pub fn cost_of(model: &Model) -> Cost {
    if model.backend.pads_batches() { Cost::Padded } else { Cost::Sum }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{Job, TenantId},
        inference::Encoding,
        queue::Lease,
    };

    /// A text of one token; equal numbers are equal inputs.
    fn text(number: u8, lost: u32) -> Text {
        let mut job = Job::new(Uuid::new_v4(), TenantId::default(), Action::Embed, 0.0);
        job.lost = lost;
        Text {
            lease: Lease::from(Uuid::new_v4()),
            job,
            text_hash: [number; 32],
            source_hash: String::new(),
            input_hash: Some([number; 32]),
            encoding: Encoding { ids: vec![number.into()], truncated: false },
        }
    }

    #[test]
    fn equal_inputs_go_together_and_count_as_one() {
        let texts = [1, 2, 1, 3, 2, 1].map(|number| text(number, 0)).to_vec();
        let batches = into_batches(texts, Cost::Sum, 2, 64);
        let numbers = |batch: &Batch| -> Vec<u32> {
            batch.texts.iter().map(|text| text.encoding.ids[0]).collect()
        };
        assert_eq!(batches.iter().map(numbers).collect::<Vec<_>>(), [vec![1, 1, 1, 2, 2], vec![3]]);
        assert_eq!(batches[0].distinct().len(), 2);
        assert_eq!(batches[0].inputs(), [0, 0, 0, 1, 1]);
    }

    #[test]
    fn a_suspect_is_alone_whatever_equals_it() {
        let batches = into_batches(vec![text(1, 0), text(1, 1), text(1, 0)], Cost::Sum, 9, 9);
        let shape: Vec<_> = batches.iter().map(|b| (b.texts.len(), b.suspect)).collect();
        assert_eq!(shape, [(2, false), (1, true)]);
    }
}
