//! Storing vectors: one guarded statement a batch.

use std::collections::HashMap;

use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, FromQueryResult, QueryResult, Statement,
    sea_query::{Alias, Query},
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    Store, StoreError, Vector,
    dialect::{Dialect, Kind, to_json},
};

impl Store {
    /// Stores the vectors and marks their nodes `ready`; answers the ids of those stored.
    ///
    /// A row takes its vector only while its text still is the one that was embedded, and no other
    /// session of Postgres holds it. A vector whose length is not the dimension of the store fails the batch.
    pub async fn complete(&self, vectors: &[Vector]) -> Result<Vec<Uuid>, StoreError> {
        let vectors: Vec<&Vector> = vectors.iter().collect();
        match self.dialect() {
            Dialect::Postgres => match complete(self, &self.writer, &vectors).await {
                // A table beside may be gone, or closed to us: no vector is to blame for that.
                Err(StoreError::Refused(_)) if self.look_beside().await? => {
                    complete(self, &self.writer, &vectors).await
                }
                answer => answer,
            },
            Dialect::Sqlite => {
                let transaction = self.begin_write().await?;
                let stored = complete(self, &transaction, &vectors).await?;
                transaction.commit().await?;
                Ok(stored)
            }
        }
    }
}

/// See [`Store::complete`]. In SQLite `db` must be a transaction that holds the write lock.
pub(super) async fn complete(
    store: &Store,
    db: &impl ConnectionTrait,
    vectors: &[&Vector],
) -> Result<Vec<Uuid>, StoreError> {
    let dimension = store.dimension;
    if vectors.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(wrong) = vectors.iter().find(|vector| vector.values.len() != dimension) {
        return Err(StoreError::Dimension { column: dimension, model: wrong.values.len() });
    }
    match Dialect::of(db.get_database_backend()) {
        Dialect::Postgres => complete_postgres(store, db, vectors).await,
        Dialect::Sqlite => complete_sqlite(store, db, vectors).await,
    }
}

/// A vector as the database unfolds it, with what one of the two databases needs beside.
#[derive(Serialize)]
struct VectorRow<'a> {
    id: Uuid,
    source_hash: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_hash: Option<String>,
    checksum: i64,
    truncated: bool,
    attempts: i32,
    /// Of its components among those of all vectors, counted in vectors.
    position: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drift: Option<f64>,
}

impl<'a> VectorRow<'a> {
    fn new(position: usize, vector: &'a Vector, dialect: Dialect) -> Self {
        Self {
            position,
            id: vector.id,
            source_hash: &vector.source_hash,
            input_hash: vector.input_hash.map(|hash| dialect.bytes(&hash)),
            checksum: checksum(&vector.values),
            truncated: vector.truncated,
            attempts: i32::try_from(vector.failed_attempts).unwrap_or(i32::MAX).saturating_add(1),
            text_hash: None,
            drift: None,
        }
    }
}

const VECTOR_ROW: [(&str, Kind); 7] = [
    ("id", Kind::Uuid),
    ("position", Kind::Int),
    ("source_hash", Kind::Text),
    ("input_hash", Kind::Bytes),
    ("checksum", Kind::Long),
    ("truncated", Kind::Bool),
    ("attempts", Kind::Int),
];

/// The assignments of a success; `v` is the row source.
fn assignments(dialect: Dialect) -> String {
    format!(
        "embedding_status = 'ready', embedding_error = NULL, \
         embedding_attempts = v.attempts, embedding_source_hash = v.source_hash, \
         embedding_input_hash = v.input_hash, embedding_checksum = v.checksum, \
         embedding_truncated = v.truncated, embedding_updated_at = {now}, \
         last_refreshed = {now}, updated_at = {now}",
        now = dialect.now()
    )
}

/// The texts are compared by their hashes, so that none travels to the database again. The
/// components of all vectors travel as one binary array, and are cut apart there.
async fn complete_postgres(
    store: &Store,
    db: &impl ConnectionTrait,
    vectors: &[&Vector],
) -> Result<Vec<Uuid>, StoreError> {
    let rows: Vec<VectorRow<'_>> = vectors
        .iter()
        .enumerate()
        .map(|(position, vector)| VectorRow {
            text_hash: vector.text_hash.map(|hash| Dialect::Postgres.bytes(&hash)),
            ..VectorRow::new(position, vector, Dialect::Postgres)
        })
        .collect();
    let components: Vec<f32> =
        vectors.iter().flat_map(|vector| vector.values.iter().copied()).collect();
    let fields = [VECTOR_ROW.as_slice(), &[("text_hash", Kind::Bytes)]];
    // The rows are found and locked by their ids alone: only then are their texts read, so that no
    // plan reads those of other rows. A row that another session holds is passed over.
    let sql = format!(
        "WITH v AS MATERIALIZED ( \
           SELECT v.*, ($2::real[])[v.position * $3 + 1 : (v.position + 1) * $3]::vector \
                       AS embedding \
           FROM {rows} \
         ), held AS MATERIALIZED ( \
           SELECT n.id, {text_hash} AS text_hash FROM v JOIN nodes AS n ON n.id = v.id \
           FOR NO KEY UPDATE OF n SKIP LOCKED \
         ), stored AS ( \
           UPDATE nodes AS n SET {assignments}, embedding = v.embedding, drift_score = CASE \
               WHEN n.embedding IS NULL OR vector_dims(n.embedding) <> $3 THEN 0 \
               ELSE coalesce(nullif(n.embedding <=> v.embedding, 'NaN'), 0) END \
           FROM v JOIN held ON held.id = v.id \
             AND (v.text_hash IS NULL OR held.text_hash = v.text_hash) \
           WHERE n.id = held.id \
           RETURNING n.id, n.tenant_id, n.payload_ref, n.refresh_policy, n.drift_score \
         ){beside} SELECT id FROM stored",
        rows = Dialect::Postgres.rows(&fields.concat()),
        assignments = assignments(Dialect::Postgres),
        text_hash = store.rule.postgres_hash("n"),
        beside = beside(store),
    );
    let dimension = i32::try_from(store.dimension).unwrap_or(i32::MAX);
    let values = [to_json(&rows).into(), components.into(), dimension.into()];
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
    let stored = db.query_all_raw(statement).await?;
    Ok(stored.iter().map(|row| row.try_get("", "id")).collect::<Result<_, _>>()?)
}

