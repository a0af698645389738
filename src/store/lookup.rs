//! Nodes by the names that other programs have for them, and what became of their vectors.

use chrono::{DateTime, Utc};
use entity::node::{Column, Entity};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder,
    QuerySelect, Statement, sea_query::Expr,
};
use uuid::Uuid;

use super::{
    Store, StoreError,
    dialect::{Dialect, in_scope},
};
use crate::domain::TenantScope;

/// An entry of `embedding_history`.
#[derive(Debug, Clone, PartialEq, FromQueryResult)]
pub struct NodeVersion {
    /// 1 − cosine(old vector, new vector).
    pub drift_score: Option<f64>,
    /// When the vector was stored.
    pub created_at: Option<DateTime<Utc>>,
    /// Where its text lay outside the database.
    pub embedding_ref: Option<String>,
}

/// What a client may fill as it likes.
const JSON_COLUMNS: [&str; 4] = ["props", "metadata", "refresh_policy", "triggers"];

impl Store {
    /// The ids of the nodes of the scope whose property `external_id` is this, two at most: more
    /// than one is ambiguous.
    pub async fn ids_by_external_id(
        &self,
        scope: &TenantScope,
        external_id: &str,
    ) -> Result<Vec<Uuid>, StoreError> {
        // As the index of an ActiveKG database has it.
        let is_it = match self.dialect() {
            Dialect::Postgres => {
                Expr::cust_with_values("(props->>'external_id') = $1", [external_id])
            }
            Dialect::Sqlite => Expr::cust_with_values(
                "CASE WHEN json_valid(props) \
                 THEN CAST(props->>'$.external_id' AS TEXT) = ? ELSE 0 END",
                [external_id],
            ),
        };
        Ok(Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(in_scope(scope))
            .filter(self.dialect().tenant_is_valid())
            .filter(is_it)
            .limit(2)
            .into_tuple()
            .all(&self.operators)
            .await?)
    }

    /// Bytes of the JSON that is stored of a node of the scope; 0 if there is no such node.
    pub async fn stored_bytes(&self, scope: &TenantScope, id: Uuid) -> Result<usize, StoreError> {
        let bytes = |column: &str| match self.dialect() {
            Dialect::Postgres => format!("coalesce(octet_length(CAST({column} AS text)), 0)"),
            Dialect::Sqlite => format!("coalesce(octet_length({column}), 0)"),
        };
        let all = JSON_COLUMNS.map(bytes).join(" + ");
        let found: Option<i64> = Entity::find()
            .select_only()
            .expr_as(Expr::cust(format!("CAST({all} AS bigint)")), "bytes")
            .filter(Column::Id.eq(id))
            .filter(in_scope(scope))
            .into_tuple()
            .one(&self.db)
            .await?;
        Ok(found.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0))
    }

    /// The JSON that is stored of a node of the scope, one value after another, not parsed.
    pub async fn stored_json(
        &self,
        scope: &TenantScope,
        id: Uuid,
    ) -> Result<Option<String>, StoreError> {
        let json = |column: &str| format!("coalesce(CAST({column} AS text), '')");
        let all = JSON_COLUMNS.map(json).join(" || ");
        Ok(Entity::find()
            .select_only()
            .expr_as(Expr::cust(all), "json")
            .filter(Column::Id.eq(id))
            .filter(in_scope(scope))
            .into_tuple()
            .one(&self.db)
            .await?)
    }

    /// Whether there is such a node in the scope.
    pub async fn exists(&self, scope: &TenantScope, id: Uuid) -> Result<bool, StoreError> {
        let found: Option<Uuid> = Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(Column::Id.eq(id))
            .filter(in_scope(scope))
            .filter(self.dialect().tenant_is_valid())
            .order_by_asc(Column::Id)
            .into_tuple()
            .one(&self.operators)
            .await?;
        Ok(found.is_some())
    }

    /// The latest vectors of a node, newest first. Only a database that ActiveKG has made keeps
    /// them; in others there are none.
    pub async fn versions(&self, id: Uuid, limit: u64) -> Result<Vec<NodeVersion>, StoreError> {
        let backend = self.operators.get_database_backend();
        let (table, placeholder) = match self.dialect() {
            Dialect::Postgres => {
                ("SELECT 1 WHERE to_regclass('embedding_history') IS NOT NULL", "$1")
            }
            Dialect::Sqlite => {
                ("SELECT 1 FROM sqlite_master WHERE name = 'embedding_history'", "?")
            }
        };
        let has_table = Statement::from_string(backend, table);
        if self.operators.query_one_raw(has_table).await?.is_none() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT drift_score, created_at, embedding_ref FROM embedding_history \
             WHERE node_id = {placeholder} ORDER BY created_at DESC LIMIT {limit}"
        );
        let statement = Statement::from_sql_and_values(backend, sql, [id.into()]);
        Ok(NodeVersion::find_by_statement(statement).all(&self.operators).await?)
    }
}
