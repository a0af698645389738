//! How nodes are changed and deleted while jobs of theirs may be anywhere.

use std::{collections::BTreeMap, sync::Arc};

use tracing::warn;
use uuid::Uuid;

use super::{
    api::{Accepted, RuntimeError},
    burden::Burden,
    context::unix_now,
    handle::{Mode, Parts, Runtime, to_the_end},
    ingest::{cancel, reserve},
    inline::InlineEmbedder,
};
use crate::{
    domain::{Action, Job, NodePatch, NodeStatus, TenantId, TenantScope},
    queue::{Limits, Queue},
    store::{OnNewText, Patched, Store},
    telemetry::Chain,
};

impl Runtime {
    /// Changes a node. One that gets another text by it is embedded again: by the job in the
    /// answer, or before the answer when there is no queue. Otherwise it keeps its vector and its
    /// status, and has no job in the answer. `burden` is that of the patch.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`]; a limit or an outage, and then nothing is changed.
    pub async fn edit(
        &self,
        scope: TenantScope,
        id: Uuid,
        patch: NodePatch,
        burden: Burden,
    ) -> Result<Accepted, RuntimeError> {
        let (parts, weight) = (Arc::clone(&self.parts), burden.weight);
        to_the_end(&self.parts.store, Some(burden), async move {
            let outcome = match &parts.mode {
                Mode::Inline(embedder) => {
                    edit_inline(&parts.store, embedder, &scope, id, &patch).await
                }
                Mode::Queued { queue, limits, .. } => {
                    edit_queued(&parts, queue, *limits, &scope, id, &patch).await
                }
            };
            weight.work(|| drop(patch));
            outcome
        })
        .await
    }

    /// Deletes a node and ends its jobs. A worker that has one in hand finds the row gone.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], or the database is away.
    pub async fn delete(&self, scope: TenantScope, id: Uuid) -> Result<(), RuntimeError> {
        let parts = Arc::clone(&self.parts);
        to_the_end(&self.parts.store, None, async move {
            let tenant = parts.store.delete(&scope, id).await?.ok_or(RuntimeError::NotFound(id))?;
            if let Mode::Queued { queue, .. } = &parts.mode
                && let Err(error) = queue.forget(id, &tenant).await
            {
                // Whoever claims a job of a node that is gone ends it.
                warn!(error = %Chain(&error), node = %id, "the jobs of a deleted node are left");
            }
            Ok(())
        })
        .await
    }
}

/// Room is reserved before the row is written, and only if there will be a job. What is found out
/// without permission to write is found out again with it, under the lock of the row.
async fn edit_queued(
    parts: &Parts,
    queue: &Queue,
    limits: Limits,
    scope: &TenantScope,
    id: Uuid,
    patch: &NodePatch,
) -> Result<Accepted, RuntimeError> {
    let tenant_id = match parts.store.patch(scope, id, patch, OnNewText::Ask).await? {
        Patched::NotFound => return Err(RuntimeError::NotFound(id)),
        Patched::Done { tenant_id, status, .. } => return Ok(kept(id, tenant_id, status)),
        Patched::NewText { tenant_id, .. } => tenant_id,
    };
    let reservation = reserve(parts, queue, limits, &BTreeMap::from([(&tenant_id, 1)])).await?;
    let patched = parts.store.patch(scope, id, patch, OnNewText::Queue).await;
    if !matches!(patched, Ok(Patched::Done { has_new_text: true, .. })) {
        cancel(queue, &reservation).await;
    }
    match patched? {
        Patched::Done { tenant_id, status, has_new_text: true } => {
            let job = Job::new(id, tenant_id.clone(), Action::Embed, unix_now())
                .in_database(parts.store.identity());
            let job_id = queue.change(&reservation, &job).await.unwrap_or_else(|error| {
                // The row is durable, so the promise is made: the sweep enqueues it.
                warn!(error = %Chain(&error), node = %id, "cannot enqueue a new text; the sweep will");
                job.job_id
            });
            Ok(Accepted { id, tenant_id, status, job_id: Some(job_id) })
        }
        Patched::Done { tenant_id, status, .. } => Ok(kept(id, tenant_id, status)),
        // It was deleted meanwhile; and whoever may write is not asked to come back.
        Patched::NotFound | Patched::NewText { .. } => Err(RuntimeError::NotFound(id)),
    }
}

/// The text is embedded before anything is written, and row and vector are written together. A
/// row whose text is another one by then is begun anew with.
async fn edit_inline(
    store: &Store,
    embedder: &InlineEmbedder,
    scope: &TenantScope,
    id: Uuid,
    patch: &NodePatch,
) -> Result<Accepted, RuntimeError> {
    let mut patched = store.patch(scope, id, patch, OnNewText::Ask).await?;
    // Each further round means that someone else's change was written.
    loop {
        match patched {
            Patched::NotFound => return Err(RuntimeError::NotFound(id)),
            Patched::Done { tenant_id, status, .. } => return Ok(kept(id, tenant_id, status)),
            Patched::NewText { source, .. } => {
                let result = embedder.embed_source(store, id, &source).await?;
                let write = OnNewText::Store(&source, &result);
                patched = store.patch(scope, id, patch, write).await?;
            }
        }
    }
}

/// The answer for a node that needs no job any more.
fn kept(id: Uuid, tenant_id: TenantId, status: NodeStatus) -> Accepted {
    Accepted { id, tenant_id, status, job_id: None }
}
