//! Every database query of the program.
//!
//! One statement serves both databases where their SQL agrees; [`dialect`] holds what differs.
//! Statements are set-based: a batch of rows travels as one parameter and is written at once.

mod cache;
mod connect;
mod dialect;
mod due;
mod edit;
mod error;
mod lookup;
mod migrate;
mod nodes;
mod patience;
mod reembed;
mod repair;
mod results;
mod types;
mod work;

pub use due::PolicyRow;
pub use lookup::NodeVersion;
pub use types::*;

use sea_orm::{DatabaseConnection, DatabaseTransaction, SqliteTransactionMode, TransactionOptions};

use patience::Patient;

/// The database. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    /// For reading.
    db: Patient<DatabaseConnection>,
    /// For writing. In Postgres the same as `db`; in SQLite a single connection, so that the
    /// writers of this process queue up in order instead of contending for the file's lock.
    writer: Patient<DatabaseConnection>,
    /// Components of each vector.
    dimension: usize,
}

impl Store {
    /// A transaction that may write, and that reads nothing another writer then changes in
    /// SQLite; in Postgres the caller locks the rows that it depends on.
    async fn begin_write(&self) -> Result<Patient<DatabaseTransaction>, StoreError> {
        Ok(self.writer.begin(write_options()).await?)
    }
}

fn write_options() -> TransactionOptions {
    TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    }
}
