//! What a worker does to the rows of the jobs that it claimed.

use std::collections::HashMap;

use entity::node::{Column, Entity};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QuerySelect, Statement,
};
use serde::Serialize;
use uuid::Uuid;

use super::{
    BeginJob, Outcome, Store, StoreError, Subject, TextHash, TextRow,
    dialect::{
        Dialect, Kind, has_embedding, postgres_text, postgres_text_hash, sqlite_text,
        sqlite_text_hash, status_of, tenant_of, to_json,
    },
};
use crate::domain::{NodeStatus, TenantId};

/// The longest reason that a row keeps, in characters.
const ERROR_MAX_CHARS: usize = 500;

impl Store {
    /// Reads the rows of claimed jobs and marks them `processing`, at once.
    ///
    /// The text is the one of [`crate::domain::node::text_of_props`]; Postgres finds it itself, so
    /// that no properties that Rust cannot read spoil the batch.
    ///
    /// A job whose node is gone, or belongs to another tenant, has no row in the answer. A row
    /// that is `ready` with a vector is marked only for a refresh; otherwise it is answered as it
    /// is, and the caller finds out by [`TextRow::source_hash`] whether the job is done.
    pub async fn begin(&self, jobs: &[BeginJob]) -> Result<Vec<TextRow>, StoreError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let rows = match self.dialect() {
            Dialect::Postgres => self.begin_postgres(jobs).await?,
            Dialect::Sqlite => {
                let transaction = self.begin_write().await?;
                let rows = begin_sqlite(&transaction, jobs).await?;
                transaction.commit().await?;
                rows
            }
        };
        Ok(rows.into_iter().filter_map(WorkRow::into_text_row).collect())
    }

    /// Writes how the nodes left `processing` without a vector. A row that is no longer about the
    /// [`Outcome::subject`] keeps what it has. Answers the nodes that were changed.
    pub async fn record(&self, outcomes: &[Outcome]) -> Result<Vec<Uuid>, StoreError> {
        if outcomes.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes: Vec<&Outcome> = outcomes.iter().collect();
        match self.dialect() {
            Dialect::Postgres => record(&self.writer, &outcomes).await,
            Dialect::Sqlite => {
                let transaction = self.begin_write().await?;
                let changed = record(&transaction, &outcomes).await?;
                transaction.commit().await?;
                Ok(changed)
            }
        }
    }

    /// Puts nodes that are `processing` back to `queued`: their lease was lost or handed back.
    pub async fn return_to_queue(&self, ids: &[Uuid]) -> Result<(), StoreError> {
        let dialect = self.dialect();
        Entity::update_many()
            .col_expr(Column::EmbeddingStatus, NodeStatus::Queued.as_str().into())
            .col_expr(Column::UpdatedAt, sea_orm::sea_query::Expr::cust(dialect.now()))
            .filter(dialect.id_in(ids))
            .filter(Column::EmbeddingStatus.eq(NodeStatus::Processing.as_str()))
            .exec(&self.writer)
            .await?;
        Ok(())
    }

    async fn begin_postgres(&self, jobs: &[BeginJob]) -> Result<Vec<WorkRow>, StoreError> {
        // The lock makes `old` see the row as the update finds it, not as the snapshot has it.
        // Locking in the order of ids keeps two workers from waiting for each other.
        // That a row is `processing` need not survive a crash of the server: it would be `queued`,
        // and its job be claimed again. So the commit waits for no disk; the vector's does.
        let sql = format!(
            "WITH relaxed AS MATERIALIZED ( \
               SELECT set_config('synchronous_commit', 'off', true) \
             ), old AS MATERIALIZED ( \
               SELECT n.id, n.tenant_id, {text} AS text, n.payload_ref, n.embedding_status, \
                      n.embedding_source_hash, n.embedding IS NOT NULL AS has_embedding, \
                      v.refresh \
               FROM nodes AS n JOIN {rows} \
                 ON n.id = v.id AND coalesce(n.tenant_id, $2) = v.tenant_id \
               ORDER BY n.id FOR UPDATE OF n \
             ), marked AS ( \
               UPDATE nodes AS n SET embedding_status = 'processing', updated_at = now() \
               FROM old WHERE n.id = old.id \
                 AND (old.refresh OR NOT (old.embedding_status = 'ready' AND old.has_embedding)) \
             ) SELECT old.* FROM old, relaxed",
            text = postgres_text("n.props"),
            rows = Dialect::Postgres.rows(&[
                ("id", Kind::Uuid),
                ("tenant_id", Kind::Text),
                ("refresh", Kind::Bool),
            ]),
        );
        let default_tenant = TenantId::default();
        let values = [to_json(&merged(jobs)).into(), default_tenant.as_str().into()];
        let statement =
            Statement::from_sql_and_values(self.writer.get_database_backend(), sql, values);
        Ok(WorkRow::find_by_statement(statement).all(&self.writer).await?)
    }
}

