//! Every database query of the program.
//!
//! One statement serves both databases where their SQL agrees; [`dialect`] holds what differs.
//! Statements are set-based: a batch of rows travels as one parameter and is written at once.

mod blockers;
mod branch;
mod cache;
mod conflict;
mod connect;
mod database;
mod dialect;
mod dsn;
mod due;
mod edit;
mod error;
mod estimate;
mod facts;
mod failure;
mod insert;
mod lookup;
mod migrate;
mod nodes;
mod outcomes;
mod parameters;
mod postgres;
mod readiness;
mod reembed;
mod refusal;
mod repair;
mod requeue;
mod results;
mod session;
mod source;
mod transaction;
mod types;
mod visibility;
mod walk;
mod work;

pub use due::PolicyRow;
pub use insert::{Birth, OnRefusal};
pub use lookup::NodeVersion;
pub use refusal::{Fault, Refusal, Refusals};
pub use source::TextRule;
pub use types::*;

use std::sync::Arc;

use conflict::repeat_on_conflict;
use database::{Database, Transaction};
use facts::Facts;

/// The database. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    /// For reading.
    db: Database,
    /// For writing. In Postgres the same as `db`; in SQLite a single connection, so that the
    /// writers of this process queue up in order instead of contending for the file's lock.
    writer: Database,
    /// For what operators read: nothing that they ask for takes a connection from those who take
    /// nodes in and store vectors.
    operators: Database,
    /// For what operators write. In Postgres the same as `operators`, in SQLite as `writer`.
    operators_writer: Database,
    /// Components of each vector.
    dimension: usize,
    /// How texts are made of rows.
    rule: TextRule,
    /// Bytes that the JSON of a node may have.
    node_bytes: usize,
    /// Empty until [`Store::migrate`].
    facts: Arc<Facts>,
}

impl Store {
    /// The same database, with texts made by this rule.
    pub fn with_rule(self, rule: TextRule) -> Self {
        Self { rule, ..self }
    }

    /// The same database, with nodes of at most so many bytes of JSON.
    pub fn with_node_bytes(self, node_bytes: usize) -> Self {
        Self { node_bytes, ..self }
    }

    /// How texts are made of rows.
    pub fn rule(&self) -> TextRule {
        self.rule
    }

    /// A transaction that may write, and that reads nothing another writer then changes in
    /// SQLite; in Postgres the caller locks the rows that it depends on.
    async fn begin_write(&self) -> Result<Transaction, StoreError> {
        Ok(self.writer.begin().await?)
    }

    /// Does a whole transaction, and does it again while the database rolls it back in favour of
    /// another's.
    async fn repeated<T, F>(&self, transaction: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        repeat_on_conflict(transaction, StoreError::is_conflict).await
    }
}
