//! What the sweep and an operator's requeue look for, and what they mend.

use entity::node::{Column, Entity};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder,
    QuerySelect, Select, Statement, UpdateMany,
    sea_query::{Expr, ExprTrait, LockBehavior, LockType},
};
use serde::Serialize;
use uuid::Uuid;

use super::{
    Candidate, OpenPage, RequeueFilter, Store, StoreError,
    dialect::{
        Dialect, Kind, STALE, has_current_embedding, in_scope, status_of, tenant_of, to_json,
    },
};
use crate::domain::{NodeStatus, TenantId, TenantScope};

/// Rows that one transaction of a repair changes.
const STEP: u64 = 1000;

impl Store {
    /// The nodes that an operator wants enqueued, oldest first.
    pub async fn requeue_candidates(
        &self,
        filter: &RequeueFilter,
    ) -> Result<Vec<Candidate>, StoreError> {
        let mut wanted = Entity::find().filter(in_scope(&filter.scope));
        if let Some(ids) = &filter.node_ids {
            wanted = wanted.filter(self.dialect().id_in(ids));
        }
        if let Some(status) = filter.status {
            wanted = wanted.filter(Column::EmbeddingStatus.eq(status.as_str()));
        }
        if filter.only_missing_embedding {
            wanted = wanted.filter(has_current_embedding().not());
        }
        let wanted =
            wanted.order_by_asc(Column::CreatedAt).order_by_asc(Column::Id).limit(filter.limit);
        self.candidates(wanted).await
    }

    /// Looks at `limit` open rows, in the order of their ids from behind `after`, and answers those
    /// that nothing changed for `older_than_seconds` and whose tenant a job can carry.
    pub async fn open_nodes(
        &self,
        after: Option<Uuid>,
        limit: u64,
        older_than_seconds: f64,
    ) -> Result<OpenPage, StoreError> {
        let wanted = Entity::find()
            .filter(self.dialect().next_open(after, limit))
            .order_by_asc(Column::Id)
            .limit(limit);
        let rows: Vec<OpenRow> = self
            .select_candidates(wanted)
            .expr_as(self.dialect().unchanged_for(older_than_seconds), "is_settled")
            .into_model()
            .all(&self.db)
            .await?;
        let next = rows.last().map(|row| row.node.id).filter(|_| rows.len() as u64 == limit);
        let nodes = rows
            .into_iter()
            .filter(|row| row.is_settled)
            .filter_map(|row| row.node.into_candidate());
        Ok(OpenPage { nodes: nodes.collect(), next })
    }

