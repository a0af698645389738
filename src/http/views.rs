//! What reads of nodes answer, as the OpenAPI document shows it.

use chrono::{DateTime, Utc};
use poem_openapi::Object;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    cursor,
    types::{JsonObject, Status},
};
use crate::store::{NodeDetail, NodeList, NodeSummary, NodeVersion};

/// A page of nodes.
#[derive(Debug, Clone, Object)]
pub struct NodePage {
    /// The nodes of this page.
    pub nodes: Vec<NodeListItem>,
    /// Nodes that match, on all pages.
    pub total: u64,
    /// Whether they were counted. More than 100000 are estimated.
    pub total_exact: bool,
    /// Rows asked for.
    pub limit: u64,
    /// Rows passed over by `offset`.
    pub offset: u64,
    /// The `cursor` of the next page; null at the end.
    #[oai(nullable)]
    pub next_cursor: Option<String>,
}

impl NodePage {
    /// The page that answers a request for so many rows.
    pub fn new(list: NodeList, limit: u64, offset: u64) -> Self {
        Self {
            nodes: list.nodes.into_iter().map(Into::into).collect(),
            total: list.total.nodes,
            total_exact: list.total.is_exact,
            limit,
            offset,
            next_cursor: list.next.as_ref().map(cursor::written),
        }
    }
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
    /// Failed attempts of its job, and the one that is under way or succeeded.
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
    /// Failed attempts of its job, and the one that is under way or succeeded.
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
