//! Whether a write would succeed now.

use sea_orm::{ConnectionTrait, DbErr, RuntimeErr};

use super::{Store, StoreError, database::Database, postgres::Postgres};

/// What the role needs on the table.
const PRIVILEGES: [&str; 4] = ["SELECT", "INSERT", "UPDATE", "DELETE"];

impl Store {
    /// Tells what no row is to blame for: of an error that may be one row's, answers instead why
    /// the database takes no writes at all, if that is so.
    pub async fn blame(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Refused(_) | StoreError::Row(_) => match self.check_writable().await {
                Ok(()) => error,
                Err(cause) if cause.is_unavailable() => cause,
                Err(cause) => not_writable(&cause.for_operators()),
            },
            other => other,
        }
    }

    /// Whether the role has what it needs: its rights on the table, and sight of all rows.
    ///
    /// # Errors
    /// [`StoreError::Setup`] says what to grant.
    pub async fn check_rights(&self) -> Result<(), StoreError> {
        self.check_sees_all_rows().await?;
        match &self.writer {
            Database::Postgres(postgres) => match lacking(postgres).await? {
                Some(why) => Err(StoreError::Setup(why)),
                None => Ok(()),
            },
            Database::Sqlite(_) => Ok(()),
        }
    }

    /// Whether the database answers, and would take what we write: it is no standby and not
    /// read-only, the table is there, and the role has its rights on it and sees all rows.
    ///
    /// # Errors
    /// Why not; [`StoreError::for_operators`] says it in one line.
    pub async fn check_writable(&self) -> Result<(), StoreError> {
        match &self.writer {
            Database::Postgres(postgres) => {
                if let Some(why) = lacking(postgres).await? {
                    return Err(not_writable(&why));
                }
                self.check_sees_all_rows().await
            }
            Database::Sqlite(_) => self.check_sqlite().await,
        }
    }

    /// Takes the lock that a writer takes. In front of a file that was made read-only, and on a
    /// disk that fails, that is refused.
    async fn check_sqlite(&self) -> Result<(), StoreError> {
        let transaction = self.begin_write().await?;
        transaction.execute_unprepared("SELECT 1 FROM nodes LIMIT 1").await?;
        Ok(transaction.rollback().await?)
    }
}

/// What the role lacks on the table, or that this is missing.
async fn lacking(postgres: &Postgres) -> Result<Option<String>, StoreError> {
    let rights = PRIVILEGES.map(|right| {
        format!("has_table_privilege(to_regclass('nodes'), '{right}') AS \"{right}\"")
    });
    let sql = format!(
        "SELECT to_regclass('nodes') IS NOT NULL AS is_there, current_user::text AS who, {}",
        rights.join(", ")
    );
    let row = postgres.ask(&sql).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound("the state of the database".to_owned()))?;
    if !row.try_get::<bool>("", "is_there")? {
        return Ok(Some("the table nodes is missing: run `vecmill migrate`".to_owned()));
    }
    for right in PRIVILEGES {
        if row.try_get::<Option<bool>>("", right)? != Some(true) {
            let who: String = row.try_get("", "who")?;
            return Ok(Some(format!(
                "the role lacks the right {right} on table nodes: GRANT {right} ON nodes TO {who}"
            )));
        }
    }
    Ok(None)
}

fn not_writable(why: &str) -> StoreError {
    StoreError::Unavailable(DbErr::Conn(RuntimeErr::Internal(why.to_owned())))
}
