//! Requests and responses as the OpenAPI document shows them.

use std::borrow::Cow;

use poem_openapi::{
    Enum, Object, Union,
    registry::{MetaSchema, MetaSchemaRef},
    types::{Example, ParseError, ParseFromJSON, ParseResult, ToJSON, Type},
};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::limits::REQUEUE_MAX;
use crate::{domain::NodeStatus, runtime::Accepted};

/// A JSON object of any content.
#[derive(Debug, Clone, Default)]
pub struct JsonObject(pub Map<String, Value>);

impl Type for JsonObject {
    const IS_REQUIRED: bool = true;

    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "object".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        let anything = MetaSchemaRef::Inline(Box::new(MetaSchema::ANY));
        MetaSchemaRef::Inline(Box::new(MetaSchema {
            additional_properties: Some(Box::new(anything)),
            ..MetaSchema::new("object")
        }))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::empty())
    }
}

impl ParseFromJSON for JsonObject {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        match value {
            Some(Value::Object(fields)) => Ok(Self(fields)),
            _ => Err(ParseError::expected_input()),
        }
    }
}

impl ToJSON for JsonObject {
    fn to_json(&self) -> Option<Value> {
        Some(Value::Object(self.0.clone()))
    }
}

/// Where a node is on its way to a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "NodeStatus", rename_all = "lowercase", remote = "NodeStatus")]
pub enum Status {
    /// In the queue, in the retry set, or about to be put there.
    Queued,
    /// Held by a worker under a lease.
    Processing,
    /// The vector of the current text is stored.
    Ready,
    /// Attempts used up, or an error that no retry can mend.
    Failed,
    /// There is nothing to embed.
    Skipped,
}

/// A node to be taken in.
#[derive(Debug, Clone, Object)]
#[oai(rename = "NewNode", example)]
pub struct NodeRequest {
    /// Labels.
    #[oai(validator(
        min_items = 1,
        max_items = 10,
        min_length = 1,
        max_length = 100,
        pattern = r"^[^\u0000]*$"
    ))]
    pub classes: Vec<String>,
    /// Free-form properties. The text to embed is the first non-empty string among `text`,
    /// `resume_text`, `content`, `body` and `description`. No string or key anywhere in a node
    /// may hold the character U+0000.
    pub props: JsonObject,
    /// Where the text lies when it is not in `props`; it comes before any property.
    #[oai(nullable, validator(pattern = r"^[^\u0000]*$"))]
    pub payload_ref: Option<String>,
    /// Stored as it is.
    pub metadata: Option<Value>,
    /// Stored as it is.
    pub refresh_policy: Option<Value>,
    /// Stored as it is.
    pub triggers: Option<Value>,
    /// Who owns the node; when absent or empty, `default`. The tenant of a batch comes before it.
    #[oai(nullable, validator(max_length = 200, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$"))]
    pub tenant_id: Option<String>,
    /// Means nothing; clients of ActiveKG send it.
    #[oai(deprecated)]
    pub extract: Option<Value>,
    /// Means nothing; clients of ActiveKG send it.
    #[oai(deprecated)]
    pub extract_before_embed: Option<Value>,
}

impl Example for NodeRequest {
    fn example() -> Self {
        let text = Map::from_iter([("text".to_owned(), "Ten years of Rust".into())]);
        Self {
            classes: vec!["Resume".to_owned()],
            props: JsonObject(text),
            payload_ref: None,
            metadata: None,
            refresh_policy: None,
            triggers: None,
            tenant_id: Some("default".to_owned()),
            extract: None,
            extract_before_embed: None,
        }
    }
}

/// Changes to a node, as a JSON merge patch (RFC 7396): members that are given replace, members
/// that are `null` are removed, objects are merged, and what is absent stays. At least one of the
/// three fields is needed.
#[derive(Debug, Clone, Object)]
#[oai(rename = "NodePatch", example)]
pub struct PatchRequest {
    /// Merged into the properties.
    pub props: Option<JsonObject>,
    /// Merged into the metadata; null makes it empty.
    pub metadata: Option<Value>,
    /// Where the text lies when it is not in `props`; null or an empty string removes it.
    #[oai(nullable, validator(pattern = r"^[^\u0000]*$"))]
    pub payload_ref: Option<String>,
    /// Means nothing; clients of ActiveKG send it.
    #[oai(deprecated)]
    pub extract: Option<Value>,
    /// Means nothing; clients of ActiveKG send it.
    #[oai(deprecated)]
    pub extract_before_embed: Option<Value>,
}

impl Example for PatchRequest {
    fn example() -> Self {
        let text = Map::from_iter([("text".to_owned(), "Eleven years of Rust".into())]);
        Self {
            props: Some(JsonObject(text)),
            metadata: None,
            payload_ref: None,
            extract: None,
            extract_before_embed: None,
        }
    }
}

/// A node that was changed.
#[derive(Debug, Clone, Object)]
pub struct NodeChanged {
    /// The id of the node.
    pub id: Uuid,
    /// Its status now.
    pub embedding_status: Status,
    /// The job that will embed its new text; null when the text is as it was, and without a queue.
    #[oai(nullable)]
    pub job_id: Option<String>,
}

impl From<Accepted> for NodeChanged {
    fn from(node: Accepted) -> Self {
        Self { id: node.id, embedding_status: node.status.into(), job_id: node.job_id }
    }
}

