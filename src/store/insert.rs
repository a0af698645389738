//! Writing new nodes. One that the database refuses harms no other.

use std::{collections::HashSet, io, ops::Range};

use entity::node::{Column, Entity};
use sea_orm::{ConnectionTrait, EntityTrait, QueryFilter, QuerySelect, Statement};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    Outcome, Refusal, Refusals, Store, StoreError, Transaction, Vector,
    dialect::{Dialect, Kind, to_json},
    outcomes, results,
};
use crate::{
    domain::{NewNode, NodeStatus},
    heavy,
};

/// What becomes of the others when the database refuses some of the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRefusal {
    /// They are written.
    KeepOthers,
    /// Nothing is written.
    KeepNone,
}

/// A new node as the database unfolds it.
#[derive(Serialize)]
struct NewRow<'a> {
    id: Uuid,
    tenant_id: &'a str,
    classes: &'a [String],
    props: &'a Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_ref: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_policy: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    triggers: Option<&'a Value>,
}

const NEW_ROW: [(&str, Kind); 8] = [
    ("id", Kind::Uuid),
    ("tenant_id", Kind::Text),
    ("classes", Kind::Texts),
    ("props", Kind::Json),
    ("payload_ref", Kind::Text),
    ("metadata", Kind::Json),
    ("refresh_policy", Kind::Json),
    ("triggers", Kind::Json),
];

/// How a node stands when it is written.
#[derive(Debug, Clone, Copy)]
pub struct Birth {
    /// Its status.
    pub status: NodeStatus,
    /// Why it has that.
    pub reason: Option<&'static str>,
}

impl From<NodeStatus> for Birth {
    fn from(status: NodeStatus) -> Self {
        Self { status, reason: None }
    }
}

