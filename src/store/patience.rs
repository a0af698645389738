//! A limit on how long a database may take to answer.
//!
//! A server that vanished without closing its connections, or a statement that waits for a lock
//! that nobody gives back, would otherwise hold its caller for ever.

use std::{future::Future, io, sync::Arc, time::Duration};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    QueryResult, RuntimeErr, Statement, TransactionOptions, TransactionTrait,
    prelude::async_trait::async_trait, sqlx,
};

/// The longest that one statement may take, waiting for a connection included.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection or transaction whose statements end in time: with an answer, or with the error of
/// a database that is away. What such a statement did is unknown then.
#[derive(Debug, Clone)]
pub(super) struct Patient<C> {
    inner: C,
    patience: Duration,
}

impl<C> Patient<C> {
    pub(super) fn new(inner: C) -> Self {
        Self { inner, patience: PATIENCE }
    }

    /// The connection without the limit.
    pub(super) fn inner(&self) -> &C {
        &self.inner
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, DbErr>> + Send,
    ) -> Result<T, DbErr> {
        tokio::time::timeout(self.patience, answer).await.unwrap_or_else(|_| {
            let error = io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time");
            Err(DbErr::Conn(RuntimeErr::SqlxError(Arc::new(sqlx::Error::Io(error)))))
        })
    }
}

impl Patient<DatabaseConnection> {
    /// Begins a transaction whose statements end in time, too.
    pub(super) async fn begin(
        &self,
        options: TransactionOptions,
    ) -> Result<Patient<DatabaseTransaction>, DbErr> {
        let inner = self.in_time(self.inner.begin_with_options(options)).await?;
        Ok(Patient { inner, patience: self.patience })
    }

    /// Whether the database answers.
    pub(super) async fn ping(&self) -> Result<(), DbErr> {
        self.in_time(self.inner.ping()).await
    }
}

impl Patient<DatabaseTransaction> {
    /// A part of the transaction that can be undone alone.
    pub(super) async fn savepoint(&self) -> Result<Self, DbErr> {
        let inner = self.in_time(self.inner.begin()).await?;
        Ok(Self { inner, patience: self.patience })
    }

    /// Undoes what was done.
    pub(super) async fn rollback(self) -> Result<(), DbErr> {
        let Self { inner, patience } = self;
        Patient { inner: (), patience }.in_time(inner.rollback()).await
    }

    /// Commits; when this fails, nothing or everything was done.
    pub(super) async fn commit(self) -> Result<(), DbErr> {
        let Self { inner, patience } = self;
        Patient { inner: (), patience }.in_time(inner.commit()).await
    }
}

#[async_trait]
impl<C: ConnectionTrait> ConnectionTrait for Patient<C> {
    fn get_database_backend(&self) -> DbBackend {
        self.inner.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.in_time(self.inner.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.in_time(self.inner.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.in_time(self.inner.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.in_time(self.inner.query_all_raw(statement)).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::store::StoreError;

    #[tokio::test]
    async fn a_database_that_does_not_answer_is_away() {
        let silent = Patient { inner: (), patience: Duration::from_millis(5) };
        let error = silent.in_time(std::future::pending::<Result<(), DbErr>>()).await.unwrap_err();
        assert!(StoreError::from(error).is_unavailable());
        assert!(silent.in_time(async { Ok(7) }).await.is_ok_and(|answer| answer == 7));
    }
}
