//! One checker for every run, against the stores themselves.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use serde_json::Value;
use vecmill::domain::node::text_of_props;

use super::{
    common::{cosine, vector_of, wait_until},
    site::Site,
};

/// How long a site may take to come to rest after the last fault.
const REST_WITHIN: Duration = Duration::from_secs(120);

/// What a run came to.
#[derive(Default)]
pub struct Checked {
    /// Rows.
    pub nodes: usize,
    /// Of these, `failed`.
    pub failed: usize,
    /// Acknowledged nodes that did not come to an end.
    pub lost: usize,
    /// Texts that were embedded, less the vectors that are stored.
    pub embedded_again: usize,
}

impl Checked {
    /// What came since an earlier look at the same site.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            nodes: self.nodes - earlier.nodes,
            failed: self.failed - earlier.failed,
            lost: self.lost - earlier.lost,
            embedded_again: self.embedded_again - earlier.embedded_again,
        }
    }
}

/// What a run may end with.
#[derive(Default)]
pub struct Expected<'a> {
    /// Nodes that must be there: all that were acknowledged.
    pub ids: &'a [String],
    /// The texts that cannot be embedded: their nodes must fail, and no others may.
    pub failing: &'a [&'a str],
    /// The most failed attempts of any node.
    pub attempts: u64,
    /// Results of the model at most that the faults made worthless; `None` if that is not known.
    pub embedded_again: Option<usize>,
}

/// A row, as far as it is checked.
pub struct Row {
    pub id: String,
    pub text: Option<String>,
    pub vector: Option<Vec<f32>>,
    pub status: String,
    pub error: String,
    pub attempts: u64,
}

/// All rows of the site.
pub async fn rows(db: &DatabaseConnection) -> Vec<Row> {
    let is_sqlite = db.get_database_backend() == DbBackend::Sqlite;
    let (id, vector) = match is_sqlite {
        true => ("lower(hex(id))", "hex(embedding)"),
        false => ("replace(id::text, '-', '')", "embedding::text"),
    };
    let query = format!(
        "SELECT {id} AS id, CAST(props AS text) AS props, {vector} AS vector, \
         embedding_status AS status, coalesce(embedding_error, '') AS error, \
         embedding_attempts AS attempts FROM nodes"
    );
    let statement = Statement::from_string(db.get_database_backend(), query);
    let found = db.query_all_raw(statement).await.unwrap();
    let read = |row: &sea_orm::QueryResult| {
        let vector: Option<String> = row.try_get("", "vector").unwrap();
        let vector = vector.filter(|vector| !vector.is_empty());
        let props: Value =
            serde_json::from_str(&row.try_get::<String>("", "props").unwrap()).unwrap();
        Row {
            id: row.try_get("", "id").unwrap(),
            text: text_of_props(props.as_object().unwrap()).map(str::to_owned),
            vector: vector.map(|vector| match is_sqlite {
                true => components(&vector),
                false => serde_json::from_str(&vector).unwrap(),
            }),
            status: row.try_get("", "status").unwrap(),
            error: row.try_get("", "error").unwrap(),
            attempts: row.try_get::<i32>("", "attempts").unwrap().try_into().unwrap(),
        }
    };
    found.iter().map(read).collect()
}

/// The components of a vector in SQLite, from hexadecimal digits.
fn components(digits: &str) -> Vec<f32> {
    let byte = |i: usize| u8::from_str_radix(&digits[i..i + 2], 16).unwrap();
    let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Waits for rest: no row open, no job live.
pub async fn rest(site: &Site, db: &DatabaseConnection) {
    let open = "SELECT count(*) FROM nodes WHERE embedding_status IN ('queued', 'processing')";
    wait_until(REST_WITHIN, async || {
        let statement = Statement::from_string(db.get_database_backend(), open);
        let row = db.query_one_raw(statement).await.unwrap().unwrap();
        let jobs =
            ["LLEN embedding:queue", "ZCARD embedding:retry", "HLEN embedding:queue:inflight"];
        row.try_get_by_index::<i64>(0).unwrap() == 0
            && jobs.iter().all(|command| site.redis(command) == "0")
    })
    .await;
}

/// Waits until the site is at rest, and checks everything that was promised.
pub async fn check(site: &Site, expected: &Expected<'_>) -> Checked {
    let db = site.database().await;
    rest(site, &db).await;
    let rows = rows(&db).await;
    db.close().await.unwrap();

    let lost = lost(&rows, expected.ids);
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let ready = every_vector_is_that_of_its_text(&rows);
    only_bad_texts_fail(&rows, expected);
    dead_letters_name_failed_rows_once(site, &rows);
    // The keys of the last jobs go a moment after their rows are done; counts that a fault made
    // wrong are mended by the next sweep.
    wait_until(REST_WITHIN, async || site.redis_keys().is_empty()).await;

    let embedded = site.embedded();
    let embedded_again = embedded.saturating_sub(ready);
    println!("{} nodes, {embedded} texts embedded, {embedded_again} of them again", rows.len());
    if let Some(most) = expected.embedded_again {
        assert!(embedded_again <= most, "{embedded_again} embedded again; {most} explained");
    }
    let failed = rows.iter().filter(|row| row.status == "failed").count();
    Checked { nodes: rows.len(), failed, lost: lost.len(), embedded_again }
}

/// Acknowledged nodes that are gone or did not come to an end.
fn lost<'a>(rows: &[Row], ids: &'a [String]) -> Vec<&'a String> {
    let is_ended = |row: &&Row| ["ready", "failed", "skipped"].contains(&row.status.as_str());
    let ended: HashSet<&str> = rows.iter().filter(is_ended).map(|row| row.id.as_str()).collect();
    ids.iter().filter(|id| !ended.contains(id.replace('-', "").as_str())).collect()
}

/// Answers how many rows are `ready`.
fn every_vector_is_that_of_its_text(rows: &[Row]) -> usize {
    let ready: Vec<&Row> = rows.iter().filter(|row| row.status == "ready").collect();
    for row in &ready {
        let text = row.text.as_deref().unwrap();
        let vector = row.vector.as_deref().unwrap_or_else(|| panic!("{} has no vector", row.id));
        let similarity = cosine(vector, &vector_of(text));
        assert!(similarity > 0.999_99, "{} has the vector of another text: {similarity}", row.id);
    }
    ready.len()
}

fn only_bad_texts_fail(rows: &[Row], expected: &Expected<'_>) {
    for row in rows {
        let text = row.text.as_deref().unwrap_or_default();
        let status = match (text.is_empty(), expected.failing.contains(&text)) {
            (true, _) => "skipped",
            (false, true) => "failed",
            (false, false) => "ready",
        };
        assert_eq!(row.status, status, "{}: {} after {}", row.id, row.error, row.attempts);
        // The one that succeeds counts, too.
        assert!(row.attempts <= expected.attempts + 1, "{} took {} attempts", row.id, row.attempts);
    }
}

fn dead_letters_name_failed_rows_once(site: &Site, rows: &[Row]) {
    let mut letters: HashMap<String, usize> = HashMap::new();
    for letter in site.redis("LRANGE embedding:dlq 0 -1").lines() {
        let letter: Value = serde_json::from_str(letter).unwrap();
        if let Some(node) = letter["node_id"].as_str() {
            assert!(letter["error"].is_string() && letter["failed_at"].is_number(), "{letter}");
            *letters.entry(node.replace('-', "")).or_default() += 1;
        }
    }
    let failed = rows.iter().filter(|row| row.status == "failed").map(|row| (row.id.clone(), 1));
    assert_eq!(letters, failed.collect(), "a dead letter for each failed row, and no other");
}
