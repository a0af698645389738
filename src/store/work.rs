//! What a worker does to the rows of the jobs that it claimed.

use std::collections::{HashMap, HashSet};

use entity::node::{Column, Entity};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbBackend, EntityTrait, FromQueryResult, QueryFilter,
    QuerySelect, Statement,
    sea_query::{Expr, ExprTrait},
};
use serde::Serialize;
use uuid::Uuid;

use super::{
    BeginJob, Store, StoreError, TextRow, TextRule,
    dialect::{Dialect, Kind, has_embedding, status_of, tenant_of, to_json},
    source::Made,
};
use crate::domain::{NodeStatus, TenantId};

impl Store {
    /// Reads the rows of claimed jobs and marks them `processing`, at once.
    ///
    /// The text is that of the store's [`super::TextRule`]; Postgres finds it itself, so that no
    /// properties that Rust cannot read spoil the batch.
    ///
    /// A job whose node is gone, belongs to another tenant, or is locked by another session of
    /// Postgres, has no row in the answer; [`Store::present`] tells which. A row that is `ready`
    /// with a vector is marked only for a refresh; otherwise it is answered as it is, and the caller
    /// finds out by [`TextRow::source_hash`] whether the job is done.
    ///
    /// Texts beyond `most_bytes` together are left ([`TextRow::is_left`]), but the first.
    pub async fn begin(
        &self,
        jobs: &[BeginJob],
        most_bytes: usize,
    ) -> Result<Vec<TextRow>, StoreError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let rows = match self.dialect() {
            Dialect::Postgres => self.begin_postgres(jobs, most_bytes).await?,
            Dialect::Sqlite => {
                let transaction = self.begin_write().await?;
                let rows = begin_sqlite(&transaction, jobs, most_bytes).await?;
                transaction.commit().await?;
                rows
            }
        };
        let (dialect, rule) = (self.dialect(), self.rule);
        Ok(rows.into_iter().filter_map(|row| row.into_text_row(dialect, rule)).collect())
    }

    /// Of these jobs, the nodes whose rows are there, whoever holds them.
    pub async fn present(&self, jobs: &[BeginJob]) -> Result<HashSet<Uuid>, StoreError> {
        if jobs.is_empty() {
            return Ok(HashSet::new());
        }
        let sql = format!(
            "SELECT nodes.id FROM {rows} JOIN nodes \
               ON nodes.id = v.id AND coalesce(nodes.tenant_id, $2) = v.tenant_id",
            rows = self.dialect().rows(&JOB_ROW),
        );
        // With the rights of now: what it does not find must be gone.
        let rows = self.writer.query_anew(self.jobs_statement(sql, jobs)).await?;
        Ok(rows.iter().map(|row| row.try_get("", "id")).collect::<Result<_, _>>()?)
    }

    /// Puts nodes that are `processing` back to `queued`, with the attempt that had begun not
    /// counted: their lease was lost or handed back. A row that another session of Postgres holds
    /// stays as it is.
    pub async fn return_to_queue(&self, ids: &[Uuid]) -> Result<(), StoreError> {
        let dialect = self.dialect();
        Entity::update_many()
            .col_expr(Column::EmbeddingStatus, NodeStatus::Queued.as_str().into())
            .col_expr(
                Column::EmbeddingAttempts,
                Expr::cust(
                    "CASE WHEN embedding_attempts > 0 THEN embedding_attempts - 1 ELSE 0 END",
                ),
            )
            .col_expr(Column::UpdatedAt, Expr::cust(dialect.now()))
            .filter(dialect.id_in_unlocked(ids))
            .filter(Column::EmbeddingStatus.eq(NodeStatus::Processing.as_str()))
            .exec(&self.writer)
            .await?;
        Ok(())
    }

    async fn begin_postgres(
        &self,
        jobs: &[BeginJob],
        most_bytes: usize,
    ) -> Result<Vec<WorkRow>, StoreError> {
        // The lock makes `old` see the row as the update finds it, not as the snapshot has it. A row
        // that another session holds is passed over, so that nobody waits for it, and no two
        // sessions for each other.
        // That a row is `processing` need not survive a crash of the server: it would be `queued`,
        // and its job be claimed again. So the commit waits for no disk; the vector's does.
        let sql = format!(
            "WITH relaxed AS MATERIALIZED ( \
               SELECT set_config('synchronous_commit', 'off', true) \
             ), v AS MATERIALIZED (SELECT v.* FROM {rows}), old AS MATERIALIZED ( \
               SELECT n.id, n.tenant_id, {columns}, n.payload_ref, n.embedding_status, \
                      n.embedding_source_hash, n.embedding IS NOT NULL AS has_embedding, \
                      v.refresh, v.attempts \
               FROM v JOIN nodes AS n \
                 ON n.id = v.id AND coalesce(n.tenant_id, $2) = v.tenant_id \
               FOR NO KEY UPDATE OF n SKIP LOCKED \
             ), marked AS ( \
               UPDATE nodes AS n SET embedding_status = 'processing', \
                 embedding_attempts = old.attempts, updated_at = now() \
               FROM old WHERE n.id = old.id \
                 AND (old.refresh OR NOT (old.embedding_status = 'ready' AND old.has_embedding)) \
             ), sized AS ( \
               SELECT old.*, row_number() OVER () > 1 AND sum(coalesce(octet_length(text), 0)) \
                        OVER (ROWS UNBOUNDED PRECEDING) > {most_bytes} AS is_left \
               FROM old \
             ) SELECT id, tenant_id, CASE WHEN NOT is_left THEN text END AS text, prefix, text_hash, \
                      payload_ref, embedding_status, embedding_source_hash, has_embedding, is_left \
               FROM sized, relaxed",
            columns = self.rule.postgres_columns("n"),
            rows = Dialect::Postgres.rows(&JOB_ROW),
        );
        let statement = self.jobs_statement(sql, jobs);
        Ok(WorkRow::find_by_statement(statement).all(&self.writer).await?)
    }

    /// `$1` are the jobs as [`JOB_ROW`] has them, `$2` is the default tenant.
    fn jobs_statement(&self, sql: String, jobs: &[BeginJob]) -> Statement {
        let default_tenant = TenantId::default();
        let values = [to_json(&merged(jobs)).into(), default_tenant.as_str().into()];
        Statement::from_sql_and_values(self.writer.get_database_backend(), sql, values)
    }
}