    /// Of these nodes, those that are `queued` or `processing`.
    pub async fn open_among(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, StoreError> {
        let open = [NodeStatus::Queued.as_str(), NodeStatus::Processing.as_str()];
        Ok(Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(self.dialect().id_in(ids))
            .filter(Column::EmbeddingStatus.is_in(open))
            .into_tuple()
            .all(&self.db)
            .await?)
    }

    /// Puts nodes to `queued` that are `ready` with the vector of an older text: only another
    /// program, which does not look whether the text has changed, leaves such rows. Answers how
    /// many there were.
    pub async fn reopen_overwritten(&self) -> Result<u64, StoreError> {
        let wanted = Entity::find()
            // Spelled out, because a parameter would hide the partial index from the planner.
            .filter(Expr::cust(format!("embedding_source_hash = '{STALE}'")))
            .filter(Column::EmbeddingStatus.eq(NodeStatus::Ready.as_str()));
        let update = Entity::update_many()
            .col_expr(Column::EmbeddingStatus, NodeStatus::Queued.as_str().into())
            .col_expr(Column::UpdatedAt, Expr::cust(self.dialect().now()));
        self.update_in_steps(wanted, update).await
    }

    /// Marks nodes that have a vector of their current text, and are `queued` or `failed` all the
    /// same, as `ready`; answers how many. A row that another session of Postgres holds is left.
    pub async fn backfill_ready(
        &self,
        scope: &TenantScope,
        node_ids: Option<&[Uuid]>,
    ) -> Result<u64, StoreError> {
        let dialect = self.dialect();
        let unready = [NodeStatus::Queued.as_str(), NodeStatus::Failed.as_str()];
        let mut wanted = Entity::find()
            .filter(in_scope(scope))
            .filter(has_current_embedding())
            .filter(Column::EmbeddingStatus.is_in(unready));
        if let Some(ids) = node_ids {
            wanted = wanted.filter(dialect.id_in(ids));
        }
        let update = Entity::update_many()
            .col_expr(Column::EmbeddingStatus, NodeStatus::Ready.as_str().into())
            .col_expr(Column::EmbeddingError, Expr::cust("NULL"))
            .col_expr(Column::UpdatedAt, Expr::cust(dialect.now()));
        self.update_in_steps(wanted, update).await
    }

    /// Updates the rows that are wanted, which they must not be any more afterwards, some in each
    /// transaction, and passes over those that another session holds.
    async fn update_in_steps(
        &self,
        wanted: Select<Entity>,
        update: UpdateMany<Entity>,
    ) -> Result<u64, StoreError> {
        let wanted = wanted
            .select_only()
            .column(Column::Id)
            .limit(STEP)
            .lock_with_behavior(LockType::NoKeyUpdate, LockBehavior::SkipLocked);
        let change_some = || async {
            let transaction = self.begin_write().await?;
            let ids: Vec<Uuid> = wanted.clone().into_tuple().all(&transaction).await?;
            let changed = match ids.is_empty() {
                true => 0,
                false => {
                    let step = update.clone().filter(self.dialect().id_in(&ids));
                    step.exec(&transaction).await?.rows_affected
                }
            };
            transaction.commit().await?;
            Ok(changed)
        };
        let mut updated = 0;
        loop {
            let step = self.repeated(change_some).await?;
            updated += step;
            // A trigger may keep rows as they are, which are wanted again then.
            if step < STEP {
                return Ok(updated);
            }
        }
    }

    /// Puts nodes to `queued` with attempts counted from 0 again, each only if nothing changed it
    /// since it was read; answers those that were.
    pub async fn mark_queued(&self, nodes: &[Candidate]) -> Result<Vec<Uuid>, StoreError> {
        #[derive(Serialize)]
        struct Row<'a> {
            id: Uuid,
            changed: Option<&'a str>,
        }
        let rows: Vec<Row<'_>> = nodes
            .iter()
            .map(|node| Row { id: node.id, changed: node.changed.as_deref() })
            .collect();
        let dialect = self.dialect();
        let rows_of = dialect.rows(&[("id", Kind::Uuid), ("changed", Kind::Text)]);
        let (with, source) = match dialect {
            // A row that another session holds is left to whoever does the job.
            Dialect::Postgres => (
                format!(
                    "WITH given AS MATERIALIZED (SELECT v.* FROM {rows_of}), \
                     v AS MATERIALIZED ( \
                       SELECT given.* FROM given JOIN nodes AS n ON n.id = given.id \
                       FOR NO KEY UPDATE OF n SKIP LOCKED) "
                ),
                "v".to_owned(),
            ),
            Dialect::Sqlite => (String::new(), rows_of),
        };
        let sql = format!(
            "{with}UPDATE nodes SET embedding_status = 'queued', embedding_attempts = 0, \
             embedding_error = NULL, updated_at = {now} \
             FROM {source} WHERE nodes.id = v.id AND {changed} IS NOT DISTINCT FROM v.changed \
             RETURNING nodes.id",
            now = dialect.now(),
            changed = dialect.changed(),
        );
        let values = [to_json(&rows).into()];
        let backend = self.writer.get_database_backend();
        let marked =
            self.writer.query_all_raw(Statement::from_sql_and_values(backend, sql, values)).await?;
        Ok(marked.iter().map(|row| row.try_get("", "id")).collect::<Result<_, _>>()?)
    }

    /// The owners of those of the nodes that exist.
    pub async fn tenants_of(&self, ids: &[Uuid]) -> Result<Vec<(Uuid, TenantId)>, StoreError> {
        let rows: Vec<(Uuid, Option<String>)> = Entity::find()
            .select_only()
            .columns([Column::Id, Column::TenantId])
            .filter(self.dialect().id_in(ids))
            .into_tuple()
            .all(&self.db)
            .await?;
        Ok(rows
            .into_iter()
            .filter_map(|(id, tenant)| tenant_of(tenant).map(|tenant| (id, tenant)))
            .collect())
    }

    /// Leaves out nodes whose tenant no job can carry, before the limit is counted.
    async fn candidates(&self, wanted: Select<Entity>) -> Result<Vec<Candidate>, StoreError> {
        let wanted = wanted.filter(self.dialect().tenant_is_valid());
        let rows: Vec<CandidateRow> =
            self.select_candidates(wanted).into_model().all(&self.db).await?;
        Ok(rows.into_iter().filter_map(CandidateRow::into_candidate).collect())
    }

    /// What a [`CandidateRow`] is read from.
    fn select_candidates(&self, wanted: Select<Entity>) -> Select<Entity> {
        wanted
            .select_only()
            .columns([Column::Id, Column::TenantId, Column::EmbeddingStatus])
            .expr_as(has_current_embedding(), "has_current_embedding")
            .expr_as(Expr::cust(self.dialect().changed()), "changed")
    }
}

#[derive(FromQueryResult)]
struct OpenRow {
    #[sea_orm(nested)]
    node: CandidateRow,
    is_settled: bool,
}

#[derive(FromQueryResult)]
struct CandidateRow {
    id: Uuid,
    tenant_id: Option<String>,
    embedding_status: String,
    has_current_embedding: bool,
    changed: Option<String>,
}

impl CandidateRow {
    fn into_candidate(self) -> Option<Candidate> {
        Some(Candidate {
            id: self.id,
            tenant_id: tenant_of(self.tenant_id)?,
            status: status_of(&self.embedding_status),
            has_current_embedding: self.has_current_embedding,
            changed: self.changed,
        })
    }
}
