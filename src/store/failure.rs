//! What goes wrong with connections to Postgres, and what it means.

use std::{fmt::Display, io, time::Duration};

use sea_orm::sqlx;

use super::dsn::Server;

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(super) struct ConnectError {
    /// Names the server and the cause, and holds no secret.
    pub(super) message: String,
    /// Whether waiting may mend it.
    pub(super) is_passing: bool,
}

/// Whether a connection was refused for what it asked to be set: poolers know few settings.
pub(super) fn refuses_settings(error: &sqlx::Error) -> bool {
    // Protocol violation (PgBouncer), feature not supported (RDS Proxy), unknown or bad setting.
    const CODES: [&str; 5] = ["08P01", "0A000", "42704", "22023", "42501"];
    code_of(error).is_some_and(|code| CODES.contains(&code.as_str()))
}

fn code_of(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// Whether the connection is of no use any more: it is broken, or leads to a server that takes no
/// writes, or that is ending.
pub(super) fn is_fatal(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(_) => code_of(error).is_some_and(|code| {
            code.starts_with("08")
                || code.starts_with("57P")
                || code == "25006"
                || is_shared_unawares(&code)
        }),
        _ => false,
    }
}

/// A prepared statement is gone, or there already: somebody stands in between who gave no sign.
fn is_shared_unawares(code: &str) -> bool {
    matches!(code, "26000" | "42P05")
}

/// Whether the error shows that others use the server between our statements.
pub(super) fn shows_a_pooler(error: &sqlx::Error) -> bool {
    code_of(error).is_some_and(|code| is_shared_unawares(&code))
}

/// A server did not answer in time.
pub(super) fn silent() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time"))
}

/// A server takes no writes.
pub(super) fn read_only() -> sqlx::Error {
    sqlx::Error::Io(io::Error::other("the server is read-only"))
}

/// Why a server is of no use.
pub(super) enum NoConnection {
    Error(sqlx::Error),
    ReadOnly,
    Silent(Duration),
}

impl From<sqlx::Error> for NoConnection {
    fn from(error: sqlx::Error) -> Self {
        Self::Error(error)
    }
}

impl NoConnection {
    /// What an operator reads of it.
    pub(super) fn at(self, server: &Server) -> ConnectError {
        let name = &server.name;
        let (message, is_passing) = match self {
            Self::ReadOnly => (
                format!(
                    "Postgres at {name} is read-only (a standby, or default_transaction_read_only)"
                ),
                true,
            ),
            Self::Silent(timeout) => {
                (format!("cannot reach Postgres at {name}: no answer within {timeout:?}"), true)
            }
            Self::Error(sqlx::Error::Io(error)) if is_tls(&error) => (no_tls(name, &error), false),
            Self::Error(sqlx::Error::Io(error)) => {
                (format!("cannot reach Postgres at {name}: {}", cause_of(&error)), true)
            }
            Self::Error(sqlx::Error::Tls(error)) => (no_tls(name, &error), false),
            Self::Error(error) => refused(name, &error),
        };
        ConnectError { message, is_passing }
    }
}

/// Whether the server was reached, and TLS failed.
fn is_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<rustls::Error>())
}

fn no_tls(name: &str, error: &impl Display) -> String {
    format!(
        "no TLS connection to Postgres at {name}: {error}; check sslmode, sslrootcert and the \
         certificate of the server"
    )
}

/// Without the number that the system has for it.
fn cause_of(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::NotFound => "there is no such socket".to_owned(),
        _ => error.to_string(),
    }
}

fn refused(name: &str, error: &sqlx::Error) -> (String, bool) {
    let Some(database) = error.as_database_error() else {
        return (format!("no connection to Postgres at {name}: {error}"), false);
    };
    let message = database.message();
    let code = database.code().unwrap_or_default();
    // PgBouncer has one code for all that it refuses.
    let is_lasting =
        ["no such", "authentication", "required"].iter().any(|words| message.contains(words));
    // No resources, starting or ending, connection lost behind a pooler.
    if !is_lasting && ["53", "57P", "08"].iter().any(|class| code.starts_with(class)) {
        return (format!("Postgres at {name} takes no connection: {message}"), true);
    }
    let text = format!(
        "Postgres at {name} refused the connection: {message}; check the user, password and \
         database name in the DSN"
    );
    (text, false)
}