/// The transaction holds the write lock of the file, so that nothing changes in between.
async fn begin_sqlite(
    transaction: &impl ConnectionTrait,
    jobs: &[BeginJob],
) -> Result<Vec<WorkRow>, StoreError> {
    let jobs: HashMap<(Uuid, &str), bool> =
        merged(jobs).into_iter().map(|job| ((job.id, job.tenant_id), job.refresh)).collect();
    let ids: Vec<Uuid> = jobs.keys().map(|(id, _)| *id).collect();
    let mut rows: Vec<WorkRow> = Entity::find()
        .select_only()
        .columns([
            Column::Id,
            Column::TenantId,
            Column::PayloadRef,
            Column::EmbeddingStatus,
            Column::EmbeddingSourceHash,
        ])
        .column_as(Column::Props, "text")
        .expr_as(has_embedding(), "has_embedding")
        .filter(Dialect::Sqlite.id_in(&ids))
        .into_model()
        .all(transaction)
        .await?;
    let refresh_of = |row: &WorkRow| {
        let tenant = tenant_of(row.tenant_id.clone())?;
        jobs.get(&(row.id, tenant.as_str())).copied()
    };
    rows.retain(|row| refresh_of(row).is_some());
    for row in &mut rows {
        row.text = row.text.as_deref().and_then(sqlite_text);
    }
    let marked: Vec<Uuid> = rows
        .iter()
        .filter(|row| {
            let done = status_of(&row.embedding_status) == NodeStatus::Ready && row.has_embedding;
            refresh_of(row) == Some(true) || !done
        })
        .map(|row| row.id)
        .collect();
    Entity::update_many()
        .col_expr(Column::EmbeddingStatus, NodeStatus::Processing.as_str().into())
        .col_expr(Column::UpdatedAt, sea_orm::sea_query::Expr::cust(Dialect::Sqlite.now()))
        .filter(Dialect::Sqlite.id_in(&marked))
        .exec(transaction)
        .await?;
    Ok(rows)
}

#[derive(Serialize)]
struct JobRow<'a> {
    id: Uuid,
    tenant_id: &'a str,
    refresh: bool,
}

/// One entry a node, also when several jobs name it; a refresh among them wins.
fn merged(jobs: &[BeginJob]) -> Vec<JobRow<'_>> {
    let mut merged: HashMap<(Uuid, &str), bool> = HashMap::new();
    for job in jobs {
        *merged.entry((job.id, job.tenant_id.as_str())).or_default() |= job.refresh;
    }
    merged.into_iter().map(|((id, tenant_id), refresh)| JobRow { id, tenant_id, refresh }).collect()
}

#[derive(FromQueryResult)]
struct WorkRow {
    id: Uuid,
    tenant_id: Option<String>,
    text: Option<String>,
    payload_ref: Option<String>,
    embedding_status: String,
    embedding_source_hash: Option<String>,
    has_embedding: bool,
}

impl WorkRow {
    /// None for a tenant that no job can have.
    fn into_text_row(self) -> Option<TextRow> {
        Some(TextRow {
            id: self.id,
            tenant_id: tenant_of(self.tenant_id)?,
            text: self.text,
            payload_ref: self.payload_ref,
            status: status_of(&self.embedding_status),
            source_hash: self.embedding_source_hash,
            has_embedding: self.has_embedding,
        })
    }
}

