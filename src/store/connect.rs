//! Opening the database.

use std::{
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::{
    ConnectOptions, DatabaseConnection, DbErr, RuntimeErr,
    sqlx::{
        ConnectOptions as _, Connection as _,
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
    },
};

use super::{
    Store, StoreError, TextRule,
    database::Database,
    dsn,
    error::{is_sqlite_busy, is_sqlite_cannot_open},
    failure::ConnectError,
    postgres::Postgres,
};
use crate::tls;

/// Connections of one process that read a SQLite file: for work, and for what operators ask for.
const SQLITE_READERS: (u32, u32) = (3, 2);
/// Pages of a SQLite file that a connection keeps in memory, in KiB: an index whose keys come in no
/// order touches another page with each row.
const SQLITE_CACHE_KIB: u32 = 16 << 10;
/// Pages in the write-ahead log from which SQLite copies them to the file. A page that was written
/// several times by then is copied once.
const SQLITE_CHECKPOINT_PAGES: u32 = 4000;
/// How long a writer waits for the other writers of a SQLite file.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two tries to open one that others are opening.
const SQLITE_BUSY_PAUSE: Duration = Duration::from_millis(20);

impl Store {
    /// Opens the database that a DSN names, in any form that [`dsn`] reads or as `sqlite://…`, for
    /// vectors of `dimension` components. A SQLite file is created if it is missing; of several
    /// Postgres servers, the one that takes writes is used.
    ///
    /// Changes no table: see [`Store::migrate`]. No error holds the DSN or a secret of it.
    pub async fn connect(dsn: &str, dimension: usize) -> Result<Self, StoreError> {
        if dsn::is_postgres(dsn) {
            tls::install_provider();
            let servers = dsn::parse(dsn).map_err(|wrong| {
                StoreError::Setup(format!("the database DSN is not valid: {wrong}"))
            })?;
            let postgres = Postgres::connect(servers).await?;
            let operators = Database::Postgres(postgres.for_lists()?);
            let db = Database::Postgres(postgres);
            Ok(Self {
                writer: db.clone(),
                db,
                operators_writer: operators.clone(),
                operators,
                dimension,
                rule: TextRule::default(),
                node_bytes: usize::MAX,
                facts: Arc::default(),
            })
        } else if dsn.starts_with("sqlite:") {
            let options = sqlite_options(dsn)?;
            // The writer comes first: it creates the file and switches it to WAL.
            let writer = Database::Sqlite(connect_sqlite(&options, 1).await?);
            let (for_work, for_operators) = SQLITE_READERS;
            let db = Database::Sqlite(connect_sqlite(&options, for_work).await?);
            let operators = Database::Sqlite(connect_sqlite(&options, for_operators).await?);
            Ok(Self {
                operators_writer: writer.clone(),
                operators,
                writer,
                db,
                dimension,
                rule: TextRule::default(),
                node_bytes: usize::MAX,
                facts: Arc::default(),
            })
        } else {
            Err(StoreError::Setup(
                "the database DSN must start with postgresql:// or sqlite://, or be of the form \
                 host=… dbname=…"
                    .to_owned(),
            ))
        }
    }
}

impl From<ConnectError> for StoreError {
    fn from(error: ConnectError) -> Self {
        if error.is_passing {
            Self::Unavailable(DbErr::Conn(RuntimeErr::Internal(error.message)))
        } else {
            Self::Setup(error.message)
        }
    }
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
    let deadline = Instant::now() + SQLITE_BUSY_TIMEOUT;
    let connected = loop {
        match sea_orm::Database::connect(options.clone()).await {
            // Of several processes that switch a file to WAL at once, all but one get SQLITE_BUSY,
            // without any wait.
            Err(error) if is_sqlite_busy(&error) && Instant::now() < deadline => {
                tokio::time::sleep(SQLITE_BUSY_PAUSE).await;
            }
            connected => break connected,
        }
    };
    connected.map_err(|error| {
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

/// What the operator must mend is told apart from a file that is busy.
fn connect_error(error: DbErr) -> StoreError {
    match StoreError::from(error) {
        StoreError::Refused(DbErr::Conn(RuntimeErr::SqlxError(error))) => {
            let cause = match error.as_database_error() {
                Some(error) => format!(": {}", error.message()),
                None => String::new(),
            };
            StoreError::Setup(format!(
                "the SQLite file cannot be used{cause}; name a file that SQLite made, or one that \
                 is not there yet"
            ))
        }
        error => error,
    }
}
