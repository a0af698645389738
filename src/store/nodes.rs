//! What HTTP asks of the nodes: listing, reading, counting.

use std::collections::{BTreeMap, HashMap};

use entity::node::{Column, Entity, Model};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryResult,
    QuerySelect, QueryTrait, Select, sea_query::Expr,
};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    NodeDetail, NodeFilter, NodeList, NodeSummary, StatusCounts, Store, StoreError, Total,
    branch::{Branch, Walk, Wants},
    dialect::{Dialect, has_embedding, in_scope, status_of, tenant_of},
    results,
};
use crate::{
    domain::{NodeStatus, TenantScope},
    heavy::Weight,
};

/// Nodes that are counted one by one; of more, the number is an estimate.
const COUNT_UP_TO: u64 = 100_000;

impl Store {
    /// A page of the nodes that the filter wants, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Cursor`] if the filter begins at a place that this database does not know.
    pub async fn list(&self, filter: &NodeFilter) -> Result<NodeList, StoreError> {
        let wants = match filter.has_embedding {
            None => Wants::Any,
            Some(true) => Wants::Embedded,
            Some(false) => Wants::Unembedded,
        };
        let walk = Walk { scope: &filter.scope, status: filter.status, wants };
        let (keys, next) = self.walk(&walk, &filter.from, filter.limit).await?;
        let total = self.total(&walk).await?;
        let places = keys.iter().enumerate().map(|(place, key)| (key.id, place));
        let places: HashMap<Uuid, usize> = places.collect();
        let ids: Vec<Uuid> = keys.iter().map(|key| key.id).collect();
        let page = Entity::find().filter(self.dialect().id_in(&ids)).select_only().columns([
            Column::Id,
            Column::EmbeddingStatus,
            Column::EmbeddingError,
            Column::EmbeddingAttempts,
        ]);
        let rows: Vec<SummaryRow> =
            self.with_expressions(page).into_model().all(&self.operators).await?;
        let mut nodes: Vec<NodeSummary> = rows.into_iter().map(NodeSummary::from).collect();
        nodes.sort_by_key(|node| places.get(&node.id).copied());
        Ok(NodeList { nodes, next, total })
    }

    /// How many nodes a walk meets: counted, unless they are very many.
    async fn total(&self, walk: &Walk<'_>) -> Result<Total, StoreError> {
        let counted = self.count_up_to(walk, COUNT_UP_TO).await?;
        if counted.is_all {
            return Ok(Total { nodes: counted.found, is_exact: true });
        }
        let estimate = match walk.status {
            // What is known of a status and of vectors says little of both together; those that were
            // looked at say more.
            Some(_) if walk.wants != Wants::Any => {
                let all = self.estimate(&Walk { wants: Wants::Any, ..walk.clone() }).await?;
                (all as f64 * counted.found as f64 / counted.looked_at as f64) as u64
            }
            _ => self.estimate(walk).await?,
        };
        Ok(Total { nodes: estimate.max(counted.found), is_exact: false })
    }

    /// A node of the scope, with its vector if that is asked for.
    pub async fn get(
        &self,
        scope: &TenantScope,
        id: Uuid,
        include_embedding: bool,
        weight: Weight,
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
        Ok(weight.work(|| detail(&row, embedding))?)
    }

    /// How many nodes of the scope are in each status.
    pub async fn status_counts(&self, scope: &TenantScope) -> Result<StatusCounts, StoreError> {
        let all = Walk { scope, status: None, wants: Wants::Any };
        let (mut counts, mut counted, mut many) = (StatusCounts::default(), 0, Vec::new());
        // The rows of one status may have two owners, if one of these is nobody.
        let mut of_status: BTreeMap<String, Vec<Branch>> = BTreeMap::new();
        for branch in self.branches(&all).await? {
            of_status.entry(branch.status.clone()).or_default().push(branch);
        }
        for (name, branches) in of_status {
            let status = status_of(&name);
            let (_, nodes) = self.count_together(&all, &branches, COUNT_UP_TO + 1).await?;
            *count_of(&mut counts, status) += nodes;
            match nodes > COUNT_UP_TO {
                true => many.push(status),
                false => counted += nodes,
            }
        }
        counts.is_estimated = !many.is_empty();
        // What the database believes of all of them is closer than what it believes of a status,
        // which changes sooner.
        let rest = match many.as_slice() {
            [_] => Some(self.estimate(&all).await?.saturating_sub(counted)),
            _ => None,
        };
        for status in many {
            let nodes = match rest {
                Some(rest) => rest,
                None => self.estimate(&Walk { status: Some(status), ..all.clone() }).await?,
            };
            let count = count_of(&mut counts, status);
            *count = nodes.max(*count);
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

fn count_of(counts: &mut StatusCounts, status: NodeStatus) -> &mut u64 {
    match status {
        NodeStatus::Queued => &mut counts.queued,
        NodeStatus::Processing => &mut counts.processing,
        NodeStatus::Ready => &mut counts.ready,
        NodeStatus::Failed => &mut counts.failed,
        NodeStatus::Skipped => &mut counts.skipped,
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
