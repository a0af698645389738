//! The connections of one process to Postgres: few, each made when it is wanted, and thrown away as
//! soon as anything is wrong with it.
//!
//! Connections belong to a generation. What shows that one of them is of no use (the server became a
//! standby, it is silent, it is ending) ends its generation, because the others lead to the same
//! server: none of them is used again, and new ones look for a server that takes writes.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use deadpool::managed::{self, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult};
use sea_orm::{
    ConnAcquireErr, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, ExecResult, QueryResult,
    RuntimeErr, SqlxPostgresConnector, Statement,
    prelude::async_trait::async_trait,
    sqlx::{self, postgres::PgPoolOptions},
};

use super::{
    conflict::repeat_on_conflict,
    dsn::{Server, Servers},
    error::is_conflict,
    failure::{ConnectError, is_fatal, shows_a_pooler},
    session::{Answer, Purpose, Session},
    transaction::PostgresTransaction,
};

/// Connections of one process: for work, and for lists. Whoever waits for a list waits for other
/// lists alone.
const CONNECTIONS: (usize, usize) = (8, 2);
/// How long a call waits for a connection before it gives up.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// The first and the longest pause before a server is asked again for a connection.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// A connection idle for longer is checked before it is used.
const IDLE_BEFORE_CHECK: Duration = Duration::from_secs(1);

/// The connections. Clones share them.
#[derive(Clone)]
pub(super) struct Postgres {
    pool: Pool<Connector>,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").finish_non_exhaustive()
    }
}

/// Makes connections and looks after those that wait to be used again.
struct Connector {
    purpose: Purpose,
    known: Arc<Known>,
}

/// What is known of the servers, whatever a connection is for.
struct Known {
    servers: Servers,
    /// The server that the last connection led to.
    last_good: AtomicUsize,
    generation: AtomicU64,
    /// Whether connections ask for no settings at their start: a pooler refused some.
    plain: AtomicBool,
}

impl Postgres {
    /// Connections for work, of which one is made, so that the caller learns at once what is wrong.
    pub(super) async fn connect(servers: Servers) -> Result<Self, ConnectError> {
        let known = Known {
            servers,
            last_good: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            plain: AtomicBool::new(false),
        };
        let postgres = Self::of(Arc::new(known), Purpose::Work)?;
        match postgres.pool.get().await {
            Ok(_) => Ok(postgres),
            Err(PoolError::Backend(error)) => Err(error),
            Err(error) => Err(ConnectError { message: error.to_string(), is_passing: true }),
        }
    }

    /// Connections to the same servers for lists; none is made yet.
    pub(super) fn for_lists(&self) -> Result<Self, ConnectError> {
        Self::of(Arc::clone(&self.pool.manager().known), Purpose::Lists)
    }

    fn of(known: Arc<Known>, purpose: Purpose) -> Result<Self, ConnectError> {
        let pool = Pool::builder(Connector { purpose, known })
            .max_size(match purpose {
                Purpose::Work => CONNECTIONS.0,
                Purpose::Lists => CONNECTIONS.1,
            })
            .wait_timeout(Some(ACQUIRE_TIMEOUT))
            .runtime(deadpool::Runtime::Tokio1)
            // The fewer are in use, the fewer are kept busy by being checked.
            .queue_mode(managed::QueueMode::Lifo)
            .build()
            .map_err(|error| ConnectError { message: error.to_string(), is_passing: false })?;
        Ok(Self { pool })
    }

