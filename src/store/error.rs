//! Which database errors mean that the database is away.

use sea_orm::{DbErr, RuntimeErr, sqlx};

use super::{Refusal, StoreError};

impl StoreError {
    /// Whether the same call may succeed later, with nobody changing anything but the database
    /// coming back.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// Whether the server gave the statement up because it took too long: less at once may do.
    pub fn took_too_long(&self) -> bool {
        let Self::Unavailable(error) = self else { return false };
        database_error(error).and_then(|error| error.code()).is_some_and(|code| code == "57014")
    }

    /// See [`is_conflict`].
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Unavailable(error) if is_conflict(error))
    }

    /// What is wrong and what to do, in one line, for those who start the program.
    pub fn for_operators(&self) -> String {
        match self {
            Self::Unavailable(DbErr::Conn(RuntimeErr::Internal(cause))) => cause.clone(),
            Self::Unavailable(error) | Self::Refused(error) => match database_error(error) {
                Some(refused) if refused.code().as_deref() == Some(NO_PRIVILEGE) => {
                    format!("Postgres: {}; {RIGHTS}", refused.message())
                }
                Some(refused) => format!("{self}: {}", refused.message()),
                None => format!("{self}: {error}"),
            },
            other => other.to_string(),
        }
    }
}

/// SQLSTATE of a right that the role lacks.
const NO_PRIVILEGE: &str = "42501";

/// What the role must be allowed.
const RIGHTS: &str = "as the owner of the database or a superuser, run: GRANT USAGE, CREATE ON \
     SCHEMA public TO <role>; and, if another role owns the table, GRANT SELECT, INSERT, UPDATE, \
     DELETE ON nodes TO <role>, and run `vecmill migrate` as that owner first";

/// The database's own words in an error.
fn database_error(error: &DbErr) -> Option<&dyn sqlx::error::DatabaseError> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => error.as_database_error(),
        _ => None,
    }
}

/// Whether the database rolled a unit of work back in favour of another's, so that it can be done
/// again: a deadlock, or what a serializable transaction refuses.
pub(super) fn is_conflict(error: &DbErr) -> bool {
    database_error(error)
        .and_then(|error| error.code())
        .is_some_and(|code| matches!(code.as_ref(), "40001" | "40P01"))
}

/// Whether a lock was not to be had in the time that the statement had for it.
pub(super) fn is_lock_timeout(error: &DbErr) -> bool {
    database_error(error).and_then(|error| error.code()).is_some_and(|code| code == "55P03")
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        let unavailable = match &error {
            // There is no connection, for whatever reason: see `session::ConnectError`.
            DbErr::ConnectionAcquire(_) | DbErr::Conn(RuntimeErr::Internal(_)) => true,
            DbErr::Conn(runtime) | DbErr::Exec(runtime) | DbErr::Query(runtime) => {
                is_unavailable(runtime)
            }
            _ => false,
        };
        if unavailable {
            return Self::Unavailable(error);
        }
        Refusal::of(&error).map_or(Self::Refused(error), Self::Row)
    }
}

fn is_unavailable(error: &RuntimeErr) -> bool {
    let RuntimeErr::SqlxError(error) = error else {
        return false;
    };
    match error.as_ref() {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            if error.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
                sqlite_code_is_passing(&code)
            } else {
                postgres_code_is_passing(&code)
            }
        }
        _ => false,
    }
}

/// Connection lost (08), no resources (53), shut down or starting (57P), statement cancelled,
/// rolled back in favour of another (40), lock not granted, not the primary (any more), a prepared
/// statement that a pooler has given to another.
fn postgres_code_is_passing(code: &str) -> bool {
    code.starts_with("08")
        || code.starts_with("40")
        || code.starts_with("53")
        || code.starts_with("57P")
        || matches!(code, "57014" | "55P03" | "25006" | "26000" | "42P05")
}

const SQLITE_BUSY: i32 = 5;
const SQLITE_LOCKED: i32 = 6;
const SQLITE_READONLY: i32 = 8;
const SQLITE_IOERR: i32 = 10;
const SQLITE_FULL: i32 = 13;
const SQLITE_CANTOPEN: i32 = 14;

fn sqlite_code_is_passing(code: &str) -> bool {
    matches!(
        sqlite_primary_code(code),
        Some(
            SQLITE_BUSY
                | SQLITE_LOCKED
                | SQLITE_READONLY
                | SQLITE_IOERR
                | SQLITE_FULL
                | SQLITE_CANTOPEN
        )
    )
}

/// The low byte of an extended code.
fn sqlite_primary_code(code: &str) -> Option<i32> {
    code.parse::<i32>().ok().map(|code| code & 0xff)
}

/// Whether SQLite could not open or create its file.
pub(super) fn is_sqlite_cannot_open(error: &DbErr) -> bool {
    sqlite_code_at_opening(error) == Some(SQLITE_CANTOPEN)
}

/// Whether others were at a file of SQLite when it was opened.
pub(super) fn is_sqlite_busy(error: &DbErr) -> bool {
    sqlite_code_at_opening(error) == Some(SQLITE_BUSY)
}

fn sqlite_code_at_opening(error: &DbErr) -> Option<i32> {
    let DbErr::Conn(RuntimeErr::SqlxError(error)) = error else { return None };
    sqlite_primary_code(&error.as_database_error()?.code()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_by_itself_is_unavailable() {
        for code in ["08006", "25006", "26000", "40P01", "53100", "53300", "57P01"] {
            assert!(postgres_code_is_passing(code), "{code}");
        }
        for code in ["23505", "22P05", "42P01", "28P01", ""] {
            assert!(!postgres_code_is_passing(code), "{code}");
        }
        for code in ["5", "8", "517", "13", "3850"] {
            assert!(sqlite_code_is_passing(code), "{code}");
        }
        for code in ["1", "19", "2067", ""] {
            assert!(!sqlite_code_is_passing(code), "{code}");
        }
    }
}
