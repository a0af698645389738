//! A transaction in Postgres, and parts of it that can be undone alone.

use std::sync::Arc;

use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement,
    prelude::async_trait::async_trait, sqlx,
};
use tokio::sync::Mutex;

use super::{
    postgres::{Held, exec_error, query_error, rows_of},
    session::Answer,
};

/// A transaction or a part of one. Unless it is committed, it is undone.
pub(super) struct PostgresTransaction {
    shared: Arc<Mutex<Shared>>,
    /// 0: the transaction; else a part, inside as many others.
    depth: u32,
    has_ended: bool,
}

/// What a transaction shares with its parts.
struct Shared {
    /// Empty at the end, only.
    held: Option<Held>,
    /// Whether a part was given up without an end, so that the whole cannot be committed.
    is_spoiled: bool,
}

impl PostgresTransaction {
    /// A transaction that has begun.
    pub(super) fn of(held: Held) -> Self {
        let shared = Shared { held: Some(held), is_spoiled: false };
        Self { shared: Arc::new(Mutex::new(shared)), depth: 0, has_ended: false }
    }

    /// A part that can be undone alone. It must end before this does.
    pub(super) async fn savepoint(&self) -> Result<Self, DbErr> {
        let depth = self.depth + 1;
        self.simple(&format!("SAVEPOINT vecmill_{depth}")).await?.map_err(exec_error)?;
        Ok(Self { shared: Arc::clone(&self.shared), depth, has_ended: false })
    }

    /// Commits; when this fails, nothing or everything was done. A part is durable with the whole.
    pub(super) async fn commit(mut self) -> Result<(), DbErr> {
        if self.depth > 0 {
            let release = format!("RELEASE SAVEPOINT vecmill_{}", self.depth);
            self.simple(&release).await?.map_err(exec_error)?;
            self.has_ended = true;
            return Ok(());
        }
        self.end("COMMIT").await
    }

    /// Undoes everything.
    pub(super) async fn rollback(mut self) -> Result<(), DbErr> {
        if self.depth > 0 {
            let undo = format!(
                "ROLLBACK TO SAVEPOINT vecmill_{depth}; RELEASE SAVEPOINT vecmill_{depth}",
                depth = self.depth
            );
            self.simple(&undo).await?.map_err(exec_error)?;
            self.has_ended = true;
            return Ok(());
        }
        self.end("ROLLBACK").await
    }

    async fn end(&mut self, how: &'static str) -> Result<(), DbErr> {
        let mut shared = self.shared.lock().await;
        if how == "COMMIT" && shared.is_spoiled {
            return Err(ended());
        }
        let mut held = shared.held.take().ok_or_else(ended)?;
        self.has_ended = true;
        let outcome = held.session().end(how).await;
        held.settle(outcome).map_err(exec_error)
    }

    async fn run(&self, statement: &Statement) -> Result<Result<Answer, sqlx::Error>, DbErr> {
        let mut shared = self.shared.lock().await;
        let held = shared.held.as_mut().ok_or_else(ended)?;
        let outcome = held.session().run_here(statement).await;
        Ok(held.settle(outcome))
    }

    async fn simple(&self, sql: &str) -> Result<Result<Answer, sqlx::Error>, DbErr> {
        let mut shared = self.shared.lock().await;
        let held = shared.held.as_mut().ok_or_else(ended)?;
        let outcome = held.session().simple(sql).await;
        Ok(held.settle(outcome))
    }
}

fn ended() -> DbErr {
    DbErr::Conn(RuntimeErr::Internal("the transaction has ended".to_owned()))
}

impl Drop for PostgresTransaction {
    /// Undoes what was not committed, beside the caller; a connection that owes an answer is closed.
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let Ok(mut inner) = shared.try_lock() else { return };
        if self.depth > 0 {
            inner.is_spoiled = true;
            return;
        }
        let Some(mut held) = inner.held.take() else { return };
        if held.session().is_broken() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let outcome = held.session().end("ROLLBACK").await;
                // One that cannot be ended is closed.
                let _ = held.settle(outcome);
            });
        }
    }
}

#[async_trait]
impl ConnectionTrait for PostgresTransaction {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        Ok(self.run(&statement).await?.map_err(exec_error)?.result.into())
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        Ok(self.simple(sql).await?.map_err(exec_error)?.result.into())
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        Ok(self.query_all_raw(statement).await?.into_iter().next())
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        Ok(rows_of(self.run(&statement).await?.map_err(query_error)?))
    }
}
