//! Nodes that are there and embedded again while a client waits, without a queue.

use std::collections::HashMap;

use entity::node::{Column, Entity};
use sea_orm::{
    ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QuerySelect,
    sea_query::{LockBehavior, LockType},
};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    Outcome, Store, StoreError, TextRule, TextSource, Vector, dialect::Dialect, outcomes, results,
};
use crate::domain::NodeStatus;

impl Store {
    /// What the vectors of those of the nodes that exist are made of.
    pub async fn sources(&self, ids: &[Uuid]) -> Result<Vec<(Uuid, TextSource)>, StoreError> {
        let rows: Vec<Row> = select(self.dialect(), ids).into_model().all(&self.db).await?;
        Ok(rows.into_iter().map(|row| (row.id, row.into_source(self.rule))).collect())
    }

    /// Writes what was made of these texts, each only while the node still has the text; answers
    /// the nodes written, with their status.
    pub async fn store_again(
        &self,
        made: &[(TextSource, Result<Vector, Outcome>)],
    ) -> Result<Vec<(Uuid, NodeStatus)>, StoreError> {
        self.repeated(|| self.store_again_once(made)).await
    }

    async fn store_again_once(
        &self,
        made: &[(TextSource, Result<Vector, Outcome>)],
    ) -> Result<Vec<(Uuid, NodeStatus)>, StoreError> {
        let id_of = |result: &Result<Vector, Outcome>| match result {
            Ok(vector) => vector.id,
            Err(outcome) => outcome.id,
        };
        let ids: Vec<Uuid> = made.iter().map(|(_, result)| id_of(result)).collect();
        let transaction = self.begin_write().await?;
        // Of several rows, one that another session holds must not hold the others.
        let rows = select(self.dialect(), &ids);
        let rows = match ids.len() {
            1 => rows.lock(LockType::NoKeyUpdate),
            _ => rows.lock_with_behavior(LockType::NoKeyUpdate, LockBehavior::SkipLocked),
        };
        let rows: Vec<Row> = rows.into_model().all(&transaction).await?;
        let now: HashMap<Uuid, TextSource> =
            rows.into_iter().map(|row| (row.id, row.into_source(self.rule))).collect();
        let same = made
            .iter()
            .filter(|(source, result)| now.get(&id_of(result)) == Some(source))
            .map(|(_, result)| result);
        let (mut vectors, mut others) = (Vec::new(), Vec::new());
        for result in same {
            match result {
                Ok(vector) => vectors.push(vector),
                Err(outcome) => others.push(outcome),
            }
        }
        let mut written: Vec<(Uuid, NodeStatus)> = results::complete(self, &transaction, &vectors)
            .await?
            .into_iter()
            .map(|id| (id, NodeStatus::Ready))
            .collect();
        mark_processing(&transaction, &others).await?;
        outcomes::record(self, &transaction, &others).await?;
        written.extend(others.iter().map(|outcome| (outcome.id, outcome.status)));
        transaction.commit().await?;
        Ok(written)
    }
}

fn select(dialect: Dialect, ids: &[Uuid]) -> sea_orm::Select<Entity> {
    Entity::find()
        .select_only()
        .columns([Column::Id, Column::Props, Column::PayloadRef])
        .expr_as(dialect.classes(), "classes")
        .filter(dialect.id_in(ids))
}

/// An outcome is one of a node in `processing`.
async fn mark_processing(
    transaction: &impl ConnectionTrait,
    outcomes: &[&Outcome],
) -> Result<(), StoreError> {
    let ids: Vec<Uuid> = outcomes.iter().map(|outcome| outcome.id).collect();
    if ids.is_empty() {
        return Ok(());
    }
    Entity::update_many()
        .col_expr(Column::EmbeddingStatus, NodeStatus::Processing.as_str().into())
        .filter(Dialect::of(transaction.get_database_backend()).id_in(&ids))
        .exec(transaction)
        .await?;
    Ok(())
}

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    classes: Option<String>,
    props: Option<Value>,
    payload_ref: Option<String>,
}

impl Row {
    /// What another program may have left there and no client can send counts as absent.
    fn into_source(self, rule: TextRule) -> TextSource {
        let props = match self.props {
            Some(Value::Object(props)) => props,
            _ => Map::new(),
        };
        let classes = self.classes.and_then(|classes| serde_json::from_str(&classes).ok());
        let classes: Vec<String> = classes.unwrap_or_default();
        TextSource {
            text: rule.text(&props, &classes),
            payload_ref: self.payload_ref.filter(|place| !place.is_empty()),
        }
    }
}
