//! Table `nodes` with its columns, as far as they are not there yet.

use std::collections::HashSet;

use sea_orm_migration::{
    prelude::*,
    sea_orm::{ConnectionTrait, DbBackend, Statement},
};

/// Creates what is missing of table `nodes`.
pub(crate) struct Migration {
    pub(crate) dimension: usize,
}

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0001_nodes"
    }
}

/// A column: its name, its type in Postgres, its type in SQLite. All but the key can be added to
/// a table that has rows.
type Column = (&'static str, &'static str, &'static str);

/// The type in Postgres that depends on the model.
const VECTOR: &str = "vector";

const COLUMNS: [Column; 20] = [
    ("id", "uuid PRIMARY KEY", "blob NOT NULL PRIMARY KEY"),
    ("tenant_id", "text", "text"),
    ("classes", "text[]", "text"),
    ("props", "jsonb", "text"),
    ("payload_ref", "text", "text"),
    ("embedding", VECTOR, "blob"),
    ("embedding_status", "text NOT NULL DEFAULT 'queued'", "text NOT NULL DEFAULT 'queued'"),
    ("embedding_error", "text", "text"),
    ("embedding_attempts", "integer NOT NULL DEFAULT 0", "integer NOT NULL DEFAULT 0"),
    ("embedding_updated_at", "timestamptz", "text"),
    ("metadata", "jsonb", "text"),
    ("refresh_policy", "jsonb", "text"),
    ("triggers", "jsonb", "text"),
    ("version", "integer NOT NULL DEFAULT 1", "integer NOT NULL DEFAULT 1"),
    ("last_refreshed", "timestamptz", "text"),
    ("drift_score", "double precision", "double"),
    ("created_at", "timestamptz DEFAULT now()", "text"),
    ("updated_at", "timestamptz DEFAULT now()", "text"),
    ("embedding_source_hash", "text", "text"),
    ("embedding_truncated", "boolean", "boolean"),
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        let backend = db.get_database_backend();
        let present = columns_of_nodes(db, backend).await?;
        let definitions = COLUMNS
            .iter()
            .filter(|(name, ..)| !present.contains(*name))
            .map(|column| self.definition(column, backend));
        if present.is_empty() {
            let columns: Vec<String> = definitions.collect();
            let create = format!("CREATE TABLE nodes ({})", columns.join(", "));
            db.execute_unprepared(&create).await?;
        } else {
            for definition in definitions {
                db.execute_unprepared(&format!("ALTER TABLE nodes ADD COLUMN {definition}"))
                    .await?;
            }
        }
        Ok(())
    }
}

impl Migration {
    fn definition(&self, (name, postgres, sqlite): &Column, backend: DbBackend) -> String {
        match backend {
            DbBackend::Sqlite => format!("{name} {sqlite}"),
            _ if *postgres == VECTOR => format!("{name} vector({})", self.dimension),
            _ => format!("{name} {postgres}"),
        }
    }
}

/// The columns that table `nodes` has; none if there is no such table.
pub(crate) async fn columns_of_nodes(
    db: &impl ConnectionTrait,
    backend: DbBackend,
) -> Result<HashSet<String>, DbErr> {
    let sql = match backend {
        DbBackend::Sqlite => "SELECT name FROM pragma_table_info('nodes')",
        _ => {
            "SELECT attname::text AS name FROM pg_attribute \
             WHERE attrelid = to_regclass('nodes') AND attnum > 0 AND NOT attisdropped"
        }
    };
    db.query_all_raw(Statement::from_string(backend, sql))
        .await?
        .iter()
        .map(|row| row.try_get("", "name"))
        .collect()
}
