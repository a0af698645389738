//! What the sweep looks for, and what it mends.

use entity::node::{Column, Entity};
use sea_orm::{
    ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, Select,
    UpdateMany,
    sea_query::{Expr, LockBehavior, LockType},
};
use uuid::Uuid;

use super::{
    Candidate, OpenPage, Store, StoreError,
    dialect::{STALE, has_current_embedding, status_of, tenant_of},
};
use crate::domain::{NodeStatus, TenantId};

/// Rows that one transaction of a repair changes.
const STEP: u64 = 1000;

impl Store {
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

    /// What a [`CandidateRow`] is read from.
    pub(super) fn select_candidates(&self, wanted: Select<Entity>) -> Select<Entity> {
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
pub(super) struct CandidateRow {
    id: Uuid,
    tenant_id: Option<String>,
    embedding_status: String,
    has_current_embedding: bool,
    changed: Option<String>,
}

impl CandidateRow {
    pub(super) fn into_candidate(self) -> Option<Candidate> {
        Some(Candidate {
            id: self.id,
            tenant_id: tenant_of(self.tenant_id)?,
            status: status_of(&self.embedding_status),
            has_current_embedding: self.has_current_embedding,
            changed: self.changed,
        })
    }
}
