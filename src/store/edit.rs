//! Changing and deleting a node that is there.

use entity::node::{Column, Entity};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QuerySelect,
    sea_query::{Expr, LockType, Query},
};
use serde_json::Value;
use uuid::Uuid;

use super::{
    OnNewText, Outcome, Patched, Refusal, Store, StoreError, TextRule, TextSource, Vector,
    dialect::{Dialect, STALE, in_scope, status_of, tenant_of, to_json},
    outcomes, results,
};
use crate::{
    domain::{NodePatch, NodeStatus, TenantId, TenantScope, node::json_bytes, patch::Editable},
    heavy,
};

impl Store {
    /// Changes a node of the scope, all of the change or nothing. `on_new_text` says what is done
    /// when the change gives it another text.
    ///
    /// Fields that stay as they are are not written; a change that changes nothing writes nothing.
    /// A node with another text keeps its old vector, which is known from then on to be of an
    /// older one; its failed attempts are forgotten.
    pub async fn patch(
        &self,
        scope: &TenantScope,
        id: Uuid,
        patch: &NodePatch,
        on_new_text: OnNewText<'_>,
    ) -> Result<Patched, StoreError> {
        let change = || async {
            let transaction = self.begin_write().await?;
            let patched = patch_locked(self, &transaction, scope, id, patch, on_new_text).await?;
            // Unless it is done, nothing was written; the lock is given back at once in any case.
            transaction.commit().await?;
            Ok(patched)
        };
        self.repeated(change).await
    }

    /// Deletes a node of the scope; answers whose it was, or `None` if there is no such node.
    pub async fn delete(
        &self,
        scope: &TenantScope,
        id: Uuid,
    ) -> Result<Option<TenantId>, StoreError> {
        let delete = Query::delete()
            .from_table(Entity)
            .cond_where(Column::Id.eq(id))
            .cond_where(in_scope(scope))
            .and_where(self.dialect().tenant_is_valid())
            .returning_col(Column::TenantId)
            .take();
        let Some(row) = self.writer.query_one(&delete).await? else { return Ok(None) };
        Ok(tenant_of(row.try_get("", "tenant_id")?))
    }
}

async fn patch_locked(
    store: &Store,
    transaction: &impl ConnectionTrait,
    scope: &TenantScope,
    id: Uuid,
    patch: &NodePatch,
    on_new_text: OnNewText<'_>,
) -> Result<Patched, StoreError> {
    let Some(row) = lock(transaction, scope, id).await? else { return Ok(Patched::NotFound) };
    let Some(tenant_id) = tenant_of(row.tenant_id.clone()) else { return Ok(Patched::NotFound) };
    let status = status_of(&row.embedding_status);
    let change = heavy::in_place(|| Change::of(row, patch, store.rule));
    if change.bytes > store.node_bytes && change.grows {
        return Err(StoreError::Row(Refusal::too_large(store.node_bytes)));
    }
    if !change.has_new_text {
        if !change.is_empty() {
            write(transaction, id, change, None).await?;
        }
        return Ok(Patched::Done { tenant_id, status, has_new_text: false });
    }
    let status = match on_new_text {
        OnNewText::Queue => {
            write(transaction, id, change, Some(NodeStatus::Queued)).await?;
            NodeStatus::Queued
        }
        OnNewText::Store(of, result) if *of == change.source => {
            write(transaction, id, change, Some(NodeStatus::Processing)).await?;
            finish(store, transaction, result).await?
        }
        OnNewText::Ask | OnNewText::Store(..) => {
            return Ok(Patched::NewText { tenant_id, source: change.source });
        }
    };
    Ok(Patched::Done { tenant_id, status, has_new_text: true })
}

#[derive(FromQueryResult)]
struct Row {
    tenant_id: Option<String>,
    classes: Option<String>,
    /// JSON, as the next.
    props: Option<String>,
    metadata: Option<String>,
    payload_ref: Option<String>,
    embedding_status: String,
}

/// What a patch makes of a row.
struct Change {
    /// The fields that differ, as JSON.
    props: Option<String>,
    metadata: Option<String>,
    payload_ref: Option<Option<String>>,
    source: TextSource,
    has_new_text: bool,
    /// Of the JSON of the changed node, as far as it can be changed.
    bytes: usize,
    /// Whether that is more than before.
    grows: bool,
}

