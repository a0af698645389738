//! What goes into the store and what comes out of it.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Refusal;
use crate::domain::{NodeStatus, TenantId, TenantScope};

/// Which nodes a listing wants.
#[derive(Debug, Clone)]
pub struct NodeFilter {
    /// Whose nodes.
    pub scope: TenantScope,
    /// Only those with (true) or without (false) a vector.
    pub has_embedding: Option<bool>,
    /// Only those in this status.
    pub status: Option<NodeStatus>,
    /// Rows at most.
    pub limit: u64,
    /// Where to begin.
    pub from: Cursor,
}

/// A place among nodes in the order of their age. The default is the beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Behind which node; before the first one when `None`.
    pub after: Option<Position>,
    /// How many of the nodes that are wanted are still to be passed over from there.
    pub skip: u64,
}

/// Where a node stands in the order of age. The place is there without the node, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// When the node was created, as the database writes it; none if it does not say.
    pub created_at: Option<String>,
    /// The node.
    pub id: Uuid,
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeList {
    /// The nodes, oldest first. There may be fewer than asked for before the end, where few of many
    /// are wanted.
    pub nodes: Vec<NodeSummary>,
    /// Where the next page begins; none at the end.
    pub next: Option<Cursor>,
    /// How many match, on all pages.
    pub total: Total,
}

/// How many nodes there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Total {
    /// The number.
    pub nodes: u64,
    /// Whether they were counted, rather than estimated.
    pub is_exact: bool,
}

/// A node in a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSummary {
    /// Its id.
    pub id: Uuid,
    /// Its labels.
    pub classes: Vec<String>,
    /// Whether a vector is stored.
    pub has_embedding: bool,
    /// Its status.
    pub status: NodeStatus,
    /// Why it failed, waits for a retry, or was skipped.
    pub error: Option<String>,
    /// Failed attempts.
    pub attempts: u32,
}

/// A whole node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeDetail {
    /// What a listing shows of it.
    pub summary: NodeSummary,
    /// Who owns it.
    pub tenant_id: TenantId,
    /// Its properties.
    pub props: Map<String, Value>,
    /// Where its text lies outside the database.
    pub payload_ref: Option<String>,
    /// Stored for the client.
    pub metadata: Option<Value>,
    /// Stored for the client.
    pub refresh_policy: Option<Value>,
    /// Stored for the client.
    pub triggers: Option<Value>,
    /// Counts changes of the node.
    pub version: i32,
    /// When the vector was stored.
    pub embedding_updated_at: Option<DateTime<Utc>>,
    /// When the node was last embedded.
    pub last_refreshed: Option<DateTime<Utc>>,
    /// 1 − cosine(old vector, new vector) at the last embedding.
    pub drift_score: Option<f64>,
    /// Whether the text was cut to the model's maximum; `None` before the first embedding.
    pub truncated: Option<bool>,
    /// When the row was written.
    pub created_at: Option<DateTime<Utc>>,
    /// When the row was last changed.
    pub updated_at: Option<DateTime<Utc>>,
    /// The vector, if it was asked for and is there.
    pub embedding: Option<Vec<f32>>,
}

/// How many nodes are in each status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
    /// Whether one of these is estimated, which only large ones are.
    pub is_estimated: bool,
}

/// A claimed job, as far as the store is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeginJob {
    /// The node.
    pub id: Uuid,
    /// Who owns the node, as the job has it.
    pub tenant_id: TenantId,
    /// Embed again although a vector is there.
    pub refresh: bool,
    /// How often the job has failed.
    pub failed_attempts: u32,
}

/// What a worker needs to know of a node whose job it claimed.
#[derive(Debug, Clone, PartialEq)]
pub struct TextRow {
    /// The node.
    pub id: Uuid,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// What is embedded of it, by the [`super::TextRule`] of the store; `None` when that is nothing.
    pub text: Option<String>,
    /// Identifies that, where the text alone does not.
    pub text_hash: Option<TextHash>,
    /// Where its text lies outside the database, if it does.
    pub payload_ref: Option<String>,
    /// Its status before the claim.
    pub status: NodeStatus,
    /// What the stored vector was made of: see [`Vector::source_hash`].
    pub source_hash: Option<String>,
    /// Whether a vector is stored.
    pub has_embedding: bool,
    /// Whether the text was left in the database, because those before it were enough.
    pub is_left: bool,
}

/// Identifies what a model saw, and the model (SHA-256).
pub type InputHash = [u8; 32];

/// Identifies a text: the SHA-256 of its UTF-8.
pub type TextHash = [u8; 32];

/// See [`TextHash`].
pub fn text_hash(text: &str) -> TextHash {
    Sha256::digest(text).into()
}

