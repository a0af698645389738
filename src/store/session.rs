//! One connection to Postgres, which leads to a server that takes writes, and knows whether a pooler
//! stands in between.
//!
//! A pooler that gives a server to another client after each transaction keeps nothing for us from
//! one transaction to the next: no prepared statement, no setting. Behind one, everything that
//! belongs together therefore travels in one transaction, a single statement too, and statements
//! have no names.

use std::time::{Duration, Instant};

use futures::TryStreamExt;
use sea_orm::{
    Statement, Value,
    sea_query::Values,
    sqlx::{
        self, AssertSqlSafe, ConnectOptions as _, Either, Executor, Row,
        postgres::{PgConnectOptions, PgConnection, PgQueryResult, PgRow},
    },
};
use sea_query_sqlx::SqlxValues;
use uuid::Uuid;

use super::{
    dsn::Server,
    failure::{ConnectError, NoConnection, is_fatal, read_only, refuses_settings, silent},
};

/// How long the server lets a statement take, waiting for locks included: less than we wait for
/// the answer, so that the connection can be used again.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that a server may be silent while it owes us an answer. Nothing else tells a
/// connection that swallows everything from one that works.
const PATIENCE: Duration = Duration::from_secs(12);
/// How long a server may take for what needs no disk and no lock.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a plan is used.
const PLANS_LIVE: Duration = Duration::from_secs(5);

/// A setting of our own that the server knows us by, as long as it serves nobody else.
const MARK: &str = "vecmill.session";

/// Settings that our statements are written for, whatever the defaults of the database are:
/// transactions that see what others committed before each statement, and names without quotes.
const SETTINGS: [(&str, &str); 2] =
    [("default_transaction_isolation", "read committed"), ("quote_all_identifiers", "off")];
/// Of connections for lists, in addition: rows come by an index in its order, and no sooner than they
/// are wanted, whatever the planner believes of the table. It is not told which status is meant, so
/// that it does not take a partial index that holds more than that, in another order.
const SETTINGS_FOR_LISTS: [(&str, &str); 4] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("jit", "off"),
    ("plan_cache_mode", "force_generic_plan"),
];

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Taking nodes in, and storing vectors.
    Work,
    /// What operators ask for.
    Lists,
}

impl Purpose {
    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Work => &[],
            Self::Lists => &SETTINGS_FOR_LISTS,
        }
    }
}

/// A connection.
pub(super) struct Session {
    connection: PgConnection,
    purpose: Purpose,
    /// Whether the server may serve others between our transactions.
    is_shared: bool,
    /// Where names without a schema are looked for, if that must differ from the default.
    search_path: Option<String>,
    /// What begins a transaction.
    begin: String,
    /// Whether the server owes an answer, or was of no use when it gave its last one.
    is_broken: bool,
    in_transaction: bool,
    answered: Instant,
    /// When the server last had no plan of ours.
    planned_since: Instant,
    /// Which of the pool's generations it belongs to.
    pub(super) generation: u64,
}

/// What a statement led to.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) result: PgQueryResult,
    pub(super) rows: Vec<PgRow>,
}

impl Session {
    /// Connects to a server that takes writes.
    ///
    /// A server that is known to refuse settings at the start of a connection, as poolers do, is
    /// `plain`; the answer says whether it is.
    pub(super) async fn open(
        server: &Server,
        timeout: Duration,
        purpose: Purpose,
        generation: u64,
        plain: bool,
    ) -> Result<(Self, bool), ConnectError> {
        let opened = tokio::time::timeout(timeout, async {
            let mark = Uuid::new_v4().simple().to_string();
            let (connection, plain) = connect(&server.options, &mark, purpose, plain).await?;
            let mut session = Self {
                connection,
                purpose,
                is_shared: true,
                search_path: None,
                begin: String::new(),
                is_broken: false,
                in_transaction: false,
                answered: Instant::now(),
                planned_since: Instant::now(),
                generation,
            };
            let state = session.state().await?;
            if state.is_read_only {
                return Err(NoConnection::ReadOnly);
            }
            session.settle(state, &mark).await?;
            Ok((session, plain))
        });
        match opened.await {
            Ok(opened) => opened.map_err(|reason| reason.at(server)),
            Err(_) => Err(NoConnection::Silent(timeout).at(server)),
        }
    }