/// The transaction holds the write lock of the file, so that nothing changes in between.
async fn begin_sqlite(
    transaction: &impl ConnectionTrait,
    jobs: &[BeginJob],
    most_bytes: usize,
) -> Result<Vec<WorkRow>, StoreError> {
    let jobs = merged(jobs);
    let ids: Vec<Uuid> = jobs.iter().map(|job| job.id).collect();
    let jobs: HashMap<(Uuid, TenantId), &JobRow<'_>> = jobs
        .iter()
        .filter_map(|job| Some(((job.id, TenantId::new(job.tenant_id).ok()?), job)))
        .collect();
    let left = left_in_sqlite(transaction, &ids, most_bytes).await?;
    let is_read = Dialect::Sqlite.id_in(&left).not();
    let text = Expr::case(is_read, Expr::col(Column::Props));
    // Properties and classes come where Postgres has what it made of them.
    let mut rows: Vec<WorkRow> = Entity::find()
        .select_only()
        .columns([
            Column::Id,
            Column::TenantId,
            Column::PayloadRef,
            Column::EmbeddingStatus,
            Column::EmbeddingSourceHash,
        ])
        .expr_as(text, "text")
        .expr_as(Expr::cust("classes"), "prefix")
        .expr_as(Expr::cust("NULL"), "text_hash")
        .expr_as(has_embedding(), "has_embedding")
        .expr_as(Expr::cust("FALSE"), "is_left")
        .filter(Dialect::Sqlite.id_in(&ids))
        .into_model()
        .all(transaction)
        .await?;
    let job_of = |row: &WorkRow| jobs.get(&(row.id, tenant_of(row.tenant_id.clone())?)).copied();
    rows.retain(|row| job_of(row).is_some());
    let left: HashSet<Uuid> = left.into_iter().collect();
    rows.iter_mut().for_each(|row| row.is_left = left.contains(&row.id));
    let is_done =
        |row: &WorkRow| status_of(&row.embedding_status) == NodeStatus::Ready && row.has_embedding;
    let marked: Vec<&JobRow<'_>> = rows
        .iter()
        .filter_map(|row| job_of(row).filter(|job| job.refresh || !is_done(row)))
        .collect();
    let sql = format!(
        "UPDATE nodes SET embedding_status = 'processing', embedding_attempts = v.attempts, \
         updated_at = {now} FROM {rows} WHERE nodes.id = v.id",
        now = Dialect::Sqlite.now(),
        rows = Dialect::Sqlite.rows(&JOB_ROW),
    );
    let values = [to_json(&marked).into()];
    let statement = Statement::from_sql_and_values(DbBackend::Sqlite, sql, values);
    transaction.execute_raw(statement).await?;
    Ok(rows)
}

