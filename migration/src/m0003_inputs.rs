//! What the vectors were made of, so that equal inputs of the same model are embedded once.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{ConnectionTrait, DbBackend},
};

use crate::m0001_nodes::columns_of_nodes;

/// Adds the columns.
pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0003_inputs"
    }
}

/// Each with its type in Postgres and in SQLite.
const COLUMNS: [(&str, &str, &str); 2] = [
    ("embedding_input_hash", "bytea", "blob"),
    // Of the vector: another program that writes one leaves our columns as they are.
    ("embedding_checksum", "bigint", "integer"),
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        let backend = db.get_database_backend();
        let present = columns_of_nodes(db, backend).await?;
        for (name, postgres, sqlite) in COLUMNS.iter().filter(|column| !present.contains(column.0))
        {
            let kind = if backend == DbBackend::Sqlite { sqlite } else { postgres };
            db.execute_unprepared(&format!("ALTER TABLE nodes ADD COLUMN {name} {kind}")).await?;
        }
        Ok(())
    }
}
