//! An operator's requeue: what it finds, and what it mends.

use std::collections::HashMap;

use entity::node::{Column, Entity};
use sea_orm::{
    ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, Statement,
    sea_query::{Expr, ExprTrait},
};
use serde::Serialize;
use uuid::Uuid;

use super::{
    Backfilled, Candidate, Cursor, RequeueFilter, RequeuePage, Store, StoreError,
    branch::{Owner, Values, Walk, Wants, owners},
    dialect::{Dialect, Kind, STALE, has_current_embedding, to_json},
    repair::CandidateRow,
};
use crate::domain::TenantScope;

/// Rows that one statement of a backfill changes.
const STEP: u64 = 1000;
/// Rows that one backfill changes, or a step more.
const BACKFILL: u64 = 5000;

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
        // By their ids alone: nothing else here may look like something that another index is good for.
        let mut wanted = Entity::find()
            .filter(self.dialect().id_in(ids))
            .filter(self.dialect().tenant_is_valid());
        if let Some(status) = filter.status {
            wanted = wanted.filter(Expr::cust("embedding_status || ''").eq(status.as_str()));
        }
        if filter.only_missing_embedding {
            wanted = wanted.filter(has_current_embedding().not());
        }
        let wanted = wanted.order_by_asc(Column::CreatedAt).order_by_asc(Column::Id);
        let rows: Vec<CandidateRow> =
            self.select_candidates(wanted).into_model().all(&self.operators).await?;
        let in_scope =
            |node: &Candidate| filter.scope.tenant().is_none_or(|tenant| *tenant == node.tenant_id);
        Ok(rows.into_iter().filter_map(CandidateRow::into_candidate).filter(in_scope).collect())
    }

    /// Marks nodes that have a vector of their current text, and are `queued` or `failed` all the
    /// same, as `ready`; some thousands at most. A row that another session of Postgres holds is
    /// left.
    pub async fn backfill_ready(
        &self,
        scope: &TenantScope,
        node_ids: Option<&[Uuid]>,
    ) -> Result<Backfilled, StoreError> {
        let mut nodes = 0;
        for owner in owners(scope) {
            let step = self.backfill_step(&owner, node_ids);
            let mut is_all = false;
            while !is_all {
                if nodes >= BACKFILL {
                    return Ok(Backfilled { nodes, is_all: false });
                }
                let changed =
                    self.operators_writer.execute_raw(step.clone()).await?.rows_affected();
                nodes += changed;
                // A trigger may keep rows as they are, which are wanted again then.
                is_all = changed < STEP;
            }
        }
        Ok(Backfilled { nodes, is_all: true })
    }

    /// The statement that changes the next nodes of an owner.
    fn backfill_step(&self, owner: &Owner, node_ids: Option<&[Uuid]>) -> Statement {
        let dialect = self.dialect();
        let mut values = Values::default();
        // Not as an equation: see `Walk::rows`.
        let of_owner = match owner {
            Owner::Anyone => "TRUE".to_owned(),
            Owner::Nobody => "tenant_id IS NULL".to_owned(),
            Owner::Tenant(name) => {
                let name = values.add(name);
                format!("tenant_id >= {name} AND tenant_id <= {name}")
            }
        };
        // Without named nodes, an index that knows these alone leads to them, in its order.
        let (from, order, are_named) = match node_ids {
            None => (
                dialect.nodes_by("vecmill_nodes_backfill"),
                "ORDER BY tenant_id, id",
                "TRUE".to_owned(),
            ),
            Some(ids) => {
                let are_named = match dialect {
                    Dialect::Postgres => format!("id = ANY({})", values.add(ids.to_vec())),
                    Dialect::Sqlite => format!(
                        "id IN (SELECT unhex(value, '-') FROM json_each({}))",
                        values.add(to_json(ids))
                    ),
                };
                ("nodes".to_owned(), "", are_named)
            }
        };
        let wanted = format!(
            "SELECT id FROM {from} WHERE embedding IS NOT NULL \
               AND embedding_source_hash IS DISTINCT FROM '{STALE}' \
               AND embedding_status IN ('queued', 'failed') AND {of_owner} AND {are_named} \
             {order} LIMIT {STEP}"
        );
        // The rows are found first, whatever the planner believes of them.
        let are_wanted = match dialect {
            Dialect::Postgres => {
                format!("id = ANY(ARRAY({wanted} FOR NO KEY UPDATE SKIP LOCKED))")
            }
            Dialect::Sqlite => format!("id IN ({wanted})"),
        };
        let sql = format!(
            "UPDATE nodes SET embedding_status = 'ready', embedding_error = NULL, \
             updated_at = {now} WHERE {are_wanted}",
            now = dialect.now()
        );
        let backend = self.operators_writer.get_database_backend();
        Statement::from_sql_and_values(backend, sql, values.0)
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
