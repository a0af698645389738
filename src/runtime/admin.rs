//! Refresh and requeue: nodes that have a row get a job, or without a queue a vector at once.

use std::{collections::HashSet, sync::Arc};

use chrono::Utc;
use uuid::Uuid;

use super::{
    api::{Accepted, Refreshed, Requeued, RuntimeError},
    context::unix_now,
    handle::{Mode, Parts, Runtime, to_the_end},
    off_async::off_async,
    reembed::{embed_again, embed_one_again},
};
use crate::{
    domain::{Action, Job, NodeStatus, TenantScope, due::is_due},
    queue::{Enqueued, Limits, Queue},
    store::{Backfilled, Candidate, Cursor, RequeueFilter, Store},
};

/// Nodes with a policy that are looked at together.
const DUE_PAGE: u64 = 1000;
/// Nodes that a requeue looks at together, to find those that have no live job.
const PAGE: u64 = 2000;
/// How often it does so in one call.
const PAGES: usize = 5;

impl Runtime {
    /// Embeds a node again although its vector is there. A node that has a live job keeps that.
    pub async fn refresh(&self, scope: TenantScope, id: Uuid) -> Result<Accepted, RuntimeError> {
        let filter = RequeueFilter {
            scope,
            node_ids: Some(vec![id]),
            status: None,
            only_missing_embedding: false,
            limit: 1,
            from: Cursor::default(),
        };
        let mut found = self.parts.store.requeue_candidates(&filter).await?;
        let node = found.pop().ok_or(RuntimeError::NotFound(id))?;
        let parts = Arc::clone(&self.parts);
        to_the_end(&self.parts.store, None, async move {
            match &parts.mode {
                Mode::Inline(embedder) => embed_one_again(&parts.store, embedder, node).await,
                Mode::Queued { queue, limits, .. } => {
                    enqueue_one(&parts, queue, *limits, node).await
                }
            }
        })
        .await
    }

    /// Embeds these nodes of the scope again, or all that are due by their policy, `limit` at most.
    pub async fn refresh_many(
        &self,
        scope: TenantScope,
        node_ids: Option<Vec<Uuid>>,
        limit: u64,
    ) -> Result<Refreshed, RuntimeError> {
        let parts = Arc::clone(&self.parts);
        to_the_end(&self.parts.store, None, async move {
            let nodes = match node_ids {
                None => due(&parts.store, &scope, limit).await?,
                node_ids => {
                    let only_missing_embedding = false;
                    let filter = RequeueFilter {
                        scope,
                        node_ids,
                        status: None,
                        only_missing_embedding,
                        limit,
                        from: Cursor::default(),
                    };
                    parts.store.requeue_candidates(&filter).await?
                }
            };
            let requested = nodes.len() as u64;
            Ok(match &parts.mode {
                Mode::Inline(embedder) => {
                    let ended = embed_again(&parts.store, embedder, nodes, true).await?;
                    Refreshed { requested, enqueued: 0, ended: Some(ended) }
                }
                Mode::Queued { queue, limits, .. } => {
                    let action = |_: &Candidate| Action::Refresh;
                    let enqueued = enqueue(&parts.store, queue, *limits, nodes, action).await?;
                    Refreshed { requested, enqueued, ended: None }
                }
            })
        })
        .await
    }

    /// Enqueues the nodes that match and have no live job, attempts counted from 0 again, as
    /// far as the limits allow; without a queue, embeds them. With `backfill_ready`, nodes that have
    /// a vector are marked `ready` first and are not embedded for nothing.
    ///
    /// Looks at a bounded number of nodes, and says where to go on.
    pub async fn requeue(
        &self,
        mut filter: RequeueFilter,
        backfill_ready: bool,
    ) -> Result<Requeued, RuntimeError> {
        let parts = Arc::clone(&self.parts);
        to_the_end(&self.parts.store, None, async move {
            let store = &parts.store;
            let mut done = Backfilled { nodes: 0, is_all: true };
            if backfill_ready {
                filter.only_missing_embedding = true;
                done = store.backfill_ready(&filter.scope, filter.node_ids.as_deref()).await?;
            }
            let queue = match &parts.mode {
                Mode::Inline(_) => None,
                Mode::Queued { queue, .. } => Some(queue.as_ref()),
            };
            let Idle { nodes, looked_at: requested, next } = idle(store, queue, &filter).await?;
            // Who goes on comes to what is still to be marked, and finds no other node.
            let next = next.or_else(|| (!done.is_all).then_some(filter.from));
            let backfilled = done.nodes;
            Ok(match &parts.mode {
                Mode::Inline(embedder) => {
                    let (again, anew) = nodes.into_iter().partition(|n| n.has_current_embedding);
                    let mut ended = embed_again(store, embedder, anew, false).await?;
                    ended += embed_again(store, embedder, again, true).await?;
                    let enqueued = ended.all();
                    Requeued { backfilled, requested, enqueued, next, ended: Some(ended) }
                }
                Mode::Queued { queue, limits, .. } => {
                    // A job to embed is done at once when the vector of the text is there.
                    let action = |node: &Candidate| match node.has_current_embedding {
                        true => Action::Refresh,
                        false => Action::Embed,
                    };
                    let enqueued = enqueue(store, queue, *limits, nodes, action).await?;
                    Requeued { backfilled, requested, enqueued, next, ended: None }
                }
            })
        })
        .await
    }
}

