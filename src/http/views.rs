//! What reads answer, as the OpenAPI document shows it.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use poem_openapi::Object;
use serde_json::{Value, json};
use uuid::Uuid;

use super::types::{JsonObject, Status};
use crate::{
    domain::TenantScope,
    runtime::{EmbedInfo, EmbeddingStatus, Ended, Refreshed, Requeued, Seen},
    store::{NodeDetail, NodeSummary, NodeVersion},
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
    /// As it was sent; an empty object when nothing was.
    pub metadata: Value,
    /// As it was sent; an empty object when nothing was.
    pub refresh_policy: Value,
    /// As it was sent; an empty array when nothing was.
    pub triggers: Value,
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
            metadata: or_empty(node.metadata, json!({})),
            refresh_policy: or_empty(node.refresh_policy, json!({})),
            triggers: or_empty(node.triggers, json!([])),
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

/// An older database may hold null where nothing was sent.
fn or_empty(value: Option<Value>, empty: Value) -> Value {
    value.filter(|value| !value.is_null()).unwrap_or(empty)
}

/// A node that is embedded again.
#[derive(Debug, Clone, Object)]
pub struct RefreshAnswer {
    /// Its id.
    pub id: Uuid,
    /// `queued`; without a queue the status after embedding.
    pub status: Status,
    /// The job that will embed it; null without a queue.
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
    /// Nodes for which a job was enqueued; the others have a live job, or met a limit. Without a
    /// queue, nodes that were embedded.
    pub enqueued: u64,
    /// How that ended; there without a queue only.
    #[oai(skip_serializing_if_is_none)]
    pub ended: Option<EndedCounts>,
}

impl From<Requeued> for RequeueAnswer {
    fn from(done: Requeued) -> Self {
        let Requeued { backfilled, requested, enqueued, ended } = done;
        Self { backfilled, requested, enqueued, ended: ended.map(Into::into) }
    }
}

/// How nodes ended that were embedded before the answer.
#[derive(Debug, Clone, Object)]
pub struct EndedCounts {
    /// Nodes with a vector.
    pub ready: u64,
    /// Nodes whose text the model refused.
    pub failed: u64,
    /// Nodes without a text.
    pub skipped: u64,
}

impl From<Ended> for EndedCounts {
    fn from(Ended { ready, failed, skipped }: Ended) -> Self {
        Self { ready, failed, skipped }
    }
}

/// What a refresh of many nodes did.
#[derive(Debug, Clone, Object)]
pub struct RefreshManyAnswer {
    /// `queued`, or `completed` without a queue.
    pub status: String,
    /// `specific_nodes` or `all_due_nodes`.
    pub mode: String,
    /// Nodes named, or due; 2000 of these at most, or `NODE_BATCH_MAX` without a queue.
    pub requested: u64,
    /// Nodes for which a job was enqueued; the others are not there, have a live job, or met a limit.
    pub enqueued: u64,
    /// Nodes that have their vector already: without a queue only.
    pub refreshed: u64,
    /// How the nodes ended; there without a queue only.
    #[oai(skip_serializing_if_is_none)]
    pub ended: Option<EndedCounts>,
}

impl RefreshManyAnswer {
    /// `named` is how many nodes were named; none if all that are due were meant.
    pub fn new(named: Option<u64>, done: Refreshed) -> Self {
        let Refreshed { requested, enqueued, ended } = done;
        let status = if ended.is_some() { "completed" } else { "queued" };
        let mode = if named.is_some() { "specific_nodes" } else { "all_due_nodes" };
        Self {
            status: status.to_owned(),
            mode: mode.to_owned(),
            requested: named.unwrap_or(requested),
            enqueued,
            refreshed: ended.map_or(0, |ended| ended.ready),
            ended: ended.map(Into::into),
        }
    }
}

/// The former vectors of a node, as far as the database keeps them.
#[derive(Debug, Clone, Object)]
pub struct VersionsAnswer {
    /// The node.
    pub node_id: Uuid,
    /// Newest first.
    pub versions: Vec<VersionItem>,
    /// How many are shown.
    pub count: u64,
}

/// A former vector of a node.
#[derive(Debug, Clone, Object)]
pub struct VersionItem {
    /// Its place, counted from the newest: 0.
    pub version_index: u64,
    /// 1 − cosine(vector before, this vector).
    #[oai(nullable)]
    pub drift_score: Option<f64>,
    /// When it was stored.
    #[oai(nullable)]
    pub created_at: Option<DateTime<Utc>>,
    /// Where its text lay when it was not in `props`.
    #[oai(nullable)]
    pub embedding_ref: Option<String>,
}

impl VersionsAnswer {
    /// The answer for a node.
    pub fn new(node_id: Uuid, versions: Vec<NodeVersion>) -> Self {
        let item = |(version_index, version): (u64, NodeVersion)| VersionItem {
            version_index,
            drift_score: version.drift_score,
            created_at: version.created_at,
            embedding_ref: version.embedding_ref,
        };
        let versions: Vec<VersionItem> = (0..).zip(versions).map(item).collect();
        Self { node_id, count: versions.len() as u64, versions }
    }
}

/// How vectors are made. What only a loaded model tells is null where this process has none.
#[derive(Debug, Clone, Object)]
pub struct EmbedInfoAnswer {
    /// `candle` or `hash`.
    pub embedding_backend: String,
    /// As it is configured.
    pub embedding_model: String,
    /// Components of each vector.
    pub dimension: u64,
    /// As it is configured.
    pub device: String,
    /// Identifies the vectors, together with the model's name.
    #[oai(nullable)]
    pub model_revision: Option<String>,
    /// Texts are cut to this many tokens.
    #[oai(nullable)]
    pub max_tokens: Option<u64>,
    /// The type of the operands of matrix products.
    #[oai(nullable)]
    pub dtype: Option<String>,
    /// The code that computes.
    #[oai(nullable)]
    pub kernel: Option<String>,
    /// Threads that compute.
    #[oai(nullable)]
    pub threads: Option<u64>,
}

impl From<EmbedInfo> for EmbedInfoAnswer {
    fn from(info: EmbedInfo) -> Self {
        let loaded = info.loaded.as_ref();
        Self {
            embedding_backend: info.backend.to_owned(),
            embedding_model: info.model,
            dimension: info.dimension as u64,
            device: info.device,
            model_revision: loaded.map(|model| model.revision.clone()),
            max_tokens: loaded.map(|model| model.max_tokens as u64),
            dtype: loaded.map(|model| model.dtype.to_owned()),
            kernel: loaded.map(|model| model.kernel.to_owned()),
            threads: loaded.map(|model| model.threads as u64),
        }
    }
}

/// The process lives.
#[derive(Debug, Clone, Object)]
pub struct HealthAnswer {
    /// `ok`.
    pub status: String,
    /// The time of this answer.
    pub timestamp: DateTime<Utc>,
    /// The version of the program.
    pub version: String,
    /// How long it has been there.
    pub uptime_seconds: f64,
    /// Its parts, each as it was when `/readyz` was last asked for.
    pub components: BTreeMap<String, Component>,
}

/// A part of the process.
#[derive(Debug, Clone, Object)]
pub struct Component {
    /// `ok`, `unavailable` or `unknown`.
    pub status: String,
}

impl HealthAnswer {
    /// The answer of a process that is `uptime` old.
    pub fn new(uptime: Duration, parts: Vec<(&'static str, Seen)>) -> Self {
        let component = |(name, seen): (&str, Seen)| {
            let status = match seen {
                Seen::Ok => "ok",
                Seen::Unavailable => "unavailable",
                Seen::Unknown => "unknown",
            };
            (name.to_owned(), Component { status: status.to_owned() })
        };
        Self {
            status: "ok".to_owned(),
            timestamp: Utc::now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: uptime.as_secs_f64(),
            components: parts.into_iter().map(component).collect(),
        }
    }
}

/// Every part that work needs is there.
#[derive(Debug, Clone, Object)]
pub struct ReadyAnswer {
    /// `ready`.
    pub status: String,
    /// The parts, each `ok`.
    pub checks: BTreeMap<String, String>,
}
