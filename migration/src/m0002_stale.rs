//! An index of the rows whose vector is known to be of an older text, for the sweep.

use sea_orm_migration::prelude::*;

/// Creates the index.
pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0002_stale"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let create = "CREATE INDEX IF NOT EXISTS vecmill_nodes_stale ON nodes (id) \
                      WHERE embedding_source_hash = 'stale'";
        manager.get_connection().execute_unprepared(create).await.map(drop)
    }
}