/// A vector to store.
#[derive(Debug, Clone, PartialEq)]
pub struct Vector {
    /// The node.
    pub id: Uuid,
    /// Identifies the text that was embedded: the row takes the vector only while this still is its
    /// text. `None` for a row that the caller has locked.
    pub text_hash: Option<TextHash>,
    /// Identifies text, model and revision.
    pub source_hash: String,
    /// Identifies what the model saw; `None` when the vector is not to be found by it.
    pub input_hash: Option<InputHash>,
    /// L2-normalised components.
    pub values: Vec<f32>,
    /// Whether the text was cut.
    pub truncated: bool,
    /// Failed attempts before this success, which is one more.
    pub failed_attempts: u32,
}

/// A node that leaves `processing` without a vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The node.
    pub id: Uuid,
    /// `Queued` (it will be retried), `Failed` or `Skipped`.
    pub status: NodeStatus,
    /// The reason, free of text.
    pub error: String,
    /// Failed attempts so far.
    pub attempts: u32,
    /// What this is the end of.
    pub subject: Subject,
}

/// What an outcome is about. A row that is about something else by now keeps what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A row that could not be read: it is `queued`, or somebody marked it `processing`.
    Unread,
    /// Whatever text is `processing`.
    Processing,
    /// This text, or that there is none, while the row is `processing`. If it is `queued` again,
    /// its text was changed or another worker has its turn; if it is `processing` with another
    /// text, another worker has begun on that after this one's lease was lost, or another program
    /// changed the text.
    Text(Option<TextHash>),
}

/// What a node's vector is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextSource {
    /// What is embedded of it, by the [`super::TextRule`] of the store; `None` when that is nothing.
    pub text: Option<String>,
    /// Where its text lies outside the database, if it does.
    pub payload_ref: Option<String>,
}

/// What to do with a change that gives a node another text.
#[derive(Debug, Clone, Copy)]
pub enum OnNewText<'a> {
    /// Write nothing.
    Ask,
    /// Write it, and mark the node `queued`.
    Queue,
    /// Write it together with what was made of this text, if it still is this one.
    Store(&'a TextSource, &'a Result<Vector, Outcome>),
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq)]
pub enum Patched {
    /// There is no such node in the scope.
    NotFound,
    /// The node would get this text, and nothing was written.
    NewText {
        /// Who owns the node.
        tenant_id: TenantId,
        /// The text.
        source: TextSource,
    },
    /// The change is durable.
    Done {
        /// Who owns the node.
        tenant_id: TenantId,
        /// The node's status now.
        status: NodeStatus,
        /// Whether it has another text now.
        has_new_text: bool,
    },
}

/// Which nodes an operator wants enqueued.
#[derive(Debug, Clone)]
pub struct RequeueFilter {
    /// Whose nodes.
    pub scope: TenantScope,
    /// These nodes; all of the scope when `None`.
    pub node_ids: Option<Vec<Uuid>>,
    /// Those in this status; any status when `None`.
    pub status: Option<NodeStatus>,
    /// Only nodes without a vector of their current text.
    pub only_missing_embedding: bool,
    /// Nodes at most, oldest first.
    pub limit: u64,
    /// Where to begin, unless nodes are named.
    pub from: Cursor,
}

/// Nodes that an operator wants enqueued.
#[derive(Debug, Clone, PartialEq)]
pub struct RequeuePage {
    /// The nodes, oldest first, each with where the next page begins behind it.
    pub nodes: Vec<(Candidate, Cursor)>,
    /// Where the next page begins; none at the end.
    pub next: Option<Cursor>,
}

/// How many nodes were marked `ready`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backfilled {
    /// The number.
    pub nodes: u64,
    /// Whether there are no others.
    pub is_all: bool,
}

/// A node that a job may be made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub id: Uuid,
    /// Who owns it.
    pub tenant_id: TenantId,
    /// Its status when it was read.
    pub status: NodeStatus,
    /// Whether a vector is stored that is not known to be one of an older text.
    pub has_current_embedding: bool,
    /// Another text after each change of the row.
    pub changed: Option<String>,
}

/// Some of the rows that are `queued` or `processing`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenPage {
    /// Those that a job may be made for.
    pub nodes: Vec<Candidate>,
    /// Behind which row the next page begins; none after the last one.
    pub next: Option<Uuid>,
}

/// Why the store did not answer as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, or ended the connection; the same call may succeed later.
    #[error("the database is not available")]
    Unavailable(#[source] sea_orm::DbErr),
    /// The database refused the statement.
    #[error("the database refused a statement")]
    Refused(#[source] sea_orm::DbErr),
    /// The database refused a row for what it holds.
    #[error(transparent)]
    Row(Refusal),
    /// The vector column has another dimension than the model.
    #[error(
        "the column nodes.embedding holds vectors of {column} components, but the model makes \
         {model}: set EMBEDDING_MODEL to a model of {column} components, or use another database"
    )]
    Dimension {
        /// Components of the column.
        column: usize,
        /// Components of the model.
        model: usize,
    },
    /// A place in a listing is none that this database gave.
    #[error("cursor: must be the next_cursor of an earlier answer; begin again without it")]
    Cursor,
    /// The database lacks something that only its administrator can give.
    #[error("{0}")]
    Setup(String),
}