/// Nodes to be taken in together.
#[derive(Debug, Clone, Object)]
#[oai(rename = "NewNodes")]
pub struct BatchRequest {
    /// The nodes, at most `NODE_BATCH_MAX` (200 unless configured otherwise).
    #[oai(validator(min_items = 1))]
    pub nodes: Vec<NodeRequest>,
    /// Who owns the nodes, whatever they say themselves; when absent or empty, each says its own.
    #[oai(nullable, validator(max_length = 200, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$"))]
    pub tenant_id: Option<String>,
    /// Whether the valid nodes are taken in when others are invalid. With `false`, one invalid
    /// node fails the whole request.
    #[oai(nullable, default = "yes")]
    pub continue_on_error: bool,
    /// Means nothing; clients of ActiveKG send it.
    #[oai(deprecated)]
    pub extract: Option<Value>,
    /// Means nothing; clients of ActiveKG send it.
    #[oai(deprecated)]
    pub extract_before_embed: Option<Value>,
}

fn yes() -> bool {
    true
}

/// Which nodes to put into the queue.
#[derive(Debug, Clone, Object)]
#[oai(rename = "Requeue", example)]
pub struct RequeueRequest {
    /// Only nodes of this tenant; of every tenant when absent or empty.
    #[oai(nullable, validator(max_length = 200, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$"))]
    pub tenant_id: Option<String>,
    /// Only these nodes; an empty list is none.
    #[oai(nullable, validator(max_items = 2000))]
    pub node_ids: Option<Vec<Uuid>>,
    /// Only nodes in this status; null and `all`, in any case, mean every one. When absent,
    /// `failed`, but with `node_ids` every one.
    #[oai(nullable)]
    pub status: Option<RequeueStatus>,
    /// Only nodes without a vector.
    #[oai(nullable, default)]
    pub only_missing_embedding: bool,
    /// Whether nodes that do have a vector are marked `ready` first.
    #[oai(nullable, default = "yes")]
    pub backfill_ready: bool,
    /// Nodes at most, oldest first; taken as the nearest number from 1 to 2000, or to
    /// `NODE_BATCH_MAX` without a queue.
    #[oai(nullable, default = "requeue_max")]
    pub limit: i64,
    /// Where to begin: the `next_cursor` of an earlier answer. Not together with `node_ids`.
    #[oai(nullable)]
    pub cursor: Option<String>,
}

fn requeue_max() -> i64 {
    REQUEUE_MAX as i64
}

/// Nodes to embed again, or nothing for all that are due.
#[derive(Debug, Clone, Union)]
#[oai(rename = "RefreshMany", one_of)]
pub enum RefreshRequest {
    /// These nodes.
    Ids(Vec<Uuid>),
    /// Nodes, and whose they are.
    Order(RefreshFields),
}

/// Nodes to embed again.
#[derive(Debug, Clone, Object)]
#[oai(rename = "Refresh")]
pub struct RefreshFields {
    /// These nodes; when absent or empty, all that are due by their `refresh_policy`.
    #[oai(nullable, validator(max_items = 2000))]
    pub node_ids: Option<Vec<Uuid>>,
    /// Only nodes of this tenant; of every tenant when absent or empty.
    #[oai(nullable, validator(max_length = 200, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$"))]
    pub tenant_id: Option<String>,
}

impl Example for RequeueRequest {
    fn example() -> Self {
        Self {
            tenant_id: Some("default".to_owned()),
            node_ids: None,
            status: Some(RequeueStatus::Queued),
            only_missing_embedding: true,
            backfill_ready: true,
            limit: requeue_max(),
            cursor: None,
        }
    }
}

/// A status, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
pub enum RequeueStatus {
    /// Nodes `queued`: those that have no live job are put into the queue.
    Queued,
    /// Nodes `processing`.
    Processing,
    /// Nodes `ready`.
    Ready,
    /// Nodes `failed`; their attempts count from 0 again.
    Failed,
    /// Nodes `skipped`.
    Skipped,
    /// Nodes in any status.
    All,
}

/// A node that was taken in.
#[derive(Debug, Clone, Object)]
pub struct NodeAccepted {
    /// The id of the node.
    pub id: Uuid,
    /// `queued`; without a queue the status after embedding.
    pub embedding_status: Status,
    /// The job that will embed it; null without a queue.
    #[oai(nullable)]
    pub job_id: Option<String>,
}

impl From<Accepted> for NodeAccepted {
    fn from(node: Accepted) -> Self {
        Self { id: node.id, embedding_status: node.status.into(), job_id: node.job_id }
    }
}

/// What became of a batch.
#[derive(Debug, Clone, Object)]
pub struct BatchAnswer {
    /// Nodes taken in.
    pub created: u64,
    /// Nodes refused.
    pub failed: u64,
    /// One entry for each node, in the order of the request.
    pub results: Vec<BatchResult>,
}

/// What became of one node of a batch.
#[derive(Debug, Clone, Union)]
#[oai(one_of)]
pub enum BatchResult {
    /// It was taken in.
    Accepted(BatchAccepted),
    /// It was refused.
    Refused(BatchRefused),
}

/// A node of a batch that was taken in.
#[derive(Debug, Clone, Object)]
pub struct BatchAccepted {
    /// The id of the node.
    pub id: Uuid,
    /// Who owns it.
    pub tenant_id: String,
    /// `queued`; without a queue the status after embedding.
    pub embedding_status: Status,
    /// The job that will embed it; null without a queue.
    #[oai(nullable)]
    pub job_id: Option<String>,
}

impl From<Accepted> for BatchAccepted {
    fn from(node: Accepted) -> Self {
        Self {
            id: node.id,
            tenant_id: node.tenant_id.into(),
            embedding_status: node.status.into(),
            job_id: node.job_id,
        }
    }
}

/// A node of a batch that was refused.
#[derive(Debug, Clone, Object)]
pub struct BatchRefused {
    /// Which field is wrong, and what it must be.
    pub error: String,
    /// The tenant it was meant for.
    pub tenant_id: String,
}
