//! Opening the database.

use std::{str::FromStr, sync::Arc, time::Duration};

use sea_orm::{
    ConnectOptions, Database, DatabaseConnection, DbErr, RuntimeErr,
    sqlx::{
        self, ConnectOptions as _, Connection as _, Executor as _,
        postgres::PgConnectOptions,
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
    },
};

use super::{Store, StoreError, error::is_sqlite_cannot_open, patience::Patient};

/// Connections of one process to Postgres.
const POSTGRES_CONNECTIONS: u32 = 10;
/// Connections of one process that read a SQLite file.
const SQLITE_READERS: u32 = 4;
/// How long a call waits for a connection to Postgres before it gives up.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server lets a statement take, waiting for locks included: less than we wait for the
/// answer, so that the connection can be used again.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(25);
/// How long a connection may take to be ready for the next call.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pages of a SQLite file that a connection keeps in memory, in KiB: an index whose keys come in no
/// order touches another page with each row.
const SQLITE_CACHE_KIB: u32 = 16 << 10;
/// Pages in the write-ahead log from which SQLite copies them to the file. A page that was written
/// several times by then is copied once.
const SQLITE_CHECKPOINT_PAGES: u32 = 4000;
/// How long a writer waits for the other writers of a SQLite file.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection idle for longer is asked whether it still lives before it is used.
const IDLE_BEFORE_PING: Duration = Duration::from_secs(1);

impl Store {
    /// Opens the database that a DSN names (`postgresql://…`, `postgres://…` or `sqlite://…`;
    /// the SQLite file is created if it is missing) for vectors of `dimension` components.
    ///
    /// Changes no table: see [`Store::migrate`]. No error holds the DSN or a part of it.
    pub async fn connect(dsn: &str, dimension: usize) -> Result<Self, StoreError> {
        if dsn.starts_with("postgresql://") || dsn.starts_with("postgres://") {
            let db = connect_postgres(dsn).await?;
            let db = Patient::new(db);
            Ok(Self { writer: db.clone(), db, dimension, identity: Arc::default() })
        } else if dsn.starts_with("sqlite:") {
            let options = sqlite_options(dsn)?;
            // The writer comes first: it creates the file and switches it to WAL.
            let writer = connect_sqlite(&options, 1).await?;
            let db = connect_sqlite(&options, SQLITE_READERS).await?;
            Ok(Self {
                db: Patient::new(db),
                writer: Patient::new(writer),
                dimension,
                identity: Arc::default(),
            })
        } else {
            Err(StoreError::Setup(
                "the database DSN must start with postgresql:// or sqlite://".to_owned(),
            ))
        }
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.db.ping().await?)
    }
}

async fn connect_postgres(dsn: &str) -> Result<DatabaseConnection, StoreError> {
    let parsed = PgConnectOptions::from_str(dsn).map_err(|_| {
        StoreError::Setup(
            "the database DSN is not a valid postgresql:// URL; percent-encode special characters \
             in the user name and password"
                .to_owned(),
        )
    })?;
    let parsed = parsed.application_name("vecmill").disable_statement_logging();
    // sea-orm records its URL in a trace span, so it gets one without credentials.
    let mut options = ConnectOptions::new("postgres://localhost");
    options
        .map_sqlx_postgres_opts(move |_| parsed.clone())
        .map_sqlx_postgres_pool_opts(|pool| {
            pool.after_connect(|connection, _| {
                Box::pin(async move {
                    let seconds = STATEMENT_TIMEOUT.as_secs();
                    let limit = format!("SET statement_timeout = '{seconds}s'");
                    connection.execute(sqlx::AssertSqlSafe(limit)).await.map(drop)
                })
            })
            // A connection whose statement was given up may never answer again; without a limit it
            // would keep its place in the pool until the system gives it up.
            .after_release(|connection, _| {
                Box::pin(async move {
                    let ping = tokio::time::timeout(RELEASE_TIMEOUT, connection.ping());
                    ping.await.map_err(|_| sqlx::Error::PoolTimedOut)?.map(|()| true)
                })
            })
        })
        .max_connections(POSTGRES_CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire_if_idle_for(IDLE_BEFORE_PING)
        .sqlx_logging(false)
        .record_stmt_in_spans(false);
    Database::connect(options).await.map_err(connect_error)
}

fn sqlite_options(dsn: &str) -> Result<SqliteConnectOptions, StoreError> {
    let options = SqliteConnectOptions::from_str(dsn).map_err(|_| {
        StoreError::Setup("the database DSN is not a valid sqlite:// URL".to_owned())
    })?;
    Ok(options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(SQLITE_BUSY_TIMEOUT)
        .pragma("cache_size", format!("-{SQLITE_CACHE_KIB}"))
        .pragma("wal_autocheckpoint", SQLITE_CHECKPOINT_PAGES.to_string())
        .foreign_keys(true)
        .disable_statement_logging())
}

async fn connect_sqlite(
    sqlite: &SqliteConnectOptions,
    connections: u32,
) -> Result<DatabaseConnection, StoreError> {
    let sqlite = sqlite.clone();
    let mut options = ConnectOptions::new("sqlite://vecmill");
    options
        .map_sqlx_sqlite_opts(move |_| sqlite.clone())
        .map_sqlx_sqlite_before_acquire(|connection, _| {
            // On a full disk SQLite rolls back by itself, the roll-back that follows fails, and
            // the library counts a transaction that is not there. What it took for a transaction
            // inside that one would keep its snapshot, and with it the connection, for ever.
            let is_free = !connection.is_in_transaction();
            Box::pin(std::future::ready(Ok(is_free)))
        })
        .max_connections(connections)
        .acquire_timeout(SQLITE_BUSY_TIMEOUT)
        .sqlx_logging(false)
        .record_stmt_in_spans(false);
    Database::connect(options).await.map_err(|error| {
        if is_sqlite_cannot_open(&error) {
            StoreError::Setup(
                "the SQLite file cannot be opened or created; check that its directory exists and \
                 can be written"
                    .to_owned(),
            )
        } else {
            connect_error(error)
        }
    })
}

/// What the operator must mend is told apart from a database that is away.
fn connect_error(error: DbErr) -> StoreError {
    match StoreError::from(error) {
        StoreError::Refused(DbErr::Conn(RuntimeErr::SqlxError(error))) => match error.as_ref() {
            sqlx::Error::Database(error) => StoreError::Setup(format!(
                "the database refused the connection: {}; check the user, password and database \
                 name in the DSN",
                error.message()
            )),
            _ => StoreError::Setup(
                "the connection to the database could not be set up; check the DSN and its TLS \
                 options"
                    .to_owned(),
            ),
        },
        error => error,
    }
}