    /// A connection. While none can be made, it is tried again for a while.
    async fn acquire(&self) -> Result<Held, DbErr> {
        let until = Instant::now() + ACQUIRE_TIMEOUT;
        let (mut pause, longest) = PAUSES;
        loop {
            match self.acquire_now().await {
                Err(Absent::No(error)) if error.is_passing && Instant::now() + pause < until => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(longest);
                }
                Err(absent) => return Err(absent.into()),
                Ok(held) => return Ok(held),
            }
        }
    }

    async fn acquire_now(&self) -> Result<Held, Absent> {
        match self.pool.get().await {
            Ok(object) => Ok(Held { object: Some(object), pool: self.pool.clone() }),
            Err(PoolError::Backend(error)) => Err(Absent::No(error)),
            Err(_) => Err(Absent::AllInUse),
        }
    }

    /// Runs a statement on a connection that takes writes, without waiting for one to become
    /// possible: for those who ask whether the database is there.
    pub(super) async fn ask(&self, sql: &str) -> Result<Option<QueryResult>, DbErr> {
        let mut held = self.acquire_now().await?;
        let checked = held.session().check().await;
        held.settle(checked).map_err(query_error)?;
        let outcome = held.session().simple(sql).await;
        let answer = held.settle(outcome).map_err(query_error)?;
        Ok(answer.rows.into_iter().next().map(QueryResult::from))
    }

    /// Makes all connections anew, so that all that was planned without a right is forgotten at once; see
    /// [`Session::forget_old_plans`].
    pub(super) fn renew(&self) {
        let known = &self.pool.manager().known;
        let generation = known.generation.load(Ordering::Acquire);
        known.end_generation(generation);
        self.pool.retain(|session, _| session.generation > generation);
    }

    /// The rows of a statement that is planned for this once, with the rights of now.
    pub(super) async fn query_anew(
        &self,
        statement: &Statement,
    ) -> Result<Vec<QueryResult>, DbErr> {
        Ok(rows_of(self.run(statement, true, query_error).await?))
    }

    /// Runs one statement; `to_error` says what it was for.
    async fn run(
        &self,
        statement: &Statement,
        anew: bool,
        to_error: fn(sqlx::Error) -> DbErr,
    ) -> Result<Answer, DbErr> {
        let run_once = || async {
            let mut held = self.acquire().await?;
            let outcome = held.session().run(statement, anew).await;
            held.settle(outcome).map_err(to_error)
        };
        repeat_on_conflict(run_once, is_conflict).await
    }

    /// Begins a transaction.
    pub(super) async fn begin(&self) -> Result<PostgresTransaction, DbErr> {
        let mut held = self.acquire().await?;
        let begun = held.session().begin().await;
        held.settle(begun).map_err(query_error)?;
        Ok(PostgresTransaction::of(held))
    }

    /// Whether the server may serve others between our transactions.
    pub(super) async fn is_pooled(&self) -> Result<bool, DbErr> {
        Ok(self.acquire().await?.session().is_shared())
    }

    /// A connection of its own, whose statements have all the time in the world, and what a
    /// transaction on it begins with. Behind a pooler, only transactions hold together, and only
    /// that beginning makes room for their prepared statements.
    pub(super) async fn for_migration(&self) -> Result<(DatabaseConnection, String), DbErr> {
        let mut held = self.acquire().await?;
        let settings = held.session().migration_settings();
        let mut options = self.pool.manager().known.good_server().options.clone();
        if held.session().is_shared() {
            options = options.extra_float_digits(None);
        }
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT);
        let pool = pool.connect_lazy_with(options);
        Ok((SqlxPostgresConnector::from_sqlx_postgres_pool(pool), settings))
    }
}

impl Known {
    fn good_server(&self) -> &Server {
        let last_good = self.last_good.load(Ordering::Relaxed);
        &self.servers.all[last_good % self.servers.all.len()]
    }

    /// No connection of this generation is used again.
    fn end_generation(&self, generation: u64) {
        let (current, next) = (generation, generation + 1);
        let ended =
            self.generation.compare_exchange(current, next, Ordering::AcqRel, Ordering::Acquire);
        if ended.is_ok() {
            tracing::info!("the connections to Postgres are made anew");
        }
    }
}

impl managed::Manager for Connector {
    type Type = Session;
    type Error = ConnectError;