    /// Prepares for statements, by what the server says of itself.
    async fn settle(&mut self, state: State, mark: &str) -> Result<(), sqlx::Error> {
        self.is_shared = state.mark != mark;
        self.search_path = state.search_path;
        self.begin = "BEGIN ISOLATION LEVEL READ COMMITTED".to_owned();
        if self.is_shared {
            self.begin.push_str(&format!("; {}", self.local_settings(STATEMENT_TIMEOUT)));
        } else if let Some(path) = &self.search_path {
            let path = format!("SET search_path = {path}");
            self.simple(&path).await?;
        }
        Ok(())
    }

    /// Whether the server may serve others between our transactions.
    pub(super) fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Whether the next caller finds it as this one did.
    pub(super) fn is_clean(&self) -> bool {
        !self.is_broken && !self.in_transaction
    }

    /// Whether nothing can be done with it any more.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// How long ago the server last answered.
    pub(super) fn idle_for(&self) -> Duration {
        self.answered.elapsed()
    }

    /// Whether the server still answers, and still takes writes.
    pub(super) async fn check(&mut self) -> Result<(), sqlx::Error> {
        let state = tokio::time::timeout(CHECK_TIMEOUT, self.state()).await;
        match state.map_err(|_| silent())?? {
            state if state.is_read_only => Err(read_only()),
            _ => Ok(()),
        }
    }

    /// Has the server plan statements again that it planned a while ago. It does not notice by itself that
    /// a role was given a right under row-level security: what was planned before finds nothing.
    pub(super) async fn forget_old_plans(&mut self) -> Result<(), sqlx::Error> {
        // What is shared keeps no plans from one transaction to the next.
        if self.is_shared || self.planned_since.elapsed() < PLANS_LIVE {
            return Ok(());
        }
        tokio::time::timeout(CHECK_TIMEOUT, self.simple("DISCARD PLANS"))
            .await
            .map_err(|_| silent())??;
        self.planned_since = Instant::now();
        Ok(())
    }

    /// What sets a transaction of a migration up, which may take as long as it takes.
    pub(super) fn migration_settings(&self) -> String {
        let settings = self.local_settings(Duration::ZERO);
        // Statements with names may be left there by others.
        let end = if self.is_shared { "; DEALLOCATE ALL" } else { "" };
        format!("SET TRANSACTION ISOLATION LEVEL READ COMMITTED; {settings}{end}")
    }

    /// Settings that hold until the end of a transaction.
    fn local_settings(&self, statement_timeout: Duration) -> String {
        let mut sql = format!("SET LOCAL statement_timeout = '{}s'", statement_timeout.as_secs());
        sql.push_str("; SET LOCAL quote_all_identifiers = off");
        for (name, value) in self.purpose.settings() {
            sql.push_str(&format!("; SET LOCAL {name} = {value}"));
        }
        if let Some(path) = &self.search_path {
            sql.push_str(&format!("; SET LOCAL search_path = {path}"));
        }
        sql
    }

    async fn state(&mut self) -> Result<State, sqlx::Error> {
        // The schema of the type is added where names without one would not find it.
        let sql = format!(
            "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' \
               AS is_read_only, coalesce(current_setting('{MARK}', true), '') AS mark, \
             (SELECT concat_ws(', ', nullif(current_setting('search_path'), ''), \
                quote_ident(n.nspname)) \
              FROM pg_catalog.pg_extension AS e \
              JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace \
              WHERE e.extname = 'vector' AND n.nspname <> ALL (current_schemas(true))) \
               AS search_path"
        );
        let answer = self.simple(&sql).await?;
        let row = answer.rows.first().ok_or(sqlx::Error::RowNotFound)?;
        Ok(State {
            is_read_only: row.try_get("is_read_only")?,
            mark: row.try_get("mark")?,
            search_path: row.try_get("search_path")?,
        })
    }

