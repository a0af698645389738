//! An operator's requeue: what it finds, and what it mends.

use std::collections::HashMap;

use entity::node::{Column, Entity};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QueryTrait, Statement,
    sea_query::{Expr, ExprTrait, LockBehavior, LockType, Query},
};
use serde::Serialize;
use uuid::Uuid;

use super::{
    Backfilled, Candidate, Cursor, RequeueFilter, RequeuePage, Store, StoreError,
    branch::{Walk, Wants},
    dialect::{Dialect, Kind, has_current_embedding, in_scope, to_json},
    repair::CandidateRow,
};
use crate::domain::{NodeStatus, TenantScope};

/// Rows that one statement of a backfill changes.
const STEP: u64 = 1000;
/// Statements of one backfill.
const STEPS: usize = 5;

impl Store {
    /// The next nodes that an operator wants enqueued, oldest first; of named ones, all.
    ///
    /// # Errors
    /// [`StoreError::Cursor`] if the filter begins at a place that this database does not know.
    pub async fn requeue_page(&self, filter: &RequeueFilter) -> Result<RequeuePage, StoreError> {
        if let Some(ids) = &filter.node_ids {
            let nodes = self.candidates(filter, ids).await?;
            let nodes = nodes.into_iter().take(filter.limit as usize);
            let nodes = nodes.map(|node| (node, Cursor::default())).collect();
            return Ok(RequeuePage { nodes, next: None });
        }
        let wants = match filter.only_missing_embedding {
            true => Wants::NoCurrent,
            false => Wants::Any,
        };
        let walk = Walk { scope: &filter.scope, status: filter.status, wants };
        let (keys, next) = self.walk(&walk, &filter.from, filter.limit).await?;
        let ids: Vec<Uuid> = keys.iter().map(|key| key.id).collect();
        let found = self.candidates(filter, &ids).await?;
        let mut found: HashMap<Uuid, Candidate> =
            found.into_iter().map(|node| (node.id, node)).collect();
        let nodes = keys.into_iter().filter_map(|key| {
            let node = found.remove(&key.id)?;
            Some((node, Cursor { after: Some(key.position), skip: 0 }))
        });
        Ok(RequeuePage { nodes: nodes.collect(), next })
    }

    /// The nodes of [`Store::requeue_page`] alone.
    pub async fn requeue_candidates(
        &self,
        filter: &RequeueFilter,
    ) -> Result<Vec<Candidate>, StoreError> {
        let page = self.requeue_page(filter).await?;
        Ok(page.nodes.into_iter().map(|(node, _)| node).collect())
    }

    /// Those of the nodes that the filter wants and whose tenant a job can carry.
    async fn candidates(
        &self,
        filter: &RequeueFilter,
        ids: &[Uuid],
    ) -> Result<Vec<Candidate>, StoreError> {
        let mut wanted = Entity::find()
            .filter(self.dialect().id_in(ids))
            .filter(in_scope(&filter.scope))
            .filter(self.dialect().tenant_is_valid());
        if let Some(status) = filter.status {
            wanted = wanted.filter(Column::EmbeddingStatus.eq(status.as_str()));
        }
        if filter.only_missing_embedding {
            wanted = wanted.filter(has_current_embedding().not());
        }
        let wanted = wanted.order_by_asc(Column::CreatedAt).order_by_asc(Column::Id);
        let rows: Vec<CandidateRow> =
            self.select_candidates(wanted).into_model().all(&self.operators).await?;
        Ok(rows.into_iter().filter_map(CandidateRow::into_candidate).collect())
    }

    /// Marks nodes that have a vector of their current text, and are `queued` or `failed` all the
    /// same, as `ready`; some thousands at most. A row that another session of Postgres holds is
    /// left.
    pub async fn backfill_ready(
        &self,
        scope: &TenantScope,
        node_ids: Option<&[Uuid]>,
    ) -> Result<Backfilled, StoreError> {
        let dialect = self.dialect();
        let mut wanted = Query::select()
            .column(Column::Id)
            .from(Entity)
            // Spelled out, because a parameter would hide the partial index from the planner.
            .and_where(has_current_embedding())
            .and_where(Expr::cust("embedding_status IN ('queued', 'failed')"))
            .cond_where(in_scope(scope))
            .limit(STEP)
            .to_owned();
        if let Some(ids) = node_ids {
            wanted.and_where(dialect.id_in(ids));
        }
        wanted.lock_with_behavior(LockType::NoKeyUpdate, LockBehavior::SkipLocked);
        let update = Entity::update_many()
            .col_expr(Column::EmbeddingStatus, NodeStatus::Ready.as_str().into())
            .col_expr(Column::EmbeddingError, Expr::cust("NULL"))
            .col_expr(Column::UpdatedAt, Expr::cust(dialect.now()))
            .filter(dialect.id_in_rows(wanted))
            .into_query();
        let mut nodes = 0;
        for _ in 0..STEPS {
            let step = self.operators_writer.execute(&update).await?.rows_affected();
            nodes += step;
            // A trigger may keep rows as they are, which are wanted again then.
            if step < STEP {
                return Ok(Backfilled { nodes, is_all: true });
            }
        }
        Ok(Backfilled { nodes, is_all: false })
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
        let backend = self.operators_writer.get_database_backend();
        let marked = self
            .operators_writer
            .query_all_raw(Statement::from_sql_and_values(backend, sql, values))
            .await?;
        Ok(marked.iter().map(|row| row.try_get("", "id")).collect::<Result<_, _>>()?)
    }
}