#[derive(Serialize)]
struct OutcomeRow {
    id: Uuid,
    status: &'static str,
    error: String,
    attempts: i32,
    unread: bool,
    /// Whether `text_hash` must be that of the row, which is null for a row without a text.
    by_text: bool,
    text_hash: Option<String>,
}

impl OutcomeRow {
    fn new(outcome: &Outcome, dialect: Dialect) -> Self {
        Self {
            id: outcome.id,
            status: outcome.status.as_str(),
            // Postgres has no NUL in texts, and would refuse the whole batch for one.
            error: outcome.error.chars().filter(|&c| c != '\0').take(ERROR_MAX_CHARS).collect(),
            attempts: i32::try_from(outcome.attempts).unwrap_or(i32::MAX),
            unread: outcome.subject == Subject::Unread,
            by_text: matches!(outcome.subject, Subject::Text(_)),
            text_hash: match outcome.subject {
                Subject::Text(hash) => hash.map(|hash| dialect.bytes(&hash)),
                Subject::Unread | Subject::Processing => None,
            },
        }
    }
}

/// See [`Store::record`]. In SQLite `db` must be a transaction that holds the write lock.
pub(super) async fn record(
    db: &impl ConnectionTrait,
    outcomes: &[&Outcome],
) -> Result<Vec<Uuid>, StoreError> {
    let backend = db.get_database_backend();
    let dialect = Dialect::of(backend);
    let (has_its_text, outcomes) = match dialect {
        Dialect::Postgres => {
            let hash = postgres_text_hash("nodes.props");
            (format!("NOT v.by_text OR {hash} IS NOT DISTINCT FROM v.text_hash"), outcomes.to_vec())
        }
        Dialect::Sqlite => ("true".to_owned(), with_their_texts(db, outcomes).await?),
    };
    if outcomes.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<OutcomeRow> =
        outcomes.into_iter().map(|outcome| OutcomeRow::new(outcome, dialect)).collect();
    let sql = format!(
        "UPDATE nodes SET embedding_status = v.status, embedding_error = v.error, \
         embedding_attempts = v.attempts, updated_at = {now} \
         FROM {rows} WHERE nodes.id = v.id AND (nodes.embedding_status = 'processing' \
           OR nodes.embedding_status = 'queued' AND v.unread) AND ({has_its_text}) \
         RETURNING nodes.id",
        now = dialect.now(),
        rows = dialect.rows(&[
            ("id", Kind::Uuid),
            ("status", Kind::Text),
            ("error", Kind::Text),
            ("attempts", Kind::Int),
            ("unread", Kind::Bool),
            ("by_text", Kind::Bool),
            ("text_hash", Kind::Bytes),
        ]),
    );
    let values = [to_json(&rows).into()];
    let changed = db.query_all_raw(Statement::from_sql_and_values(backend, sql, values)).await?;
    Ok(changed.iter().map(|row| row.try_get("", "id")).collect::<Result<_, _>>()?)
}

/// The outcomes whose rows hold the text that they are about; SQLite has no SHA-256.
async fn with_their_texts<'a>(
    transaction: &impl ConnectionTrait,
    outcomes: &[&'a Outcome],
) -> Result<Vec<&'a Outcome>, StoreError> {
    let by_text = |outcome: &&&Outcome| matches!(outcome.subject, Subject::Text(_));
    let ids: Vec<Uuid> = outcomes.iter().filter(by_text).map(|outcome| outcome.id).collect();
    if ids.is_empty() {
        return Ok(outcomes.to_vec());
    }
    let rows: Vec<(Uuid, Option<String>)> = Entity::find()
        .select_only()
        .columns([Column::Id, Column::Props])
        .filter(Dialect::Sqlite.id_in(&ids))
        .into_tuple()
        .all(transaction)
        .await?;
    let hashes: HashMap<Uuid, Option<TextHash>> = rows
        .into_iter()
        .map(|(id, props)| (id, props.as_deref().and_then(sqlite_text_hash)))
        .collect();
    let is_of_its_row = |outcome: &&Outcome| match outcome.subject {
        Subject::Unread | Subject::Processing => true,
        Subject::Text(hash) => hashes.get(&outcome.id) == Some(&hash),
    };
    Ok(outcomes.iter().copied().filter(is_of_its_row).collect())
}