    /// Asks one server after the other, first the one that served us last.
    async fn create(&self) -> Result<Session, ConnectError> {
        let Known { servers, last_good, generation, plain: any_plain } = self.known.as_ref();
        let first = last_good.load(Ordering::Relaxed);
        let (servers, timeout) = (&servers.all, servers.connect_timeout);
        let mut errors: Vec<ConnectError> = Vec::new();
        for at in (0..servers.len()).map(|next| (first + next) % servers.len()) {
            let generation = generation.load(Ordering::Acquire);
            let plain = any_plain.load(Ordering::Relaxed);
            match Session::open(&servers[at], timeout, self.purpose, generation, plain).await {
                Ok((session, plain)) => {
                    last_good.store(at, Ordering::Relaxed);
                    if plain && !any_plain.swap(true, Ordering::Relaxed) {
                        tracing::info!("Postgres is reached through a pooler");
                    }
                    return Ok(session);
                }
                Err(error) => errors.push(error),
            }
        }
        let messages: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
        Err(ConnectError {
            message: messages.join("; "),
            is_passing: errors.iter().any(|error| error.is_passing),
        })
    }

    async fn recycle(&self, session: &mut Session, _: &Metrics) -> RecycleResult<ConnectError> {
        let is_current = session.generation == self.known.generation.load(Ordering::Acquire);
        if !is_current || !session.is_clean() {
            return Err(RecycleError::message("it is of no use any more"));
        }
        let is_idle = session.idle_for() >= IDLE_BEFORE_CHECK;
        let is_ready = async {
            if is_idle {
                session.check().await?;
            }
            session.forget_old_plans().await
        };
        is_ready.await.map_err(|_| {
            self.known.end_generation(session.generation);
            RecycleError::message("it does not lead to a server that takes writes")
        })
    }
}

/// A connection in use, which goes back to the others at its end if it is as it was.
pub(super) struct Held {
    /// Always there, but for the end.
    object: Option<Object<Connector>>,
    pool: Pool<Connector>,
}

impl Held {
    pub(super) fn session(&mut self) -> &mut Session {
        #[expect(clippy::expect_used, reason = "it is taken out when this is dropped, only")]
        self.object.as_mut().expect("the connection is there until the end")
    }

    /// Looks whether an outcome says something of all connections.
    pub(super) fn settle<T>(&mut self, outcome: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        if let Err(error) = &outcome
            && is_fatal(error)
        {
            let generation = self.session().generation;
            let known = &self.pool.manager().known;
            if shows_a_pooler(error) {
                known.plain.store(true, Ordering::Relaxed);
            }
            known.end_generation(generation);
            self.pool.retain(|session, _| session.generation > generation);
        }
        outcome
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(object) = self.object.take()
            && !object.is_clean()
        {
            // Closed at once: the server undoes what was not committed.
            drop(Object::take(object));
        }
    }
}

/// Why there is no connection now.
enum Absent {
    No(ConnectError),
    AllInUse,
}

impl From<Absent> for DbErr {
    fn from(absent: Absent) -> Self {
        match absent {
            Absent::No(error) => Self::Conn(RuntimeErr::Internal(error.message)),
            Absent::AllInUse => Self::ConnectionAcquire(ConnAcquireErr::Timeout),
        }
    }
}

pub(super) fn query_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(error)))
}

pub(super) fn exec_error(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error)))
}

pub(super) fn rows_of(answer: Answer) -> Vec<QueryResult> {
    answer.rows.into_iter().map(QueryResult::from).collect()
}

#[async_trait]
impl ConnectionTrait for Postgres {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        Ok(self.run(&statement, false, exec_error).await?.result.into())
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let mut held = self.acquire().await?;
        let outcome = held.session().simple(sql).await;
        Ok(held.settle(outcome).map_err(exec_error)?.result.into())
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        Ok(self.query_all_raw(statement).await?.into_iter().next())
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        Ok(rows_of(self.run(&statement, false, query_error).await?))
    }
}
