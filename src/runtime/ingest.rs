//! How nodes come in: room is reserved, rows are written, jobs are published.

use std::{collections::BTreeMap, sync::Arc};

use tracing::warn;

use super::{
    api::{Accepted, RuntimeError},
    context::unix_now,
    handle::{Mode, Parts, Runtime},
};
use crate::{
    domain::{Action, Job, NewNode, NodeStatus, TenantId},
    queue::{Admission, Limits, Queue},
    telemetry::{Chain, metrics},
};

impl Runtime {
    /// Takes all nodes of a request in, or none. When this returns, their rows are durable.
    pub async fn ingest(&self, nodes: Vec<NewNode>) -> Result<Vec<Accepted>, RuntimeError> {
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let parts = Arc::clone(&self.parts);
        // A client that hangs up must not stop this half-way: a task of its own goes on.
        let task = tokio::spawn(async move {
            match &parts.mode {
                Mode::Inline(embedder) => embedder.ingest(&parts.store, nodes).await,
                Mode::Queued { queue, limits, .. } => {
                    enqueue_new(&parts, queue, *limits, nodes).await
                }
            }
        });
        match task.await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only the end of the process cancels it.
                Err(_) => Err(RuntimeError::Embedder),
            },
        }
    }
}

async fn enqueue_new(
    parts: &Parts,
    queue: &Queue,
    limits: Limits,
    nodes: Vec<NewNode>,
) -> Result<Vec<Accepted>, RuntimeError> {
    let mut by_tenant: BTreeMap<&TenantId, u64> = BTreeMap::new();
    for node in &nodes {
        *by_tenant.entry(&node.tenant_id).or_default() += 1;
    }
    let reservation = match queue.reserve(&by_tenant, limits).await? {
        Admission::Admitted(reservation) => reservation,
        Admission::QueueFull => {
            metrics::nodes_rejected("queue", nodes.len());
            return Err(RuntimeError::QueueFull {
                limit: limits.max_depth,
                retry_after: parts.retry_after,
            });
        }
        Admission::TenantFull(tenant) => {
            metrics::nodes_rejected("tenant", nodes.len());
            return Err(RuntimeError::TenantFull {
                tenant,
                limit: limits.tenant_max_pending,
                retry_after: parts.retry_after,
            });
        }
    };
    if let Err(error) = parts.store.insert_nodes(&nodes, NodeStatus::Queued).await {
        if let Err(error) = queue.cancel(&reservation).await {
            warn!(error = %Chain(&error), "a reservation is left to run out");
        }
        return Err(error.into());
    }
    let now = unix_now();
    let jobs: Vec<Job> = nodes
        .into_iter()
        .map(|node| Job::new(node.id, node.tenant_id, Action::Embed, now))
        .collect();
    if let Err(error) = queue.publish(&reservation, &jobs).await {
        // The rows are durable, so the promise is made: the sweep enqueues them.
        warn!(error = %Chain(&error), nodes = jobs.len(), "cannot publish jobs; the sweep will");
    }
    metrics::nodes_ingested(jobs.len());
    Ok(jobs
        .into_iter()
        .map(|job| Accepted {
            id: job.node_id,
            tenant_id: job.tenant_id,
            status: NodeStatus::Queued,
            job_id: Some(job.job_id),
        })
        .collect())
}