    /// Runs one statement for itself; `anew` if it must be planned for this once, whatever was
    /// planned before.
    pub(super) async fn run(
        &mut self,
        statement: &Statement,
        anew: bool,
    ) -> Result<Answer, sqlx::Error> {
        if !self.is_shared {
            return self.run_as(statement, !anew).await;
        }
        self.begin().await?;
        match self.run_here(statement).await {
            Ok(answer) => self.end("COMMIT").await.map(|()| answer),
            Err(error) => {
                if !self.is_broken {
                    // If this fails, the connection is not clean, and is not used again.
                    let _ = self.end("ROLLBACK").await;
                }
                Err(error)
            }
        }
    }

    /// Runs one statement, which may be part of a transaction.
    pub(super) async fn run_here(&mut self, statement: &Statement) -> Result<Answer, sqlx::Error> {
        self.run_as(statement, !self.is_shared).await
    }

    async fn run_as(
        &mut self,
        statement: &Statement,
        is_kept: bool,
    ) -> Result<Answer, sqlx::Error> {
        let values = statement.values.clone().unwrap_or(Values(Vec::<Value>::new()));
        let query = sqlx::query_with(AssertSqlSafe(statement.sql.as_str()), SqlxValues(values))
            .persistent(is_kept);
        self.exchange(query).await
    }

    /// Runs SQL without parameters, all of it in one transaction, in one round trip. Values of
    /// rows come as texts.
    pub(super) async fn simple(&mut self, sql: &str) -> Result<Answer, sqlx::Error> {
        self.exchange(AssertSqlSafe(sql.to_owned())).await
    }

    /// Begins a transaction. Until it ends, the connection is not clean.
    pub(super) async fn begin(&mut self) -> Result<(), sqlx::Error> {
        let begin = self.begin.clone();
        self.in_transaction = true;
        self.simple(&begin).await.map(drop)
    }

    /// Ends a transaction: `COMMIT` or `ROLLBACK`.
    pub(super) async fn end(&mut self, how: &'static str) -> Result<(), sqlx::Error> {
        self.simple(how).await?;
        self.in_transaction = false;
        Ok(())
    }

    /// Sends something and takes the whole answer, as long as it keeps coming. When this is given
    /// up in between, or ends with an error that only a new connection mends, the connection is
    /// broken.
    async fn exchange<'q>(
        &mut self,
        query: impl sqlx::Execute<'q, sqlx::Postgres> + 'q,
    ) -> Result<Answer, sqlx::Error> {
        self.is_broken = true;
        let mut answer = Answer::default();
        let outcome = {
            let mut parts = (&mut self.connection).fetch_many(query);
            loop {
                match tokio::time::timeout(PATIENCE, parts.try_next()).await {
                    Ok(Ok(Some(Either::Left(result)))) => answer.result.extend([result]),
                    Ok(Ok(Some(Either::Right(row)))) => answer.rows.push(row),
                    Ok(Ok(None)) => break Ok(()),
                    Ok(Err(error)) => break Err(error),
                    Err(_) => break Err(silent()),
                }
            }
        };
        if outcome.as_ref().err().is_none_or(|error| !is_fatal(error)) {
            self.is_broken = false;
            self.answered = Instant::now();
        }
        outcome.map(|()| answer)
    }
}

/// What the server says of itself.
struct State {
    is_read_only: bool,
    mark: String,
    /// Where names without a schema are looked for, if that must differ from the default.
    search_path: Option<String>,
}

/// Connects with settings of our own, or else without; answers whether it is without.
async fn connect(
    options: &PgConnectOptions,
    mark: &str,
    purpose: Purpose,
    plain: bool,
) -> Result<(PgConnection, bool), sqlx::Error> {
    if !plain {
        let timeout = format!("{}s", STATEMENT_TIMEOUT.as_secs());
        let own = options
            .clone()
            .options([(MARK, mark), ("statement_timeout", &timeout)])
            .options(SETTINGS)
            .options(purpose.settings().iter().copied());
        match own.connect().await {
            Err(error) if refuses_settings(&error) => {}
            connected => return Ok((connected?, false)),
        }
    }
    let plain = options.clone().extra_float_digits(None);
    Ok((plain.connect().await?, true))
}
