//! Refresh and requeue without a queue: nodes are embedded before the answer is sent.

use tracing::warn;
use uuid::Uuid;

use super::{
    api::{Accepted, Ended, RuntimeError},
    inline::InlineEmbedder,
};
use crate::{
    domain::NodeStatus,
    store::{Candidate, Store, StoreError, TextSource},
};

/// Embeds nodes that are there, some at a time, and answers how that ended. Those whose text was
/// changed meanwhile have the vector of that, and are not counted. With `anew`, not even a text that
/// was embedded before takes its vector from the database.
pub(super) async fn embed_again(
    store: &Store,
    embedder: &InlineEmbedder,
    nodes: Vec<Candidate>,
    anew: bool,
) -> Result<Ended, RuntimeError> {
    let mut ended = Ended::default();
    for some in nodes.chunks(embedder.batch_texts()) {
        let ids: Vec<Uuid> = some.iter().map(|node| node.id).collect();
        let mut parts = vec![store.sources(&ids).await?];
        while let Some(mut part) = parts.pop() {
            let written = match embed_and_store(store, embedder, part.clone(), anew).await {
                Ok(written) => written,
                // The row that the database refuses is found, and harms no other.
                Err(RuntimeError::Store(StoreError::Row(refusal))) if part.len() == 1 => {
                    warn!(node = %part[0].0, %refusal, "a node was not embedded again");
                    ended.failed += 1;
                    continue;
                }
                Err(RuntimeError::Store(StoreError::Row(_))) => {
                    let second = part.split_off(part.len() / 2);
                    parts.extend([second, part]);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (_, status) in written {
                match status {
                    NodeStatus::Ready => ended.ready += 1,
                    NodeStatus::Skipped => ended.skipped += 1,
                    _ => ended.failed += 1,
                }
            }
        }
    }
    Ok(ended)
}

/// Embeds a node that is there. One whose text is changed meanwhile is begun anew with.
pub(super) async fn embed_one_again(
    store: &Store,
    embedder: &InlineEmbedder,
    node: Candidate,
) -> Result<Accepted, RuntimeError> {
    // Each further round means that someone else's change was written.
    loop {
        let sources = store.sources(&[node.id]).await?;
        if sources.is_empty() {
            return Err(RuntimeError::NotFound(node.id));
        }
        if let Some((id, status)) = embed_and_store(store, embedder, sources, true).await?.pop() {
            return Ok(Accepted { id, tenant_id: node.tenant_id, status, job_id: None });
        }
    }
}

async fn embed_and_store(
    store: &Store,
    embedder: &InlineEmbedder,
    sources: Vec<(Uuid, TextSource)>,
    anew: bool,
) -> Result<Vec<(Uuid, NodeStatus)>, RuntimeError> {
    let results = embedder.embed_sources(store, &sources, anew).await?;
    let made: Vec<_> = sources.into_iter().map(|(_, source)| source).zip(results).collect();
    Ok(store.store_again(&made).await?)
}
