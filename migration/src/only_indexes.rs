//! Migrations of older releases that made indexes and nothing else; see [`crate::indexes`]. Their
//! names stay in the books of databases that have them.

use sea_orm_migration::prelude::*;

/// One of them, by its name.
pub(crate) struct Migration(pub(crate) &'static str);

impl MigrationName for Migration {
    fn name(&self) -> &str {
        self.0
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, _manager: &SchemaManager) -> Result<(), DbErr> {
        Ok(())
    }
}
