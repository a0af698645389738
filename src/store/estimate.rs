//! How many nodes there are, where counting them would read too much.

use entity::node::{Column, Entity};
use sea_orm::{
    ColumnTrait, ConnectionTrait, Statement,
    sea_query::{Alias, Condition, Expr, ExprTrait, Query},
};
use serde_json::Value;

use super::{
    Store, StoreError,
    branch::{Walk, Wants},
    dialect::{Dialect, has_embedding, in_scope},
};

/// Rows of SQLite that are looked at for an estimate, evenly spread over the table.
const SAMPLES: u64 = 1000;

impl Store {
    /// About how many nodes a walk would meet: what the planner of Postgres believes; in SQLite, what
    /// a sample says.
    pub(super) async fn estimate(&self, walk: &Walk<'_>) -> Result<u64, StoreError> {
        let mut wanted = Condition::all().add(in_scope(walk.scope));
        if let Some(status) = walk.status {
            wanted = wanted.add(Column::EmbeddingStatus.eq(status.as_str()));
        }
        match walk.wants {
            Wants::Any | Wants::NoCurrent => {}
            Wants::Embedded => wanted = wanted.add(has_embedding()),
            Wants::Unembedded => wanted = wanted.add(has_embedding().not()),
        }
        match self.dialect() {
            Dialect::Postgres => self.planned(wanted).await,
            Dialect::Sqlite => self.sampled(wanted).await,
        }
    }

    async fn planned(&self, wanted: Condition) -> Result<u64, StoreError> {
        let query =
            Query::select().expr(Expr::cust("1")).from(Entity).cond_where(wanted).to_owned();
        let mut statement = self.operators.get_database_backend().build(&query);
        statement.sql = format!("EXPLAIN (FORMAT JSON) {}", statement.sql);
        let row = self.operators.query_one_raw(statement).await?;
        let plan: Option<Value> = row.map(|row| row.try_get_by_index(0)).transpose()?;
        let rows = plan.as_ref().and_then(|plan| plan.pointer("/0/Plan/Plan Rows")?.as_f64());
        Ok(rows.unwrap_or_default() as u64)
    }

    async fn sampled(&self, wanted: Condition) -> Result<u64, StoreError> {
        let backend = self.operators.get_database_backend();
        let ends = "SELECT coalesce((SELECT min(rowid) FROM nodes), 0) AS first, \
                    coalesce((SELECT max(rowid) FROM nodes), 0) AS last";
        let row = self.operators.query_one_raw(Statement::from_string(backend, ends)).await?;
        let Some(row) = row else { return Ok(0) };
        let (first, last): (i64, i64) = (row.try_get("", "first")?, row.try_get("", "last")?);
        let rows = last.abs_diff(first) + 1;
        let samples = Ord::min(SAMPLES, rows);
        // A row that is gone counts as the next one. That no index is used leaves no other way than
        // from row to row.
        let sample = format!(
            "nodes NOT INDEXED WHERE rowid IN (WITH RECURSIVE sample(i) AS (SELECT 0 UNION ALL \
               SELECT i + 1 FROM sample WHERE i + 1 < {samples}) \
             SELECT (SELECT min(rowid) FROM nodes WHERE rowid >= {first} + i * {step}) FROM sample)",
            step = rows / samples,
        );
        let query = Query::select()
            .expr(Expr::cust("count(*)"))
            .from_as(Alias::new("sampled"), Entity)
            .cond_where(wanted)
            .to_owned();
        let mut statement = backend.build(&query);
        statement.sql = format!("WITH sampled AS (SELECT * FROM {sample}) {}", statement.sql);
        let found = self.operators.query_one_raw(statement).await?;
        let found: i64 = found.map(|row| row.try_get_by_index(0)).transpose()?.unwrap_or_default();
        Ok(rows.saturating_mul(found.unsigned_abs()) / samples)
    }
}