impl Store {
    /// Writes the nodes; they are durable when this returns. Answers of each why the database
    /// refused it, if it did; with [`OnRefusal::KeepNone`] and a refusal none is written.
    pub async fn insert_nodes(
        &self,
        nodes: &[NewNode],
        birth: impl Into<Birth>,
        on_refusal: OnRefusal,
    ) -> Result<Refusals, StoreError> {
        let birth = birth.into();
        if on_refusal == OnRefusal::KeepOthers || nodes.len() == 1 {
            // Without a refusal, one statement is all that it takes.
            match insert(&self.writer, nodes.iter(), birth).await {
                Ok(written) => return Ok(left_out(nodes, &written)),
                Err(StoreError::Row(refusal)) if nodes.len() == 1 => {
                    return Ok(vec![Some(refusal)]);
                }
                Err(StoreError::Row(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.repeated(|| self.write_each(nodes, birth, on_refusal)).await
    }

    /// Writes nodes that were embedded before they were stored: each with its vector as `ready`,
    /// or with the outcome that it has instead. Answers as [`Store::insert_nodes`].
    pub async fn insert_ready(
        &self,
        nodes: &[(NewNode, Result<Vector, Outcome>)],
        on_refusal: OnRefusal,
    ) -> Result<Refusals, StoreError> {
        self.repeated(|| self.write_each(nodes, NodeStatus::Processing.into(), on_refusal)).await
    }

    /// Writes rows in one transaction, in halves of halves where the database refuses some, until
    /// those at fault are alone.
    async fn write_each<T: New>(
        &self,
        rows: &[T],
        birth: Birth,
        on_refusal: OnRefusal,
    ) -> Result<Refusals, StoreError> {
        let mut refusals: Refusals = vec![None; rows.len()];
        let transaction = self.begin_write().await?;
        let mut parts: Vec<Range<usize>> = Vec::new();
        parts.push(0..rows.len());
        while let Some(part) = parts.pop() {
            let savepoint = transaction.savepoint().await?;
            match T::write(&rows[part.clone()], self, &savepoint, birth).await {
                Ok(()) => savepoint.commit().await?,
                Err(StoreError::Row(refusal)) => {
                    savepoint.rollback().await?;
                    if part.len() == 1 {
                        refusals[part.start] = Some(refusal);
                    } else {
                        let middle = part.start + part.len() / 2;
                        parts.extend([middle..part.end, part.start..middle]);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if on_refusal == OnRefusal::KeepNone && refusals.iter().any(Option::is_some) {
            transaction.rollback().await?;
        } else {
            transaction.commit().await?;
        }
        Ok(refusals)
    }
}

/// What can be written as new rows.
trait New: Sized + Sync {
    /// Writes all of them.
    ///
    /// # Errors
    /// [`StoreError::Row`] when the database refuses one.
    fn write(
        rows: &[Self],
        store: &Store,
        db: &Transaction,
        birth: Birth,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl New for NewNode {
    async fn write(
        nodes: &[Self],
        _store: &Store,
        db: &Transaction,
        birth: Birth,
    ) -> Result<(), StoreError> {
        let written = insert(db, nodes.iter(), birth).await?;
        if written.len() == nodes.len() {
            Ok(())
        } else {
            Err(StoreError::Row(Refusal::left_out()))
        }
    }
}

impl New for (NewNode, Result<Vector, Outcome>) {
    async fn write(
        nodes: &[Self],
        store: &Store,
        db: &Transaction,
        birth: Birth,
    ) -> Result<(), StoreError> {
        let written = insert(db, nodes.iter().map(|(node, _)| node), birth).await?;
        if written.len() < nodes.len() {
            return Err(StoreError::Row(Refusal::left_out()));
        }
        let vectors: Vec<&Vector> =
            nodes.iter().filter_map(|(_, result)| result.as_ref().ok()).collect();
        let stored = results::complete(store, db, &vectors).await?;
        if stored.len() != vectors.len() {
            return Err(StoreError::Refused(sea_orm::DbErr::RecordNotUpdated));
        }
        let outcomes: Vec<&Outcome> =
            nodes.iter().filter_map(|(_, result)| result.as_ref().err()).collect();
        outcomes::record(store, db, &outcomes).await.map(drop)
    }
}

/// Bytes of rows that are written in about 100 µs: with more, others would wait.
const AT_ONCE: usize = 64 << 10;

/// The first bytes of rows; it takes no more of them.
struct First(Vec<u8>);

impl io::Write for First {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > AT_ONCE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The rows as JSON. How much that is shows when it is written.
fn written(rows: &[NewRow<'_>]) -> String {
    let mut first = First(Vec::with_capacity(1 << 10));
    let all = serde_json::to_writer(&mut first, rows).ok().and(String::from_utf8(first.0).ok());
    all.unwrap_or_else(|| heavy::in_place(|| to_json(rows)))
}

fn left_out(nodes: &[NewNode], written: &HashSet<Uuid>) -> Refusals {
    nodes.iter().map(|node| (!written.contains(&node.id)).then(Refusal::left_out)).collect()
}

/// Answers the rows that were written: a trigger may leave some out without a word, and a
/// connection that runs another statement than it was given wrote none.
async fn insert(
    db: &impl ConnectionTrait,
    nodes: impl Iterator<Item = &NewNode>,
    birth: Birth,
) -> Result<HashSet<Uuid>, StoreError> {
    let rows: Vec<NewRow<'_>> = nodes
        .map(|node| NewRow {
            id: node.id,
            tenant_id: node.tenant_id.as_str(),
            classes: &node.classes,
            props: &node.props,
            payload_ref: node.payload_ref.as_deref(),
            metadata: node.metadata.as_ref().filter(|value| !value.is_null()),
            refresh_policy: node.refresh_policy.as_ref().filter(|value| !value.is_null()),
            triggers: node.triggers.as_ref().filter(|value| !value.is_null()),
        })
        .collect();
    let backend = db.get_database_backend();
    let dialect = Dialect::of(backend);
    let columns = NEW_ROW.map(|(name, _)| name).join(", ");
    // An ActiveKG database takes no null there.
    let values = NEW_ROW.map(|(name, _)| match name {
        "metadata" | "refresh_policy" => format!("coalesce({name}, '{{}}')"),
        "triggers" => format!("coalesce({name}, '[]')"),
        _ => name.to_owned(),
    });
    let sql = format!(
        "INSERT INTO nodes ({columns}, embedding_status, embedding_error, embedding_attempts, \
         version, created_at, updated_at) \
         SELECT {values}, $2, $3, 0, 1, {now}, {now} FROM {rows}",
        values = values.join(", "),
        now = dialect.now(),
        rows = dialect.rows(&NEW_ROW),
    );
    let values = [written(&rows).into(), birth.status.as_str().into(), birth.reason.into()];
    let statement = |sql: &str| Statement::from_sql_and_values(backend, sql, values);
    if matches!(dialect, Dialect::Sqlite) {
        // Nobody stands in between, and a count is cheaper than the ids.
        let written = db.execute_raw(statement(&sql)).await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        if written.rows_affected() == ids.len() as u64 {
            return Ok(ids.into_iter().collect());
        }
        let there = Entity::find().select_only().column(Column::Id).filter(dialect.id_in(&ids));
        return Ok(there.into_tuple().all(db).await?.into_iter().collect());
    }
    let written = db.query_all_raw(statement(&format!("{sql} RETURNING id"))).await?;
    Ok(written.iter().map(|row| row.try_get("", "id")).collect::<Result<_, _>>()?)
}
