//! Creates what is missing in a Vecmill database, and alters nothing that is not ours: the database
//! may be empty, ours, or one that an ActiveKG installation made and still uses.

mod indexes;
mod m0001_nodes;
mod m0003_inputs;
mod only_indexes;

pub use indexes::{INDEXES, Index, OBSOLETE};

use sea_orm_migration::{MigratorTraitSelf, prelude::*, sea_orm::DatabaseTransaction};

/// The migrations for a model of a given dimension.
#[derive(Debug, Clone, Copy)]
pub struct Migrator {
    /// Components of each vector.
    pub dimension: usize,
}

impl MigratorTraitSelf for Migrator {
    fn migrations(&self) -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_nodes::Migration { dimension: self.dimension }),
            Box::new(only_indexes::Migration("m0002_stale")),
            Box::new(m0003_inputs::Migration),
            Box::new(only_indexes::Migration("m0004_latest")),
        ]
    }

    /// A name of our own: another program may keep its books in the default one.
    fn migration_table_name(&self) -> DynIden {
        Alias::new("vecmill_migrations").into_iden()
    }
}

impl Migrator {
    /// Applies what was not applied yet, on the caller's transaction. A database where nothing
    /// is pending is only read, so that the role needs no right to create tables there.
    pub async fn apply(&self, transaction: &DatabaseTransaction) -> Result<(), DbErr> {
        if self.get_pending_migrations_read_only(transaction).await?.is_empty() {
            return Ok(());
        }
        self.up(transaction, None).await
    }
}