impl Change {
    fn of(row: Row, patch: &NodePatch, rule: TextRule) -> Self {
        let classes: Vec<String> = row
            .classes
            .as_deref()
            .and_then(|classes| serde_json::from_str(classes).ok())
            .unwrap_or_default();
        let old = row.into_editable();
        let mut new = patch.apply(old.clone());
        new.metadata = Some(or_empty(new.metadata));
        let source = source_of(rule, &new, &classes);
        let bytes = json_bytes(&(&new.props, &new.metadata));
        Self {
            has_new_text: source != source_of(rule, &old, &classes),
            source,
            grows: bytes > json_bytes(&(&old.props, &old.metadata)),
            bytes,
            props: (new.props != old.props).then(|| to_json(&new.props)),
            metadata: (new.metadata != old.metadata).then(|| to_json(&new.metadata)),
            payload_ref: (new.payload_ref != old.payload_ref).then_some(new.payload_ref),
        }
    }

    fn is_empty(&self) -> bool {
        self.props.is_none() && self.metadata.is_none() && self.payload_ref.is_none()
    }
}

impl Row {
    /// What another program may have left there and no client can send counts as absent.
    fn into_editable(self) -> Editable {
        Editable {
            props: self
                .props
                .and_then(|props| serde_json::from_str(&props).ok())
                .unwrap_or_default(),
            metadata: Some(or_empty(
                self.metadata.and_then(|metadata| serde_json::from_str(&metadata).ok()),
            )),
            payload_ref: self.payload_ref.filter(|place| !place.is_empty()),
        }
    }
}

/// An ActiveKG database takes no null there.
fn or_empty(metadata: Option<Value>) -> Value {
    metadata.filter(|metadata| !metadata.is_null()).unwrap_or_else(|| serde_json::json!({}))
}

/// Reads a node and keeps others from changing it until the transaction ends: by a lock on the row
/// in Postgres; a transaction that may write has the whole file in SQLite.
async fn lock(
    transaction: &impl ConnectionTrait,
    scope: &TenantScope,
    id: Uuid,
) -> Result<Option<Row>, StoreError> {
    let dialect = Dialect::of(transaction.get_database_backend());
    Ok(Entity::find()
        .select_only()
        .columns([Column::TenantId, Column::PayloadRef, Column::EmbeddingStatus])
        .expr_as(Expr::cust("CAST(props AS text)"), "props")
        .expr_as(Expr::cust("CAST(metadata AS text)"), "metadata")
        .expr_as(dialect.classes(), "classes")
        .filter(Column::Id.eq(id))
        .filter(in_scope(scope))
        // No key changes: rows of other tables may refer to this one meanwhile.
        .lock(LockType::NoKeyUpdate)
        .into_model()
        .one(transaction)
        .await?)
}

fn source_of(rule: TextRule, fields: &Editable, classes: &[String]) -> TextSource {
    TextSource { text: rule.text(&fields.props, classes), payload_ref: fields.payload_ref.clone() }
}

/// Writes the fields that differ; for a node with another text, also the status that it begins
/// anew with.
async fn write(
    transaction: &impl ConnectionTrait,
    id: Uuid,
    change: Change,
    anew: Option<NodeStatus>,
) -> Result<(), StoreError> {
    let dialect = Dialect::of(transaction.get_database_backend());
    let mut update = Entity::update_many()
        .col_expr(Column::Version, Expr::cust("coalesce(version, 1) + 1"))
        .col_expr(Column::UpdatedAt, Expr::cust(dialect.now()))
        .filter(Column::Id.eq(id));
    let json = |json: String| match dialect {
        Dialect::Postgres => Expr::cust_with_values("CAST($1 AS jsonb)", [json]),
        Dialect::Sqlite => Expr::value(json),
    };
    if let Some(props) = change.props {
        update = update.col_expr(Column::Props, json(props));
    }
    if let Some(metadata) = change.metadata {
        update = update.col_expr(Column::Metadata, json(metadata));
    }
    if let Some(payload_ref) = change.payload_ref {
        update = update.col_expr(Column::PayloadRef, Expr::value(payload_ref));
    }
    if let Some(status) = anew {
        update = update
            .col_expr(Column::EmbeddingStatus, status.as_str().into())
            .col_expr(Column::EmbeddingAttempts, 0.into())
            .col_expr(Column::EmbeddingError, Expr::cust("NULL"))
            .col_expr(Column::EmbeddingSourceHash, STALE.into());
    }
    update.exec(transaction).await?;
    Ok(())
}

/// Writes what was made of the new text; answers the status that the node has with it.
async fn finish(
    store: &Store,
    transaction: &impl ConnectionTrait,
    result: &Result<Vector, Outcome>,
) -> Result<NodeStatus, StoreError> {
    match result {
        Ok(vector) => {
            let stored = results::complete(store, transaction, &[vector]).await?;
            if stored.is_empty() {
                return Err(StoreError::Refused(sea_orm::DbErr::RecordNotUpdated));
            }
            Ok(NodeStatus::Ready)
        }
        Err(outcome) => {
            outcomes::record(store, transaction, &[outcome]).await?;
            Ok(outcome.status)
        }
    }
}
