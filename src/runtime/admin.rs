//! Refresh and requeue: nodes that have a row get a job.

use uuid::Uuid;

use super::{
    api::{Accepted, Requeued, RuntimeError},
    context::unix_now,
    handle::{Mode, Runtime},
};
use crate::{
    domain::{Action, Job, NodeStatus, TenantScope},
    queue::{Enqueued, Limits, Queue},
    store::{Candidate, RequeueFilter},
};

impl Runtime {
    /// Embeds a node again although its vector is there. A node that has a live job keeps that.
    pub async fn refresh(&self, scope: TenantScope, id: Uuid) -> Result<Accepted, RuntimeError> {
        let (queue, limits) = self.queue()?;
        let filter = RequeueFilter {
            scope,
            node_ids: Some(vec![id]),
            status: None,
            only_missing_embedding: false,
            limit: 1,
        };
        let mut found = self.parts.store.requeue_candidates(&filter).await?;
        let node = found.pop().ok_or(RuntimeError::NotFound(id))?;
        let job = Job::new(node.id, node.tenant_id.clone(), Action::Refresh, unix_now())
            .in_database(self.parts.store.identity());
        let answer = queue.enqueue(std::slice::from_ref(&job), Some(limits)).await?.pop();
        let job_id = match answer {
            Some(Enqueued::New) => {
                self.parts.store.mark_queued(std::slice::from_ref(&node)).await?;
                job.job_id
            }
            Some(Enqueued::Live(job_id)) => job_id,
            Some(Enqueued::TenantFull) => {
                return Err(RuntimeError::TenantFull {
                    tenant: node.tenant_id,
                    limit: limits.tenant_max_pending,
                    retry_after: self.parts.retry_after,
                });
            }
            Some(Enqueued::QueueFull) | None => {
                return Err(RuntimeError::QueueFull {
                    limit: limits.max_depth,
                    retry_after: self.parts.retry_after,
                });
            }
        };
        Ok(Accepted {
            id,
            tenant_id: node.tenant_id,
            status: NodeStatus::Queued,
            job_id: Some(job_id),
        })
    }

    /// Enqueues the nodes that match and have no live job, attempts counted from 0 again, as
    /// far as the limits allow. With `backfill_ready`, nodes that have a vector are marked
    /// `ready` first and are not embedded for nothing.
    pub async fn requeue(
        &self,
        mut filter: RequeueFilter,
        backfill_ready: bool,
    ) -> Result<Requeued, RuntimeError> {
        let (queue, limits) = self.queue()?;
        let store = &self.parts.store;
        let backfilled = if backfill_ready {
            filter.only_missing_embedding = true;
            store.backfill_ready(&filter.scope, filter.node_ids.as_deref()).await?
        } else {
            0
        };
        let nodes = store.requeue_candidates(&filter).await?;
        let now = unix_now();
        let jobs: Vec<Job> = nodes
            .iter()
            .map(|node| {
                // A job to embed is done at once when the vector of the text is there.
                let action =
                    if node.has_current_embedding { Action::Refresh } else { Action::Embed };
                Job::new(node.id, node.tenant_id.clone(), action, now).in_database(store.identity())
            })
            .collect();
        // The jobs first: a node that got none must not look as if it had.
        let answers = queue.enqueue(&jobs, Some(limits)).await?;
        let enqueued = |(node, answer)| (answer == Enqueued::New).then_some(node);
        let enqueued: Vec<Candidate> =
            nodes.into_iter().zip(answers).filter_map(enqueued).collect();
        store.mark_queued(&enqueued).await?;
        Ok(Requeued { backfilled, requested: jobs.len() as u64, enqueued: enqueued.len() as u64 })
    }

    fn queue(&self) -> Result<(&Queue, Limits), RuntimeError> {
        match &self.parts.mode {
            Mode::Queued { queue, limits, .. } => Ok((queue, *limits)),
            Mode::Inline(_) => Err(RuntimeError::NoQueue),
        }
    }
}
