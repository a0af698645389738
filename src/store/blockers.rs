//! What a migration of Postgres lacks and waits for, as the catalogue tells it. No statement of
//! another session is ever repeated.

use migration::{INDEXES, Index, OBSOLETE};
use sea_orm::{ConnectionTrait, DbBackend, QueryResult, Statement};

use super::StoreError;

/// The indexes that are not there, or that an attempt to build them left unusable.
pub(super) async fn missing_indexes(db: &impl ConnectionTrait) -> Result<Vec<Index>, StoreError> {
    let usable = of_nodes(db, "i.indisvalid").await?;
    Ok(INDEXES.into_iter().filter(|index| !usable.iter().any(|name| name == index.name)).collect())
}

/// The indexes of older releases that are there.
pub(super) async fn obsolete_indexes(
    db: &impl ConnectionTrait,
) -> Result<Vec<&'static str>, StoreError> {
    let all = of_nodes(db, "true").await?;
    Ok(OBSOLETE.into_iter().filter(|name| all.iter().any(|there| there == name)).collect())
}

async fn of_nodes(db: &impl ConnectionTrait, condition: &str) -> Result<Vec<String>, StoreError> {
    let sql = format!(
        "SELECT c.relname::text AS name FROM pg_index AS i JOIN pg_class AS c \
           ON c.oid = i.indexrelid WHERE i.indrelid = to_regclass('nodes') AND {condition}"
    );
    let rows = db.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await?;
    Ok(rows.iter().map(|row| row.try_get("", "name")).collect::<Result<_, _>>()?)
}

/// Who has held a lock on table `nodes` for longest, as the end of a sentence; nothing if nobody
/// does any more.
pub(super) async fn of_table(db: &impl ConnectionTrait) -> Result<String, StoreError> {
    let sql = "SELECT a.pid, coalesce(a.application_name, '') AS program, \
                 coalesce(a.state, '') AS state, \
                 coalesce(extract(epoch FROM now() - a.xact_start), 0)::bigint AS seconds \
               FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid \
               WHERE l.relation = to_regclass('nodes') AND l.granted AND a.pid <> pg_backend_pid() \
               ORDER BY a.xact_start LIMIT 1";
    let row = db.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await?;
    Ok(row
        .as_ref()
        .map(holder)
        .transpose()?
        .map(|who| format!(", which {who}"))
        .unwrap_or_default())
}

/// How far an index is, and whom its build waits for; `None` if none is being built.
pub(super) async fn of_index_build(
    db: &impl ConnectionTrait,
) -> Result<Option<String>, StoreError> {
    let sql = "SELECT p.phase, p.tuples_done, a.pid, coalesce(a.application_name, '') AS program, \
                 coalesce(a.state, '') AS state, \
                 coalesce(extract(epoch FROM now() - a.xact_start), 0)::bigint AS seconds \
               FROM pg_stat_progress_create_index AS p \
               LEFT JOIN pg_stat_activity AS a ON a.pid = nullif(p.current_locker_pid, 0) \
               WHERE p.relid = to_regclass('nodes') LIMIT 1";
    let row = db.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await?;
    let Some(row) = row else { return Ok(None) };
    let (phase, rows): (String, i64) = (row.try_get("", "phase")?, row.try_get("", "tuples_done")?);
    if row.try_get::<Option<i32>>("", "pid")?.is_some() {
        return Ok(Some(format!("the index waits for a transaction, which {}", holder(&row)?)));
    }
    Ok(Some(format!("the index is in the phase \"{phase}\", {rows} rows done")))
}

fn holder(row: &QueryResult) -> Result<String, StoreError> {
    let (pid, seconds): (i32, i64) = (row.try_get("", "pid")?, row.try_get("", "seconds")?);
    let (program, state): (String, String) =
        (row.try_get("", "program")?, row.try_get("", "state")?);
    Ok(format!("session {pid} ({program:?}, {state}) has had open for {seconds} s"))
}