/// What the tables of an ActiveKG installation get with each vector: a row of its history, and an
/// event when the vector has moved further than the node's policy lets it.
fn beside(store: &Store) -> String {
    let mut sql = String::new();
    if store.facts.has_history() {
        sql.push_str(
            ", history AS ( \
               INSERT INTO embedding_history (node_id, drift_score, embedding_ref) \
               SELECT id, drift_score, payload_ref FROM stored ON CONFLICT DO NOTHING)",
        );
    }
    if store.facts.has_events() {
        sql.push_str(
            ", moved AS ( \
               INSERT INTO events (node_id, type, payload, tenant_id, actor_id, actor_type) \
               SELECT id, 'refreshed', jsonb_build_object('drift_score', drift_score, \
                        'last_refreshed', now(), 'auto_embed', true), \
                      tenant_id, 'embedding_worker', 'system' \
               FROM stored WHERE drift_score::numeric > CASE \
                 WHEN jsonb_typeof(refresh_policy->'drift_threshold') = 'number' \
                 THEN (refresh_policy->>'drift_threshold')::numeric ELSE 0.1 END)",
        );
    }
    sql
}

/// What the guard and the drift look at.
#[derive(FromQueryResult)]
struct OldRow {
    id: Uuid,
    props: Option<String>,
    classes: Option<String>,
    embedding: Option<Vec<u8>>,
}

/// As in Postgres, the components of all vectors travel as one value.
async fn complete_sqlite(
    store: &Store,
    db: &impl ConnectionTrait,
    vectors: &[&Vector],
) -> Result<Vec<Uuid>, StoreError> {
    let ids: Vec<Uuid> = vectors.iter().map(|vector| vector.id).collect();
    let columns = ["id", "props", "classes", "embedding"].map(Alias::new);
    let select = Query::select()
        .columns(columns)
        .from(Alias::new("nodes"))
        .and_where(Dialect::Sqlite.id_in(&ids))
        .take();
    let old: HashMap<Uuid, OldRow> = db
        .query_all(&select)
        .await?
        .iter()
        .map(|row| OldRow::from_query_result(row, "").map(|row| (row.id, row)))
        .collect::<Result<_, _>>()?;
    let mut components: Vec<u8> = Vec::new();
    let mut rows: Vec<VectorRow<'_>> = Vec::with_capacity(vectors.len());
    for vector in vectors {
        let Some(old) = old.get(&vector.id) else { continue };
        let now = store.rule.of_sqlite(old.props.as_deref(), old.classes.as_deref());
        if vector.text_hash.is_some() && now.text_hash != vector.text_hash {
            continue;
        }
        let drift =
            old.embedding.as_deref().map_or(0.0, |old| drift(&from_blob(old), &vector.values));
        components.extend(to_blob(&vector.values));
        rows.push(VectorRow {
            drift: Some(drift),
            ..VectorRow::new(rows.len(), vector, Dialect::Sqlite)
        });
    }
    let fields = [VECTOR_ROW.as_slice(), &[("drift", Kind::Double)]];
    let sql = format!(
        "UPDATE nodes AS n SET {assignments}, drift_score = v.drift, \
         embedding = substr($2, v.position * $3 + 1, $3) \
         FROM {rows} WHERE n.id = v.id",
        assignments = assignments(Dialect::Sqlite),
        rows = Dialect::Sqlite.rows(&fields.concat()),
    );
    let bytes = i64::try_from(store.dimension * size_of::<f32>()).unwrap_or(i64::MAX);
    let values = [to_json(&rows).into(), components.into(), bytes.into()];
    db.execute_raw(Statement::from_sql_and_values(DbBackend::Sqlite, sql, values)).await?;
    Ok(rows.iter().map(|row| row.id).collect())
}

/// 1 − cosine; 0 when there is nothing to compare, as in Postgres.
fn drift(old: &[f32], new: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let norms = dot(old, old).sqrt() * dot(new, new).sqrt();
    if old.len() != new.len() || norms == 0.0 {
        return 0.0;
    }
    1.0 - (dot(old, new) / norms).clamp(-1.0, 1.0)
}

fn to_blob(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Tells whether a vector is still the one that was stored with this (of its SHA-256).
pub(super) fn checksum(values: &[f32]) -> i64 {
    let digest: [u8; 32] = Sha256::digest(to_blob(values)).into();
    i64::from_be_bytes(std::array::from_fn(|i| digest[i]))
}

/// The vector in a row that holds [`Dialect::embedding`].
pub(super) fn read_embedding(
    dialect: Dialect,
    row: &QueryResult,
) -> Result<Option<Vec<f32>>, DbErr> {
    Ok(match dialect {
        Dialect::Postgres => row.try_get("", "embedding")?,
        Dialect::Sqlite => {
            let blob: Option<Vec<u8>> = row.try_get("", "embedding")?;
            blob.as_deref().map(from_blob)
        }
    })
}

/// The components of a vector in SQLite.
fn from_blob(blob: &[u8]) -> Vec<f32> {
    let (values, _) = blob.as_chunks::<4>();
    values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}
