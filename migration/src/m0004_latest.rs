//! The index of what the vectors were made of, with when they were: the last node of an input is
//! one step in it, however many nodes have that input.

use sea_orm_migration::{prelude::*, sea_orm::ConnectionTrait};

/// Puts the index in the place of the one without the time.
pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0004_latest"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        // The stronger lock first: asked for after the weaker one, it would wait for those who wait
        // for that one's end.
        db.execute_unprepared("DROP INDEX IF EXISTS vecmill_nodes_input").await?;
        let create = "CREATE INDEX IF NOT EXISTS vecmill_nodes_latest \
                      ON nodes (embedding_input_hash, embedding_updated_at) \
                      WHERE embedding_input_hash IS NOT NULL";
        db.execute_unprepared(create).await.map(drop)
    }
}