/// Of these nodes, those whose properties are too much beside those of the ones before. SQLite knows
/// how long they are without reading them.
async fn left_in_sqlite(
    transaction: &impl ConnectionTrait,
    ids: &[Uuid],
    most_bytes: usize,
) -> Result<Vec<Uuid>, StoreError> {
    let lengths: Vec<(Uuid, i64)> = Entity::find()
        .select_only()
        .column(Column::Id)
        .expr_as(Expr::cust("coalesce(octet_length(props), 0)"), "bytes")
        .filter(Dialect::Sqlite.id_in(ids))
        .into_tuple()
        .all(transaction)
        .await?;
    let mut bytes = 0_usize;
    let mut left = Vec::new();
    for (place, (id, length)) in lengths.into_iter().enumerate() {
        bytes = bytes.saturating_add(usize::try_from(length).unwrap_or(0));
        if place > 0 && bytes > most_bytes {
            left.push(id);
        }
    }
    Ok(left)
}

#[derive(Serialize)]
struct JobRow<'a> {
    id: Uuid,
    tenant_id: &'a str,
    refresh: bool,
    /// Of the row from now on: the failed ones, and the one that begins.
    attempts: i32,
}

const JOB_ROW: [(&str, Kind); 4] = [
    ("id", Kind::Uuid),
    ("tenant_id", Kind::Text),
    ("refresh", Kind::Bool),
    ("attempts", Kind::Int),
];

/// One entry a node, also when several jobs name it; a refresh among them wins.
fn merged(jobs: &[BeginJob]) -> Vec<JobRow<'_>> {
    let mut merged: HashMap<(Uuid, &str), JobRow<'_>> = HashMap::new();
    for job in jobs {
        let attempts = i32::try_from(job.failed_attempts).unwrap_or(i32::MAX).saturating_add(1);
        let (id, tenant_id) = (job.id, job.tenant_id.as_str());
        let row = merged.entry((id, tenant_id)).or_insert(JobRow {
            id,
            tenant_id,
            refresh: false,
            attempts,
        });
        row.refresh |= job.refresh;
        row.attempts = Ord::max(row.attempts, attempts);
    }
    merged.into_values().collect()
}

#[derive(FromQueryResult)]
struct WorkRow {
    id: Uuid,
    tenant_id: Option<String>,
    /// In SQLite the properties.
    text: Option<String>,
    /// What the prefix is made of; in SQLite the classes.
    prefix: Option<String>,
    text_hash: Option<Vec<u8>>,
    payload_ref: Option<String>,
    embedding_status: String,
    embedding_source_hash: Option<String>,
    has_embedding: bool,
    is_left: bool,
}

impl WorkRow {
    /// None for a tenant that no job can have.
    fn into_text_row(self, dialect: Dialect, rule: TextRule) -> Option<TextRow> {
        let made = match dialect {
            Dialect::Postgres => {
                Made::of_postgres(self.text, self.prefix.as_deref(), self.text_hash)
            }
            Dialect::Sqlite => rule.of_sqlite(self.text.as_deref(), self.prefix.as_deref()),
        };
        Some(TextRow {
            id: self.id,
            tenant_id: tenant_of(self.tenant_id)?,
            text: made.text,
            text_hash: made.text_hash,
            payload_ref: self.payload_ref,
            status: status_of(&self.embedding_status),
            source_hash: self.embedding_source_hash,
            has_embedding: self.has_embedding,
            is_left: self.is_left,
        })
    }
}
