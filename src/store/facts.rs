//! What the program needs to know of the database that it found: which one it is, and which tables
//! of an ActiveKG installation want a row with each vector.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, Ordering},
};

use sea_orm::{ConnectionTrait, DbBackend, Statement};
use sha2::{Digest, Sha256};
use tracing::warn;

use super::{
    Store, StoreError,
    dialect::{Dialect, hex},
};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Identifies the database, if the server says it.
    identity: OnceLock<Option<String>>,
    /// Whether `embedding_history` keeps what becomes of vectors.
    has_history: AtomicBool,
    /// Whether `events` tells of vectors that moved.
    has_events: AtomicBool,
    /// Whether rows were hidden from us when that was last looked at.
    is_hidden: AtomicBool,
}

impl Facts {
    /// Notes whether rows are hidden from us now; answers whether they were before.
    pub(super) fn note_hidden(&self, is_hidden: bool) -> bool {
        self.is_hidden.swap(is_hidden, Ordering::Relaxed)
    }

    pub(super) fn has_history(&self) -> bool {
        self.has_history.load(Ordering::Relaxed)
    }

    pub(super) fn has_events(&self) -> bool {
        self.has_events.load(Ordering::Relaxed)
    }
}

/// The same on all servers of a cluster, and another after a dump was restored elsewhere.
const POSTGRES_IDENTITY: &str = "\
SELECT c.system_identifier::text || ':' || d.oid::text AS name \
FROM pg_control_system() AS c, pg_database AS d WHERE d.datname = current_database()";
const SQLITE_IDENTITY: &str = "SELECT file AS name FROM pragma_database_list WHERE name = 'main'";
/// Bytes of a hash that tell two databases apart.
const IDENTITY_BYTES: usize = 8;

/// The tables of ActiveKG that are written, with the columns that are.
const HISTORY: (&str, &[&str]) =
    ("embedding_history", &["node_id", "drift_score", "embedding_ref"]);
const EVENTS: (&str, &[&str]) =
    ("events", &["node_id", "type", "payload", "tenant_id", "actor_id", "actor_type"]);

impl Store {
    /// Identifies this database; `None` before [`Store::migrate`], or if the server does not say.
    pub fn identity(&self) -> Option<&str> {
        self.facts.identity.get()?.as_deref()
    }

    pub(super) async fn look_around(&self) -> Result<(), StoreError> {
        let identity = self.identify().await?;
        // Another caller found the same.
        let _ = self.facts.identity.set(identity);
        self.look_beside().await.map(drop)
    }

    /// Finds out which tables beside `nodes` are written; answers whether that has changed.
    pub(super) async fn look_beside(&self) -> Result<bool, StoreError> {
        if matches!(self.dialect(), Dialect::Sqlite) {
            return Ok(false);
        }
        let (history, events) = (self.may_fill(HISTORY).await?, self.may_fill(EVENTS).await?);
        let had_history = self.facts.has_history.swap(history, Ordering::Relaxed);
        let had_events = self.facts.has_events.swap(events, Ordering::Relaxed);
        Ok((had_history, had_events) != (history, events))
    }

    async fn identify(&self) -> Result<Option<String>, StoreError> {
        let (backend, sql) = match self.dialect() {
            Dialect::Postgres => (DbBackend::Postgres, POSTGRES_IDENTITY),
            Dialect::Sqlite => (DbBackend::Sqlite, SQLITE_IDENTITY),
        };
        let row = self.writer.query_one_raw(Statement::from_string(backend, sql)).await;
        let name: String = match row.map_err(StoreError::from) {
            Ok(Some(row)) => row.try_get("", "name")?,
            Ok(None) | Err(StoreError::Refused(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(hex(&Sha256::digest(name)[..IDENTITY_BYTES])))
    }

    /// Whether a table is there, has these columns, and takes rows from us.
    async fn may_fill(&self, (table, columns): (&str, &[&str])) -> Result<bool, StoreError> {
        let names: Vec<String> = columns.iter().map(|name| format!("'{name}'")).collect();
        let sql = format!(
            "SELECT has_table_privilege(c.oid, 'INSERT') AS may_insert, \
               (SELECT count(*) FROM pg_attribute AS a WHERE a.attrelid = c.oid \
                  AND NOT a.attisdropped AND a.attname IN ({names})) = {count} AS has_columns \
             FROM pg_class AS c WHERE c.oid = to_regclass('{table}')",
            names = names.join(", "),
            count = columns.len(),
        );
        let statement = Statement::from_string(DbBackend::Postgres, sql);
        let Some(row) = self.writer.query_one_raw(statement).await? else { return Ok(false) };
        if !row.try_get::<bool>("", "has_columns")? {
            return Ok(false);
        }
        let may = row.try_get("", "may_insert")? && self.check_sight(table).await.is_ok();
        if !may {
            warn!("table {table} is not written: the role may not insert all rows there");
        }
        Ok(may)
    }
}