/// Nodes that a requeue is about.
struct Idle {
    /// Those that have no live job.
    nodes: Vec<Candidate>,
    /// How many matched until there were enough of these.
    looked_at: u64,
    /// Where the others begin; none if there are none.
    next: Option<Cursor>,
}

/// The first nodes that match and have no live job, as far as they are among the first of all that
/// match.
async fn idle(
    store: &Store,
    queue: Option<&Queue>,
    filter: &RequeueFilter,
) -> Result<Idle, RuntimeError> {
    // Few at once would be few that are looked at.
    let limit = if queue.is_some() { PAGE } else { filter.limit };
    let mut page_filter = RequeueFilter { limit, ..filter.clone() };
    let mut idle = Idle { nodes: Vec::new(), looked_at: 0, next: None };
    for _ in 0..PAGES {
        let page = store.requeue_page(&page_filter).await?;
        let ids: Vec<Uuid> = page.nodes.iter().map(|(node, _)| node.id).collect();
        let without_job: HashSet<Uuid> = match queue {
            Some(queue) => queue.without_job(&ids).await?.into_iter().collect(),
            None => ids.iter().copied().collect(),
        };
        idle.next = page.next;
        let last = ids.last().copied();
        for (node, behind) in page.nodes {
            let id = node.id;
            idle.looked_at += 1;
            if without_job.contains(&id) {
                idle.nodes.push(node);
            }
            if idle.nodes.len() as u64 == filter.limit {
                if last != Some(id) && filter.node_ids.is_none() {
                    idle.next = Some(behind);
                }
                return Ok(idle);
            }
        }
        match &idle.next {
            Some(next) => page_filter.from = next.clone(),
            None => break,
        }
    }
    Ok(idle)
}

/// The nodes of the scope that are due, `limit` at most.
async fn due(
    store: &Store,
    scope: &TenantScope,
    limit: u64,
) -> Result<Vec<Candidate>, RuntimeError> {
    let now = Utc::now();
    let (mut due, mut after) = (Vec::new(), None);
    loop {
        let page = store.nodes_with_policy(scope, after, DUE_PAGE).await?;
        let is_last = (page.len() as u64) < DUE_PAGE;
        after = page.last().map(|row| row.id);
        // A cron expression that never comes true is looked for through many years.
        let of_page = off_async(move || {
            let rows = page.into_iter().filter(|row| is_due(&row.policy, row.last_refreshed, now));
            rows.filter_map(|row| row.candidate).collect::<Vec<_>>()
        });
        due.extend(of_page.await);
        if is_last || due.len() as u64 >= limit {
            due.truncate(limit as usize);
            return Ok(due);
        }
    }
}

/// Enqueues nodes that have no live job, as far as the limits allow; answers how many.
async fn enqueue(
    store: &Store,
    queue: &Queue,
    limits: Limits,
    nodes: Vec<Candidate>,
    action: impl Fn(&Candidate) -> Action,
) -> Result<u64, RuntimeError> {
    let now = unix_now();
    let jobs: Vec<Job> = nodes
        .iter()
        .map(|node| {
            Job::new(node.id, node.tenant_id.clone(), action(node), now)
                .in_database(store.identity())
        })
        .collect();
    // The jobs first: a node that got none must not look as if it had.
    let answers = queue.enqueue(&jobs, Some(limits)).await?;
    let enqueued = |(node, answer)| (answer == Enqueued::New).then_some(node);
    let enqueued: Vec<Candidate> = nodes.into_iter().zip(answers).filter_map(enqueued).collect();
    store.mark_queued(&enqueued).await?;
    Ok(enqueued.len() as u64)
}

async fn enqueue_one(
    parts: &Parts,
    queue: &Queue,
    limits: Limits,
    node: Candidate,
) -> Result<Accepted, RuntimeError> {
    let job = Job::new(node.id, node.tenant_id.clone(), Action::Refresh, unix_now())
        .in_database(parts.store.identity());
    let answer = queue.enqueue(std::slice::from_ref(&job), Some(limits)).await?.pop();
    let job_id = match answer {
        Some(Enqueued::New) => {
            parts.store.mark_queued(std::slice::from_ref(&node)).await?;
            job.job_id
        }
        Some(Enqueued::Live(job_id)) => job_id,
        Some(Enqueued::TenantFull) => {
            return Err(RuntimeError::TenantFull {
                tenant: node.tenant_id,
                limit: limits.tenant_max_pending,
                retry_after: parts.retry_after,
            });
        }
        Some(Enqueued::QueueFull) | None => {
            return Err(RuntimeError::QueueFull {
                limit: limits.max_depth,
                retry_after: parts.retry_after,
            });
        }
    };
    Ok(Accepted {
        id: node.id,
        tenant_id: node.tenant_id,
        status: NodeStatus::Queued,
        job_id: Some(job_id),
    })
}
