//! What reads answer, as the OpenAPI document shows it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use poem_openapi::Object;
use serde_json::Value;
use uuid::Uuid;

use super::types::{JsonObject, Status};
use crate::{
    domain::TenantScope,
    runtime::{EmbeddingStatus, Requeued},
    store::{NodeDetail, NodeSummary},
};

/// A page of nodes.
#[derive(Debug, Clone, Object)]
pub struct NodePage {
    /// The nodes of this page.
    pub nodes: Vec<NodeListItem>,
    /// Nodes that match, on all pages.
    pub total: u64,
    /// Rows asked for.
    pub limit: u64,
    /// Rows passed over.
    pub offset: u64,
}

/// A node in a listing.
#[derive(Debug, Clone, Object)]
pub struct NodeListItem {
    /// Its id.
    pub id: Uuid,
    /// Its labels.
    pub classes: Vec<String>,
    /// Whether a vector is stored.
    pub has_embedding: bool,
    /// Its status.
    pub embedding_status: Status,
    /// Why it failed, waits for a retry, or was skipped.
    #[oai(nullable)]
    pub embedding_error: Option<String>,
    /// Failed attempts.
    pub embedding_attempts: u32,
}

impl From<NodeSummary> for NodeListItem {
    fn from(node: NodeSummary) -> Self {
        Self {
            id: node.id,
            classes: node.classes,
            has_embedding: node.has_embedding,
            embedding_status: node.status.into(),
            embedding_error: node.error,
            embedding_attempts: node.attempts,
        }
    }
}

/// A node.
#[derive(Debug, Clone, Object)]
pub struct Node {
    /// Its id.
    pub id: Uuid,
    /// Who owns it.
    pub tenant_id: String,
    /// Its labels.
    pub classes: Vec<String>,
    /// Its properties.
    pub props: JsonObject,
    /// Where its text lies when it is not in `props`.
    #[oai(nullable)]
    pub payload_ref: Option<String>,
    /// As it was sent.
    pub metadata: Option<Value>,
    /// As it was sent.
    pub refresh_policy: Option<Value>,
    /// As it was sent.
    pub triggers: Option<Value>,
    /// Counts changes of the node.
    pub version: i32,
    /// Whether a vector is stored.
    pub has_embedding: bool,
    /// Its status.
    pub embedding_status: Status,
    /// Why it failed, waits for a retry, or was skipped.
    #[oai(nullable)]
    pub embedding_error: Option<String>,
    /// Failed attempts.
    pub embedding_attempts: u32,
    /// When the vector was stored.
    #[oai(nullable)]
    pub embedding_updated_at: Option<DateTime<Utc>>,
    /// When the node was last embedded.
    #[oai(nullable)]
    pub last_refreshed: Option<DateTime<Utc>>,
    /// 1 − cosine(old vector, new vector) at the last embedding.
    #[oai(nullable)]
    pub drift_score: Option<f64>,
    /// Whether the text was cut to the model's maximum; null before the first embedding.
    #[oai(nullable)]
    pub embedding_truncated: Option<bool>,
    /// When the node was taken in.
    #[oai(nullable)]
    pub created_at: Option<DateTime<Utc>>,
    /// When it was last changed.
    #[oai(nullable)]
    pub updated_at: Option<DateTime<Utc>>,
    /// The vector, L2-normalised: there if it was asked for and is stored.
    #[oai(skip_serializing_if_is_none)]
    pub embedding: Option<Vec<f32>>,
}

impl From<NodeDetail> for Node {
    fn from(node: NodeDetail) -> Self {
        Self {
            id: node.summary.id,
            tenant_id: node.tenant_id.into(),
            classes: node.summary.classes,
            props: JsonObject(node.props),
            payload_ref: node.payload_ref,
            metadata: node.metadata,
            refresh_policy: node.refresh_policy,
            triggers: node.triggers,
            version: node.version,
            has_embedding: node.summary.has_embedding,
            embedding_status: node.summary.status.into(),
            embedding_error: node.summary.error,
            embedding_attempts: node.summary.attempts,
            embedding_updated_at: node.embedding_updated_at,
            last_refreshed: node.last_refreshed,
            drift_score: node.drift_score,
            embedding_truncated: node.truncated,
            created_at: node.created_at,
            updated_at: node.updated_at,
            embedding: node.embedding,
        }
    }
}

/// A node that will be embedded again.
#[derive(Debug, Clone, Object)]
pub struct RefreshAnswer {
    /// Its id.
    pub id: Uuid,
    /// `queued`.
    pub status: Status,
    /// The job that will embed it.
    #[oai(nullable)]
    pub job_id: Option<String>,
}

/// The operator's view.
#[derive(Debug, Clone, Object)]
pub struct StatusAnswer {
    /// The tenant that was asked for; null for all.
    #[oai(nullable)]
    pub tenant_id: Option<String>,
    /// Nodes by status.
    pub status_counts: StatusCounts,
    /// The queue, of all tenants together.
    pub queue: QueueDepths,
}

/// Nodes by status.
#[derive(Debug, Clone, Object)]
pub struct StatusCounts {
    /// Nodes `queued`.
    pub queued: u64,
    /// Nodes `processing`.
    pub processing: u64,
    /// Nodes `ready`.
    pub ready: u64,
    /// Nodes `failed`.
    pub failed: u64,
    /// Nodes `skipped`.
    pub skipped: u64,
}

/// Depths of the queue's structures.
#[derive(Debug, Clone, Object)]
pub struct QueueDepths {
    /// Jobs waiting to be claimed.
    pub queue: u64,
    /// Jobs waiting for their next attempt.
    pub retry: u64,
    /// Dead letters.
    pub dlq: u64,
    /// Jobs that a worker holds.
    pub inflight: u64,
    /// Age of the oldest waiting job; null when none waits.
    #[oai(nullable)]
    pub oldest_age_seconds: Option<f64>,
}

impl StatusAnswer {
    /// The answer for the tenants that were asked for.
    pub fn new(scope: &TenantScope, status: EmbeddingStatus) -> Self {
        let EmbeddingStatus { status_counts: counts, queue } = status;
        Self {
            tenant_id: scope.tenant().map(ToString::to_string),
            status_counts: StatusCounts {
                queued: counts.queued,
                processing: counts.processing,
                ready: counts.ready,
                failed: counts.failed,
                skipped: counts.skipped,
            },
            queue: QueueDepths {
                queue: queue.queue,
                retry: queue.retry,
                dlq: queue.dlq,
                inflight: queue.inflight,
                oldest_age_seconds: queue.oldest_age_seconds,
            },
        }
    }
}

/// What a requeue did.
#[derive(Debug, Clone, Object)]
pub struct RequeueAnswer {
    /// Nodes with a vector that were marked `ready` first.
    pub backfilled: u64,
    /// Nodes that matched.
    pub requested: u64,
    /// Nodes for which a job was enqueued; the others have a live job, or met a limit.
    pub enqueued: u64,
}

impl From<Requeued> for RequeueAnswer {
    fn from(done: Requeued) -> Self {
        Self { backfilled: done.backfilled, requested: done.requested, enqueued: done.enqueued }
    }
}

/// The process lives.
#[derive(Debug, Clone, Object)]
pub struct HealthAnswer {
    /// `ok`.
    pub status: String,
}

/// Every part that work needs is there.
#[derive(Debug, Clone, Object)]
pub struct ReadyAnswer {
    /// `ready`.
    pub status: String,
    /// The parts, each `ok`.
    pub checks: BTreeMap<String, String>,
}
