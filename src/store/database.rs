//! The two kinds of database behind one face, each with a limit on how long it may take to answer.
//!
//! A server that vanished without closing its connections, or a statement that waits for a lock
//! that nobody gives back, would otherwise hold its caller for ever.

use std::{future::Future, io, sync::Arc, time::Duration};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    QueryResult, RuntimeErr, SqliteTransactionMode, Statement, TransactionOptions,
    TransactionTrait, prelude::async_trait::async_trait, sqlx,
};

use super::{postgres::Postgres, transaction::PostgresTransaction};

/// The longest that one statement may take in SQLite, waiting for a connection included.
const SQLITE_PATIENCE: Duration = Duration::from_secs(30);

/// A database. Its statements end in time: with an answer, or with the error of a database that is
/// away; what such a statement did is unknown then.
#[derive(Debug, Clone)]
pub(super) enum Database {
    Postgres(Postgres),
    Sqlite(DatabaseConnection),
}

/// A transaction whose statements end in time. Unless it is committed, it is undone.
pub(super) enum Transaction {
    Postgres(PostgresTransaction),
    Sqlite(DatabaseTransaction),
}

impl Database {
    /// Begins a transaction that may write.
    pub(super) async fn begin(&self) -> Result<Transaction, DbErr> {
        match self {
            Self::Postgres(postgres) => Ok(Transaction::Postgres(postgres.begin().await?)),
            Self::Sqlite(sqlite) => {
                in_time(sqlite.begin_with_options(write_options())).await.map(Transaction::Sqlite)
            }
        }
    }

    /// A connection that may take as long as it takes, and what a transaction on it begins with.
    /// See [`Postgres::for_migration`].
    pub(super) async fn for_migration(
        &self,
    ) -> Result<(DatabaseConnection, Option<String>), DbErr> {
        match self {
            Self::Postgres(postgres) => {
                let (connection, settings) = postgres.for_migration().await?;
                Ok((connection, Some(settings)))
            }
            Self::Sqlite(sqlite) => Ok((sqlite.clone(), None)),
        }
    }
}

impl Database {
    /// See [`Postgres::query_anew`].
    pub(super) async fn query_anew(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match self {
            Self::Postgres(postgres) => postgres.query_anew(&statement).await,
            Self::Sqlite(_) => self.query_all_raw(statement).await,
        }
    }

    /// Whether somebody stands between us and the server, who gives it to others in between.
    pub(super) async fn is_pooled(&self) -> Result<bool, DbErr> {
        match self {
            Self::Postgres(postgres) => postgres.is_pooled().await,
            Self::Sqlite(_) => Ok(false),
        }
    }
}

pub(super) fn write_options() -> TransactionOptions {
    TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    }
}

impl Transaction {
    /// A part of the transaction that can be undone alone.
    pub(super) async fn savepoint(&self) -> Result<Self, DbErr> {
        match self {
            Self::Postgres(transaction) => transaction.savepoint().await.map(Self::Postgres),
            Self::Sqlite(transaction) => in_time(transaction.begin()).await.map(Self::Sqlite),
        }
    }

    /// Commits; when this fails, nothing or everything was done.
    pub(super) async fn commit(self) -> Result<(), DbErr> {
        match self {
            Self::Postgres(transaction) => transaction.commit().await,
            Self::Sqlite(transaction) => in_time(transaction.commit()).await,
        }
    }

    /// Undoes everything.
    pub(super) async fn rollback(self) -> Result<(), DbErr> {
        match self {
            Self::Postgres(transaction) => transaction.rollback().await,
            Self::Sqlite(transaction) => in_time(transaction.rollback()).await,
        }
    }
}

pub(super) async fn in_time<T>(answer: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
    tokio::time::timeout(SQLITE_PATIENCE, answer).await.unwrap_or_else(|_| {
        let error = io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time");
        Err(DbErr::Conn(RuntimeErr::SqlxError(Arc::new(sqlx::Error::Io(error)))))
    })
}

#[async_trait]
impl ConnectionTrait for Database {
    fn get_database_backend(&self) -> DbBackend {
        match self {
            Self::Postgres(_) => DbBackend::Postgres,
            Self::Sqlite(_) => DbBackend::Sqlite,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match self {
            Self::Postgres(db) => db.execute_raw(statement).await,
            Self::Sqlite(db) => in_time(db.execute_raw(statement)).await,
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        match self {
            Self::Postgres(db) => db.execute_unprepared(sql).await,
            Self::Sqlite(db) => in_time(db.execute_unprepared(sql)).await,
        }
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        match self {
            Self::Postgres(db) => db.query_one_raw(statement).await,
            Self::Sqlite(db) => in_time(db.query_one_raw(statement)).await,
        }
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match self {
            Self::Postgres(db) => db.query_all_raw(statement).await,
            Self::Sqlite(db) => in_time(db.query_all_raw(statement)).await,
        }
    }
}

#[async_trait]
impl ConnectionTrait for Transaction {
    fn get_database_backend(&self) -> DbBackend {
        match self {
            Self::Postgres(_) => DbBackend::Postgres,
            Self::Sqlite(_) => DbBackend::Sqlite,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match self {
            Self::Postgres(transaction) => transaction.execute_raw(statement).await,
            Self::Sqlite(transaction) => in_time(transaction.execute_raw(statement)).await,
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        match self {
            Self::Postgres(transaction) => transaction.execute_unprepared(sql).await,
            Self::Sqlite(transaction) => in_time(transaction.execute_unprepared(sql)).await,
        }
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        match self {
            Self::Postgres(transaction) => transaction.query_one_raw(statement).await,
            Self::Sqlite(transaction) => in_time(transaction.query_one_raw(statement)).await,
        }
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match self {
            Self::Postgres(transaction) => transaction.query_all_raw(statement).await,
            Self::Sqlite(transaction) => in_time(transaction.query_all_raw(statement)).await,
        }
    }
}
