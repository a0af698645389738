//! Table `nodes`.
//!
//! Two columns are left out, because no type stands for them on both databases: `embedding` is
//! `vector(N)` in Postgres and a BLOB of little-endian f32 in SQLite, `classes` is `text[]` in
//! Postgres and JSON text in SQLite. The store reads and writes them with expressions of its own.

use sea_orm::entity::prelude::*;

/// A row of `nodes`. Columns that another installation may have left empty are optional.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "nodes")]
pub struct Model {
    /// Identity; 16 bytes in SQLite.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// Who owns it; null is the default tenant.
    pub tenant_id: Option<String>,
    /// Free-form properties; the text is among them.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub props: Option<Json>,
    /// Where the text lies outside the database.
    pub payload_ref: Option<String>,
    /// `queued`, `processing`, `ready`, `failed` or `skipped`.
    pub embedding_status: String,
    /// Why it failed, waits for a retry, or was skipped.
    pub embedding_error: Option<String>,
    /// Failed attempts.
    pub embedding_attempts: Option<i32>,
    /// When the vector was stored.
    pub embedding_updated_at: Option<DateTimeUtc>,
    /// Ours: identifies the text, model and revision that the vector was made of.
    pub embedding_source_hash: Option<String>,
    /// Ours: whether the text was cut to the model's maximum.
    pub embedding_truncated: Option<bool>,
    /// Stored for the client.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub metadata: Option<Json>,
    /// Stored for the client.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub refresh_policy: Option<Json>,
    /// Stored for the client.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub triggers: Option<Json>,
    /// Counts changes of the node.
    pub version: Option<i32>,
    /// When the node was last embedded.
    pub last_refreshed: Option<DateTimeUtc>,
    /// 1 − cosine(old vector, new vector) at the last embedding.
    pub drift_score: Option<f64>,
    /// When the row was written.
    pub created_at: Option<DateTimeUtc>,
    /// When the row was last changed.
    pub updated_at: Option<DateTimeUtc>,
}

/// `nodes` refers to no other table.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
