//! What HTTP asks of the nodes: listing, reading, counting.

use entity::node::{Column, Entity, Model};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, ExprTrait, FromQueryResult, PaginatorTrait,
    QueryFilter, QueryOrder, QueryResult, QuerySelect, QueryTrait, Select,
    sea_query::{Expr, Query},
};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    NodeDetail, NodeFilter, NodeSummary, StatusCounts, Store, StoreError,
    dialect::{Dialect, has_embedding, in_scope, status_of, tenant_of},
    results,
};
use crate::domain::{NodeStatus, TenantScope};

impl Store {
    /// The nodes that the filter wants, oldest first, and how many there are without its limit
    /// and offset.
    pub async fn list(&self, filter: &NodeFilter) -> Result<(Vec<NodeSummary>, u64), StoreError> {
        let mut wanted = Entity::find().filter(in_scope(&filter.scope));
        if let Some(status) = filter.status {
            wanted = wanted.filter(Column::EmbeddingStatus.eq(status.as_str()));
        }
        if let Some(wants_embedding) = filter.has_embedding {
            let present = has_embedding();
            wanted = wanted.filter(if wants_embedding { present } else { present.not() });
        }
        let total = wanted.clone().count(&self.db).await?;
        let page = wanted
            .select_only()
            .columns([
                Column::Id,
                Column::EmbeddingStatus,
                Column::EmbeddingError,
                Column::EmbeddingAttempts,
            ])
            .order_by_asc(Column::CreatedAt)
            .order_by_asc(Column::Id)
            .limit(filter.limit)
            .offset(filter.offset);
        let rows = self.with_expressions(page).into_model::<SummaryRow>().all(&self.db).await?;
        Ok((rows.into_iter().map(NodeSummary::from).collect(), total))
    }

    /// A node of the scope, with its vector if that is asked for.
    pub async fn get(
        &self,
        scope: &TenantScope,
        id: Uuid,
        include_embedding: bool,
    ) -> Result<Option<NodeDetail>, StoreError> {
        let mut select =
            self.with_expressions(Entity::find()).filter(Column::Id.eq(id)).filter(in_scope(scope));
        if include_embedding {
            select = select.expr_as(Expr::cust(self.dialect().embedding()), "embedding");
        }
        let Some(row) = self.db.query_one(&select.into_query()).await? else {
            return Ok(None);
        };
        let embedding = match include_embedding {
            true => results::read_embedding(self.dialect(), &row)?,
            false => None,
        };
        Ok(detail(&row, embedding)?)
    }

    /// How many nodes of the scope are in each status.
    pub async fn status_counts(&self, scope: &TenantScope) -> Result<StatusCounts, StoreError> {
        // First of each tenant, and of rows instead of a column: the index by tenant and status has
        // all that this needs, in the order in which it needs it.
        let by_tenant = Entity::find()
            .select_only()
            .column(Column::EmbeddingStatus)
            .expr_as(Expr::cust("COUNT(*)"), "nodes")
            .filter(in_scope(scope))
            .group_by(Column::TenantId)
            .group_by(Column::EmbeddingStatus)
            .into_query();
        let by_status = Query::select()
            .column(Column::EmbeddingStatus)
            .expr_as(Expr::cust("CAST(SUM(nodes) AS bigint)"), "nodes")
            .from_subquery(by_tenant, "by_tenant")
            .group_by_col(Column::EmbeddingStatus)
            .to_owned();
        let mut counts = StatusCounts::default();
        for row in self.db.query_all(&by_status).await? {
            let (status, nodes): (String, i64) = (row.try_get_by(0)?, row.try_get_by(1)?);
            *match status_of(&status) {
                NodeStatus::Queued => &mut counts.queued,
                NodeStatus::Processing => &mut counts.processing,
                NodeStatus::Ready => &mut counts.ready,
                NodeStatus::Failed => &mut counts.failed,
                NodeStatus::Skipped => &mut counts.skipped,
            } += nodes.unsigned_abs();
        }
        Ok(counts)
    }

    pub(super) fn dialect(&self) -> Dialect {
        Dialect::of(self.db.get_database_backend())
    }

    fn with_expressions(&self, select: Select<Entity>) -> Select<Entity> {
        select
            .expr_as(self.dialect().classes(), "classes")
            .expr_as(has_embedding(), "has_embedding")
    }
}

#[derive(FromQueryResult)]
struct SummaryRow {
    id: Uuid,
    classes: Option<String>,
    has_embedding: bool,
    embedding_status: String,
    embedding_error: Option<String>,
    embedding_attempts: Option<i32>,
}

impl From<SummaryRow> for NodeSummary {
    fn from(row: SummaryRow) -> Self {
        Self {
            id: row.id,
            classes: row
                .classes
                .and_then(|classes| serde_json::from_str(&classes).ok())
                .unwrap_or_default(),
            has_embedding: row.has_embedding,
            status: status_of(&row.embedding_status),
            error: row.embedding_error,
            attempts: count(row.embedding_attempts),
        }
    }
}

/// The node in a row that holds all columns of the entity and the expressions of a listing;
/// none if its tenant's name is not valid.
fn detail(
    row: &QueryResult,
    embedding: Option<Vec<f32>>,
) -> Result<Option<NodeDetail>, sea_orm::DbErr> {
    let summary = NodeSummary::from(SummaryRow::from_query_result(row, "")?);
    let model = Model::from_query_result(row, "")?;
    Ok(tenant_of(model.tenant_id).map(|tenant_id| NodeDetail {
        summary,
        tenant_id,
        props: match model.props {
            Some(Value::Object(props)) => props,
            _ => Map::new(),
        },
        payload_ref: model.payload_ref,
        metadata: model.metadata,
        refresh_policy: model.refresh_policy,
        triggers: model.triggers,
        version: model.version.unwrap_or(1),
        embedding_updated_at: model.embedding_updated_at,
        last_refreshed: model.last_refreshed,
        drift_score: model.drift_score,
        truncated: model.embedding_truncated,
        created_at: model.created_at,
        updated_at: model.updated_at,
        embedding,
    }))
}

fn count(column: Option<i32>) -> u32 {
    column.and_then(|attempts| u32::try_from(attempts).ok()).unwrap_or_default()
}
