//! Nodes that say themselves when they are to be embedded again.

use chrono::{DateTime, Utc};
use entity::node::{Column, Entity};
use sea_orm::{
    ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect,
    sea_query::Expr,
};
use serde_json::Value;
use uuid::Uuid;

use super::{
    Candidate, Store, StoreError,
    dialect::{Dialect, has_current_embedding, in_scope, status_of, tenant_of},
};
use crate::domain::{NodeStatus, TenantScope};

/// A node with a `refresh_policy`.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyRow {
    /// The node; none if no job can carry its tenant.
    pub candidate: Option<Candidate>,
    /// Its id.
    pub id: Uuid,
    /// When it is to be embedded again.
    pub policy: Value,
    /// When it was last embedded.
    pub last_refreshed: Option<DateTime<Utc>>,
}

/// Characters of what a policy says that are read; more is no policy.
const POLICY_CHARS: usize = 200;

impl Store {
    /// The two fields of a policy that say when, as JSON.
    fn policy(&self) -> String {
        match self.dialect() {
            Dialect::Postgres => format!(
                "jsonb_build_object( \
                   'interval', left(refresh_policy->>'interval', {POLICY_CHARS}), \
                   'cron', left(refresh_policy->>'cron', {POLICY_CHARS}))::text"
            ),
            Dialect::Sqlite => format!(
                "CASE WHEN json_valid(refresh_policy) THEN json_object( \
                   'interval', substr(refresh_policy->>'$.interval', 1, {POLICY_CHARS}), \
                   'cron', substr(refresh_policy->>'$.cron', 1, {POLICY_CHARS})) END"
            ),
        }
    }

    /// Nodes of the scope that have a policy and do not wait for a vector already, in the order of
    /// their ids, from behind `after`. Fewer than `limit` are the last.
    pub async fn nodes_with_policy(
        &self,
        scope: &TenantScope,
        after: Option<Uuid>,
        limit: u64,
    ) -> Result<Vec<PolicyRow>, StoreError> {
        let open = [NodeStatus::Queued.as_str(), NodeStatus::Processing.as_str()];
        let has_policy = Expr::cust(match self.dialect() {
            // The operator for this is a question mark, which stands for a parameter elsewhere.
            Dialect::Postgres => {
                "(jsonb_exists(refresh_policy, 'interval') OR jsonb_exists(refresh_policy, 'cron'))"
            }
            Dialect::Sqlite => {
                "(refresh_policy LIKE '%\"interval\"%' OR refresh_policy LIKE '%\"cron\"%')"
            }
        });
        let mut wanted = Entity::find()
            .select_only()
            .columns([Column::Id, Column::TenantId, Column::EmbeddingStatus, Column::LastRefreshed])
            // What else a policy holds may be long.
            .expr_as(Expr::cust(self.policy()), "policy")
            .expr_as(has_current_embedding(), "has_current_embedding")
            .expr_as(Expr::cust(self.dialect().changed()), "changed")
            .filter(in_scope(scope))
            .filter(has_policy)
            .filter(Column::EmbeddingStatus.is_not_in(open))
            .order_by_asc(Column::Id)
            .limit(limit);
        if let Some(after) = after {
            wanted = wanted.filter(Column::Id.gt(after));
        }
        let rows: Vec<Row> = wanted.into_model().all(&self.operators).await?;
        Ok(rows.into_iter().map(PolicyRow::from).collect())
    }
}

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    tenant_id: Option<String>,
    embedding_status: String,
    policy: Option<String>,
    last_refreshed: Option<DateTime<Utc>>,
    has_current_embedding: bool,
    changed: Option<String>,
}

impl From<Row> for PolicyRow {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            policy: row
                .policy
                .and_then(|policy| serde_json::from_str(&policy).ok())
                .unwrap_or_default(),
            last_refreshed: row.last_refreshed,
            candidate: tenant_of(row.tenant_id).map(|tenant_id| Candidate {
                id: row.id,
                tenant_id,
                status: status_of(&row.embedding_status),
                has_current_embedding: row.has_current_embedding,
                changed: row.changed,
            }),
        }
    }
}
