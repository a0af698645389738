//! Recounts: pending keys, tenant counts and leases become what the jobs say, at any depth.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tracing::{info, warn};
use uuid::Uuid;

use super::{
    context::Context,
    sweep::{SweepError, enqueue_lost},
};
use crate::{
    queue::{Counted, QueueError, Recount, Structure},
    telemetry::metrics,
};

/// Whether a recount was done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// It was.
    IsDone,
    /// There are too many jobs for that.
    IsDeep,
}

/// A recount asks again while foreign consumers start on jobs.
const ROUNDS: usize = 5;
/// Between two steps of a long recount the server has so many times the time of a step for others.
const OTHERS: u32 = 3;
/// After a long recount, none is begun for so many times as long as it took.
const REST: u32 = 10;
/// Nodes with a pending key that are remembered at once (32 bytes each); where there are more, each
/// long recount looks at a part of them.
const NODES_AT_ONCE: u64 = 500_000;
/// Pending keys without a job whose tenants are asked for.
const MOST_ORPHANS: usize = 10_000;
/// Nodes or tenants in one call.
const PAGE: usize = 1_000;

/// What a process remembers of its long recounts.
#[derive(Debug, Default)]
pub struct Recounts {
    rounds: AtomicU64,
    /// Not before this time.
    next: Mutex<Option<Instant>>,
}

impl Recounts {
    fn are_due(&self) -> bool {
        let next = self.next.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        next.is_none_or(|next| Instant::now() >= next)
    }

    fn took(&self, time: Duration) {
        let next = Instant::now() + time * REST;
        *self.next.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(next);
    }
}

/// What was mended, by kind.
fn report(mended: [(&'static str, u64); 4]) {
    for (kind, count) in mended {
        metrics::repairs(kind, count);
        if count > 0 {
            info!(kind, count, "the sweep mended");
        }
    }
}

fn report_mistyped(tenants: Vec<String>) {
    for tenant in tenants {
        warn!(%tenant, "the pending count of a tenant was no string; counted anew");
    }
}

/// Compares all keys and counts with all jobs at once, if these are few.
pub async fn recount(context: &Context) -> Result<Counting, SweepError> {
    let mut tenants: HashMap<String, String> = HashMap::new();
    for _ in 0..ROUNDS {
        match context.queue.recount(context.config.orphan_after, &tenants).await? {
            Recount::TooDeep => return Ok(Counting::IsDeep),
            Recount::Ask(nodes) => {
                let ids: Vec<Uuid> = nodes.iter().filter_map(|node| node.parse().ok()).collect();
                let known = context.store.tenants_of(&ids).await?;
                tenants.extend(nodes.into_iter().map(|node| (node, String::new())));
                tenants.extend(
                    known.into_iter().map(|(id, tenant)| (id.to_string(), tenant.to_string())),
                );
            }
            Recount::Done { tenant_counts, pending_keys, leases, given_up, mistyped } => {
                report_mistyped(mistyped);
                report([
                    ("tenant_count", tenant_counts),
                    ("pending_key", pending_keys),
                    ("lease", leases),
                    ("orphan", given_up),
                ]);
                break;
            }
        }
    }
    Ok(Counting::IsDone)
}

/// Waits after a step, so that the server has time for others.
async fn step<T>(step: impl Future<Output = Result<T, QueueError>>) -> Result<T, QueueError> {
    let began = Instant::now();
    let answer = step.await?;
    tokio::time::sleep(began.elapsed() * OTHERS).await;
    Ok(answer)
}

/// The same by steps, each of which takes the server a few milliseconds. A job that moves meanwhile may
/// be missed, so a pending key counts as one without a job only when no recount saw a job for as long
/// as such a key is kept; and counts are compared where all of a tenant's jobs are known.
pub async fn recount_in_steps(context: &Context) -> Result<(), SweepError> {
    if !context.recounts.are_due() {
        return Ok(());
    }
    let (queue, began) = (&context.queue, Instant::now());
    let mut seen_to_lost = began;
    let depths = queue.depths().await?;
    let parts = (depths.queue + depths.retry + depths.inflight).div_ceil(NODES_AT_ONCE).max(1);
    let part = context.recounts.rounds.fetch_add(1, Ordering::Relaxed) % parts;
    let is_in_part = |node: &Uuid| node.as_u128() % u128::from(parts) == u128::from(part);

    let mut without_job: HashSet<Uuid> = HashSet::new();
    let mut pages = queue.pending_pages();
    while let Some(page) = step(queue.next_page(&mut pages)).await? {
        let nodes = page.iter().filter_map(|node| node.parse().ok()).filter(is_in_part);
        let room = (2 * NODES_AT_ONCE as usize).saturating_sub(without_job.len());
        without_job.extend(nodes.take(room));
    }
    let (mut pending_keys, mut leases) = (0, 0);
    // In the order in which jobs move, and those that come back to the queue once more at the end.
    let order = [Structure::Retry, Structure::Queue, Structure::InFlight, Structure::Retry];
    for structure in order {
        let mut cursor: Option<String> = None;
        loop {
            let passed = step(queue.pass(structure, cursor.as_deref())).await?;
            pending_keys += passed.pending_keys;
            leases += passed.leases;
            for node in &passed.nodes {
                without_job.remove(node);
            }
            // Rows that wait for a job must not wait for this.
            if seen_to_lost.elapsed() >= context.config.sweep_interval {
                enqueue_lost(context).await?;
                seen_to_lost = Instant::now();
            }
            cursor = passed.next;
            if cursor.is_none() {
                break;
            }
        }
    }
    step(queue.tidy()).await?;
    let without_job: Vec<Uuid> = without_job.into_iter().collect();
    queue.mark_orphans(&without_job).await?;
    let (given_up, orphans) =
        queue.give_up_orphans(context.config.orphan_after, MOST_ORPHANS).await?;
    let tenant_counts = count_tenants(context, &orphans).await?;
    report([
        ("tenant_count", tenant_counts),
        ("pending_key", pending_keys),
        ("lease", leases),
        ("orphan", given_up),
    ]);
    context.recounts.took(began.elapsed());
    Ok(())
}

/// Mends the counts of all tenants, if their jobs are known; answers how many were wrong.
async fn count_tenants(context: &Context, orphans: &[Uuid]) -> Result<u64, SweepError> {
    let queue = &context.queue;
    // A foreign consumer at work still counts for its tenant.
    let mut tenants: HashMap<String, u64> = HashMap::new();
    for orphans in orphans.chunks(PAGE) {
        for (_, tenant) in context.store.tenants_of(orphans).await? {
            *tenants.entry(tenant.to_string()).or_default() += 1;
        }
    }
    let mut pages = queue.tenant_pages();
    while let Some(page) = step(queue.next_page(&mut pages)).await? {
        for tenant in page {
            tenants.entry(tenant).or_default();
        }
    }
    let mut cursor = Some("0".to_owned());
    while let Some(from) = cursor {
        let (page, next) = queue.waiting_tenants(&from).await?;
        for tenant in page {
            tenants.entry(tenant).or_default();
        }
        cursor = next;
    }
    let tenants: Vec<(String, u64)> = tenants.into_iter().collect();
    let mut all = 0;
    for tenants in tenants.chunks(PAGE) {
        match step(queue.recount_tenants(tenants)).await? {
            Counted::Unknown => break,
            Counted::Done { mended, mistyped } => {
                all += mended;
                report_mistyped(mistyped);
            }
        }
    }
    Ok(all)
}
