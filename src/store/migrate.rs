//! Bringing the database to the shape that this program needs.

use std::time::{Duration, Instant};

use migration::{INDEXES, Migrator, OBSOLETE};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, Statement, TransactionTrait};
use tracing::{info, warn};

use super::{
    Store, StoreError, Transaction, blockers, database::write_options, dialect::Dialect,
    error::is_lock_timeout,
};

/// Key of the advisory lock under which one process at a time migrates.
const MIGRATION_LOCK: i64 = i64::from_be_bytes(*b"vecmill\0");
/// How long a change of the table waits for its lock. Whoever reads or writes waits behind it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two tries to get a lock.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two looks whether it is our turn.
const TURN_PAUSE: Duration = Duration::from_millis(100);
/// How often it is said what is waited for.
const SAY_EVERY: Duration = Duration::from_secs(10);

impl Store {
    /// Creates what is missing in the database, and checks that its vectors have as many
    /// components as those of the model. Processes that start together take turns.
    ///
    /// In Postgres, a table with rows is never locked for long: changes of it give up their place
    /// in the queue for its lock and try again, and indexes are built beside readers and writers.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        match self.dialect() {
            Dialect::Sqlite => self.migrate_sqlite().await?,
            Dialect::Postgres => self.migrate_postgres().await?,
        }
        self.look_around().await
    }

    async fn migrate_sqlite(&self) -> Result<(), StoreError> {
        let (connection, _) = self.writer.for_migration().await?;
        let transaction = connection.begin_with_options(write_options()).await?;
        Migrator { dimension: self.dimension }.apply(&transaction).await?;
        create_indexes(&transaction).await?;
        self.check_dimension(sqlite_dimension(&transaction).await?)?;
        Ok(transaction.commit().await?)
    }

    async fn migrate_postgres(&self) -> Result<(), StoreError> {
        // Held by a transaction of its own, which looks at nothing that others wait for.
        let mut said = Said::default();
        let turn = loop {
            let turn = self.begin_write().await?;
            // While an index is built, this is all that it does.
            turn.execute_unprepared("SET LOCAL idle_in_transaction_session_timeout = 0").await?;
            if is_our_turn(&turn).await? {
                break turn;
            }
            turn.rollback().await?;
            said.once("waiting for another process that migrates the database");
            tokio::time::sleep(TURN_PAUSE).await;
        };
        self.change_tables().await?;
        self.build_indexes().await?;
        Ok(turn.commit().await?)
    }

    /// Tables and columns; and indexes, where there is nothing in them yet.
    async fn change_tables(&self) -> Result<(), StoreError> {
        let mut said = Said::default();
        loop {
            // Another one for each try: behind a pooler it knows statements that are gone by then.
            let (connection, settings) = self.writer.for_migration().await?;
            let transaction = connection.begin().await?;
            transaction.execute_unprepared(&settings.unwrap_or_default()).await?;
            let limit = format!("SET LOCAL lock_timeout = '{}ms'", LOCK_TIMEOUT.as_millis());
            transaction.execute_unprepared(&limit).await?;
            match self.change_tables_in(&transaction).await {
                Ok(()) => return Ok(transaction.commit().await?),
                Err(StoreError::Unavailable(error)) if is_lock_timeout(&error) => {
                    transaction.rollback().await?;
                    let holder = blockers::of_table(&self.writer).await?;
                    said.now_and_then(&format!("waiting for the lock on table nodes{holder}"));
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn change_tables_in(&self, transaction: &DatabaseTransaction) -> Result<(), StoreError> {
        create_vector_extension(transaction).await?;
        Migrator { dimension: self.dimension }.apply(transaction).await?;
        self.check_dimension(postgres_dimension(transaction).await?)?;
        let is_empty = "SELECT NOT EXISTS (SELECT FROM nodes) AS is_empty";
        let statement = Statement::from_string(DbBackend::Postgres, is_empty);
        let row = transaction.query_one_raw(statement).await?;
        if row.map(|row| row.try_get("", "is_empty")).transpose()?.unwrap_or(false)
            && !blockers::missing_indexes(transaction).await?.is_empty()
        {
            create_indexes(transaction).await?;
        }
        Ok(())
    }

    /// Indexes of a table with rows, one after the other, beside those who read and write it.
    async fn build_indexes(&self) -> Result<(), StoreError> {
        for index in blockers::missing_indexes(&self.writer).await? {
            info!(index = index.name, "building an index; reads and writes go on");
            // What an attempt that was ended left behind is of no use.
            self.outside(&format!("DROP INDEX CONCURRENTLY IF EXISTS {}", index.name)).await?;
            let sql = format!("CREATE INDEX CONCURRENTLY {} ON {}", index.name, index.of);
            self.outside(&sql).await?;
            info!(index = index.name, "the index is built");
        }
        for name in blockers::obsolete_indexes(&self.writer).await? {
            self.outside(&format!("DROP INDEX CONCURRENTLY IF EXISTS {name}")).await?;
        }
        Ok(())
    }

    /// Runs a statement that no transaction may hold, and says what it waits for.
    async fn outside(&self, sql: &str) -> Result<(), StoreError> {
        let (connection, _) = self.writer.for_migration().await?;
        // Behind a pooler the setting would stay with the server.
        let is_pooled = self.writer.is_pooled().await?;
        if !is_pooled {
            connection.execute_unprepared("SET statement_timeout = 0").await?;
        }
        let work = connection.execute_unprepared(sql);
        tokio::pin!(work);
        let mut said = Said::default();
        loop {
            tokio::select! {
                done = &mut work => return done.map(drop).map_err(|error| match error.into() {
                    error if is_pooled => too_short(error),
                    error => error,
                }),
                () = tokio::time::sleep(PAUSE) => {
                    if let Ok(Some(step)) = blockers::of_index_build(&self.writer).await {
                        said.now_and_then(&step);
                    }
                }
            }
        }
    }

    fn check_dimension(&self, column: Option<usize>) -> Result<(), StoreError> {
        match column {
            Some(column) if column != self.dimension => {
                Err(StoreError::Dimension { column, model: self.dimension })
            }
            _ => Ok(()),
        }
    }
}

/// Only behind a pooler, where no setting of ours holds outside of a transaction, is a statement
/// given up for the time that it takes. Trying again would end in the same way.
fn too_short(error: StoreError) -> StoreError {
    match error {
        error if error.took_too_long() => StoreError::Setup(
            "a change of an index took longer than statement_timeout allows: run `vecmill migrate` \
             once with a DSN that leads to Postgres without the pooler, or as a role whose \
             statement_timeout is 0"
                .to_owned(),
        ),
        error => error,
    }
}

/// When something was last said.
#[derive(Default)]
struct Said(Option<Instant>);

impl Said {
    fn once(&mut self, what: &str) {
        if self.0.is_none() {
            warn!("{what}");
            self.0 = Some(Instant::now());
        }
    }

    fn now_and_then(&mut self, what: &str) {
        if self.0.is_none_or(|last| last.elapsed() > SAY_EVERY) {
            warn!("{what}");
            self.0 = Some(Instant::now());
        }
    }
}

async fn is_our_turn(transaction: &Transaction) -> Result<bool, StoreError> {
    let sql = format!("SELECT pg_try_advisory_xact_lock({MIGRATION_LOCK}) AS is_ours");
    let statement = Statement::from_string(DbBackend::Postgres, sql);
    let row = transaction.query_one_raw(statement).await?;
    Ok(row.map(|row| row.try_get("", "is_ours")).transpose()?.unwrap_or(false))
}

/// For a table that nobody reads or writes yet, or that has one writer anyway.
async fn create_indexes(transaction: &DatabaseTransaction) -> Result<(), StoreError> {
    for index in INDEXES {
        let of = match transaction.get_database_backend() {
            DbBackend::Sqlite => index.of_in_sqlite.unwrap_or(index.of),
            _ => index.of,
        };
        let sql = format!("CREATE INDEX IF NOT EXISTS {} ON {of}", index.name);
        transaction.execute_unprepared(&sql).await?;
    }
    for name in OBSOLETE {
        transaction.execute_unprepared(&format!("DROP INDEX IF EXISTS {name}")).await?;
    }
    Ok(())
}

async fn create_vector_extension(transaction: &DatabaseTransaction) -> Result<(), StoreError> {
    let created = transaction.execute_unprepared("CREATE EXTENSION IF NOT EXISTS vector").await;
    match created.map_err(StoreError::from) {
        Err(StoreError::Refused(_)) => Err(StoreError::Setup(
            "the pgvector extension cannot be created: install pgvector on the Postgres server, \
             then run CREATE EXTENSION vector in this database as a role that may"
                .to_owned(),
        )),
        other => other.map(|_| ()),
    }
}

/// Components of the vectors that the column takes; none if it takes any.
async fn postgres_dimension(
    transaction: &DatabaseTransaction,
) -> Result<Option<usize>, StoreError> {
    let sql = "SELECT format_type(atttypid, NULL) AS type, atttypmod AS dimension \
               FROM pg_attribute WHERE attrelid = to_regclass('nodes') AND attname = 'embedding'";
    let Some(row) =
        transaction.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await?
    else {
        return Ok(None);
    };
    let name: String = row.try_get("", "type")?;
    if name.rsplit('.').next() != Some("vector") {
        return Err(StoreError::Setup(format!(
            "the column nodes.embedding is of type {name}, but must be of type vector; use \
             another database"
        )));
    }
    Ok(usize::try_from(row.try_get::<i32>("", "dimension")?).ok().filter(|&found| found > 0))
}

/// The column says nothing of its vectors; one that is there tells.
async fn sqlite_dimension(transaction: &DatabaseTransaction) -> Result<Option<usize>, StoreError> {
    let sql = "SELECT length(embedding) / 4 AS dimension FROM nodes \
               WHERE embedding IS NOT NULL LIMIT 1";
    let row = transaction.query_one_raw(Statement::from_string(DbBackend::Sqlite, sql)).await?;
    let dimension = row.map(|row| row.try_get::<i64>("", "dimension")).transpose()?;
    Ok(dimension.and_then(|dimension| usize::try_from(dimension).ok()))
}
