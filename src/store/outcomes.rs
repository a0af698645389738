//! How nodes leave `processing` without a vector.

use std::collections::HashMap;

use entity::node::{Column, Entity};
use sea_orm::{ConnectionTrait, EntityTrait, QueryFilter, QuerySelect, Statement, sea_query::Expr};
use serde::Serialize;
use uuid::Uuid;

use super::{
    Outcome, Store, StoreError, Subject, TextHash, TextRule,
    dialect::{Dialect, Kind, to_json},
};

/// The longest reason that a row keeps, in characters.
const ERROR_MAX_CHARS: usize = 500;

impl Store {
    /// Writes how the nodes left `processing` without a vector. A row that is no longer about the
    /// [`Outcome::subject`], or that another session of Postgres holds, keeps what it has. Answers
    /// the nodes that were changed.
    pub async fn record(&self, outcomes: &[Outcome]) -> Result<Vec<Uuid>, StoreError> {
        if outcomes.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes: Vec<&Outcome> = outcomes.iter().collect();
        match self.dialect() {
            Dialect::Postgres => record(self, &self.writer, &outcomes).await,
            Dialect::Sqlite => {
                let transaction = self.begin_write().await?;
                let changed = record(self, &transaction, &outcomes).await?;
                transaction.commit().await?;
                Ok(changed)
            }
        }
    }
}

#[derive(Serialize)]
struct OutcomeRow {
    id: Uuid,
    status: &'static str,
    error: String,
    attempts: i32,
    unread: bool,
    /// Whether `text_hash` must be that of the row, which is null for a row without a text.
    by_text: bool,
    text_hash: Option<String>,
}

impl OutcomeRow {
    fn new(outcome: &Outcome, dialect: Dialect) -> Self {
        Self {
            id: outcome.id,
            status: outcome.status.as_str(),
            // Postgres has no NUL in texts, and would refuse the whole batch for one.
            error: outcome.error.chars().filter(|&c| c != '\0').take(ERROR_MAX_CHARS).collect(),
            attempts: i32::try_from(outcome.attempts).unwrap_or(i32::MAX),
            unread: outcome.subject == Subject::Unread,
            by_text: matches!(outcome.subject, Subject::Text(_)),
            text_hash: match outcome.subject {
                Subject::Text(hash) => hash.map(|hash| dialect.bytes(&hash)),
                Subject::Unread | Subject::Processing => None,
            },
        }
    }
}

const OUTCOME_ROW: [(&str, Kind); 7] = [
    ("id", Kind::Uuid),
    ("status", Kind::Text),
    ("error", Kind::Text),
    ("attempts", Kind::Int),
    ("unread", Kind::Bool),
    ("by_text", Kind::Bool),
    ("text_hash", Kind::Bytes),
];

/// See [`Store::record`]. In SQLite `db` must be a transaction that holds the write lock.
pub(super) async fn record(
    store: &Store,
    db: &impl ConnectionTrait,
    outcomes: &[&Outcome],
) -> Result<Vec<Uuid>, StoreError> {
    let backend = db.get_database_backend();
    let dialect = Dialect::of(backend);
    let outcomes = match dialect {
        Dialect::Postgres => outcomes.to_vec(),
        Dialect::Sqlite => with_their_texts(store.rule, db, outcomes).await?,
    };
    if outcomes.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<OutcomeRow> =
        outcomes.into_iter().map(|outcome| OutcomeRow::new(outcome, dialect)).collect();
    let (with, source) = match dialect {
        Dialect::Postgres => (held_with_their_texts(store.rule), "v".to_owned()),
        Dialect::Sqlite => (String::new(), dialect.rows(&OUTCOME_ROW)),
    };
    // As a case, from which no planner takes a condition that an index by status would be good for.
    let may_end = "CASE WHEN v.unread THEN nodes.embedding_status IN ('processing', 'queued') \
                   ELSE nodes.embedding_status = 'processing' END";
    let sql = format!(
        "{with}UPDATE nodes SET embedding_status = v.status, embedding_error = v.error, \
         embedding_attempts = v.attempts, updated_at = {now} \
         FROM {source} WHERE nodes.id = v.id AND {may_end} \
         RETURNING nodes.id",
        now = dialect.now(),
    );
    let values = [to_json(&rows).into()];
    let changed = db.query_all_raw(Statement::from_sql_and_values(backend, sql, values)).await?;
    Ok(changed.iter().map(|row| row.try_get("", "id")).collect::<Result<_, _>>()?)
}

/// The outcomes whose rows hold the text that they are about, as `v`. The rows are found and locked
/// by their ids alone: only then is a text read, so that no plan reads those of other rows.
fn held_with_their_texts(rule: TextRule) -> String {
    format!(
        "WITH given AS MATERIALIZED (SELECT v.* FROM {rows}), held AS MATERIALIZED ( \
           SELECT n.id, CASE WHEN given.by_text THEN {hash} END AS text_hash \
           FROM given JOIN nodes AS n ON n.id = given.id FOR NO KEY UPDATE OF n SKIP LOCKED \
         ), v AS MATERIALIZED ( \
           SELECT given.* FROM given JOIN held USING (id) \
           WHERE NOT given.by_text OR held.text_hash IS NOT DISTINCT FROM given.text_hash \
         ) ",
        rows = Dialect::Postgres.rows(&OUTCOME_ROW),
        hash = rule.postgres_hash("n"),
    )
}

/// The outcomes whose rows hold the text that they are about; SQLite has no SHA-256.
async fn with_their_texts<'a>(
    rule: TextRule,
    transaction: &impl ConnectionTrait,
    outcomes: &[&'a Outcome],
) -> Result<Vec<&'a Outcome>, StoreError> {
    let by_text = |outcome: &&&Outcome| matches!(outcome.subject, Subject::Text(_));
    let ids: Vec<Uuid> = outcomes.iter().filter(by_text).map(|outcome| outcome.id).collect();
    if ids.is_empty() {
        return Ok(outcomes.to_vec());
    }
    let rows: Vec<(Uuid, Option<String>, Option<String>)> = Entity::find()
        .select_only()
        .columns([Column::Id, Column::Props])
        .expr_as(Expr::cust("classes"), "classes")
        .filter(Dialect::Sqlite.id_in(&ids))
        .into_tuple()
        .all(transaction)
        .await?;
    let hashes: HashMap<Uuid, Option<TextHash>> = rows
        .into_iter()
        .map(|(id, props, classes)| {
            (id, rule.of_sqlite(props.as_deref(), classes.as_deref()).text_hash)
        })
        .collect();
    let is_of_its_row = |outcome: &&Outcome| match outcome.subject {
        Subject::Unread | Subject::Processing => true,
        Subject::Text(hash) => hashes.get(&outcome.id) == Some(&hash),
    };
    Ok(outcomes.iter().copied().filter(is_of_its_row).collect())
}
