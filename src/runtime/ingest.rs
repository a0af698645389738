//! How nodes come in: room is reserved, rows are written, jobs are published.

use std::{collections::BTreeMap, sync::Arc};

use tracing::warn;

use super::{
    api::{Accepted, RuntimeError},
    burden::Burden,
    context::unix_now,
    handle::{Mode, Parts, Runtime, blamed, to_the_end},
    inline::write_new,
};
use crate::{
    domain::{Action, Job, NewNode, NodeStatus, TenantId},
    heavy::Weight,
    queue::{Admission, Limits, Queue, Reservation},
    store::{Birth, OnRefusal, Refusal, Refusals},
    telemetry::{Chain, metrics},
};

impl Runtime {
    /// Takes the nodes of a request in. When this returns, their rows are durable. Answers of each
    /// what it is now, or why the database refused it; with [`OnRefusal::KeepNone`] and a refusal,
    /// none is taken in. `burden` is that of the nodes.
    pub async fn ingest(
        &self,
        nodes: Vec<NewNode>,
        on_refusal: OnRefusal,
        burden: Burden,
    ) -> Result<Vec<Result<Accepted, Refusal>>, RuntimeError> {
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let (parts, store, weight) = (Arc::clone(&self.parts), &self.parts.store, burden.weight);
        if let (true, Mode::Inline(embedder)) = (parts.auto_embed, &self.parts.mode) {
            // A client that hangs up before anything is written wants nothing.
            let rows = blamed(store, embedder.embed_new(store, nodes).await).await?;
            return to_the_end(store, Some(burden), async move {
                write_new(&parts.store, rows, on_refusal, weight).await
            })
            .await;
        }
        to_the_end(store, Some(burden), async move {
            match &parts.mode {
                Mode::Inline(_) => only_store(&parts, nodes, on_refusal, weight).await,
                _ if !parts.auto_embed => only_store(&parts, nodes, on_refusal, weight).await,
                Mode::Queued { queue, limits, .. } => {
                    enqueue_new(&parts, queue, *limits, nodes, on_refusal, weight).await
                }
            }
        })
        .await
    }
}

/// Counts the jobs of a request, as many of each tenant as `jobs` says, or refuses all of them.
pub(super) async fn reserve(
    parts: &Parts,
    queue: &Queue,
    limits: Limits,
    jobs: &BTreeMap<&TenantId, u64>,
) -> Result<Reservation, RuntimeError> {
    let wanted = jobs.values().sum::<u64>() as usize;
    match queue.reserve(jobs, limits).await? {
        Admission::Admitted(reservation) => Ok(reservation),
        Admission::QueueFull => {
            metrics::nodes_rejected("queue", wanted);
            Err(RuntimeError::QueueFull { limit: limits.max_depth, retry_after: parts.retry_after })
        }
        Admission::TenantFull(tenant) => {
            metrics::nodes_rejected("tenant", wanted);
            Err(RuntimeError::TenantFull {
                tenant,
                limit: limits.tenant_max_pending,
                retry_after: parts.retry_after,
            })
        }
    }
}

/// Gives a reservation back that will not be used.
pub(super) async fn cancel(queue: &Queue, reservation: &Reservation) {
    if let Err(error) = queue.cancel(reservation).await {
        warn!(error = %Chain(&error), "a reservation is left to run out");
    }
}

/// Why a node is not embedded that was stored while new nodes are not.
const NOT_EMBEDDED: Birth =
    Birth { status: NodeStatus::Skipped, reason: Some("auto_embed_disabled") };

/// Writes nodes that nobody embeds until a refresh or requeue asks for it.
async fn only_store(
    parts: &Parts,
    nodes: Vec<NewNode>,
    on_refusal: OnRefusal,
    weight: Weight,
) -> Result<Vec<Result<Accepted, Refusal>>, RuntimeError> {
    let refusals = parts.store.insert_nodes(&nodes, NOT_EMBEDDED, on_refusal).await?;
    let to_accepted = |node: NewNode| Accepted {
        id: node.id,
        tenant_id: node.tenant_id,
        status: NOT_EMBEDDED.status,
        job_id: None,
    };
    Ok(each(nodes, refusals, weight, to_accepted))
}

/// Of each row what it is now, unless it was refused. The rows end here, which takes a while if they
/// hold much.
pub(super) fn each<T, R>(
    rows: Vec<T>,
    refusals: Refusals,
    weight: Weight,
    now: impl Fn(T) -> R,
) -> Vec<Result<R, Refusal>> {
    let answer = |(row, refusal): (T, Option<Refusal>)| refusal.map_or_else(|| Ok(now(row)), Err);
    weight.work(|| rows.into_iter().zip(refusals).map(answer).collect())
}

async fn enqueue_new(
    parts: &Parts,
    queue: &Queue,
    limits: Limits,
    nodes: Vec<NewNode>,
    on_refusal: OnRefusal,
    weight: Weight,
) -> Result<Vec<Result<Accepted, Refusal>>, RuntimeError> {
    let mut by_tenant: BTreeMap<&TenantId, u64> = BTreeMap::new();
    for node in &nodes {
        *by_tenant.entry(&node.tenant_id).or_default() += 1;
    }
    let reservation = reserve(parts, queue, limits, &by_tenant).await?;
    let written = parts.store.insert_nodes(&nodes, NodeStatus::Queued, on_refusal).await;
    let kept = |refusals: &Refusals| {
        let refused = refusals.iter().flatten().count();
        if on_refusal == OnRefusal::KeepNone && refused > 0 { 0 } else { refusals.len() - refused }
    };
    if !written.as_ref().is_ok_and(|refusals| kept(refusals) > 0) {
        cancel(queue, &reservation).await;
    }
    let refusals = written?;
    let accepted = kept(&refusals);
    let now = unix_now();
    let to_job = |node: NewNode| {
        Job::new(node.id, node.tenant_id, Action::Embed, now).in_database(parts.store.identity())
    };
    let jobs = each(nodes, refusals, weight, to_job);
    if accepted > 0 {
        let jobs: Vec<Job> = jobs.iter().flatten().cloned().collect();
        if let Err(error) = queue.publish(&reservation, &jobs).await {
            // The rows are durable, so the promise is made: the sweep enqueues them.
            warn!(error = %Chain(&error), nodes = accepted, "cannot publish jobs; the sweep will");
        }
    }
    metrics::nodes_ingested(accepted);
    let to_accepted = |job: Job| Accepted {
        id: job.node_id,
        tenant_id: job.tenant_id,
        status: NodeStatus::Queued,
        job_id: Some(job.job_id),
    };
    Ok(jobs.into_iter().map(|job| job.map(to_accepted)).collect())
}
