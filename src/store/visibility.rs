//! What a row that is not found means: whether the database hides rows of `nodes` from us, as
//! Postgres does under row-level security, and which database this is.

use sea_orm::{ConnectionTrait, DbBackend, Statement};
use sha2::{Digest, Sha256};

use super::{
    Store, StoreError,
    dialect::{Dialect, hex},
};

/// Of table `nodes`: whether every row is seen and may be written, who we are, and a role that
/// sees all. A policy counts only if it lets every row pass literally: what another expression
/// lets pass is not known.
const SIGHT: &str = "\
WITH mine AS ( \
  SELECT p.polcmd, p.polpermissive, \
         coalesce(pg_get_expr(p.polqual, p.polrelid), 'true') = 'true' \
         AND coalesce(pg_get_expr(p.polwithcheck, p.polrelid), 'true') = 'true' AS all_rows \
  FROM pg_policy AS p \
  WHERE p.polrelid = to_regclass('nodes') AND EXISTS ( \
    SELECT FROM unnest(p.polroles) AS role WHERE role = 0 OR pg_has_role(role, 'USAGE')) \
) \
SELECT NOT row_security_active(c.oid) OR ( \
    NOT EXISTS (SELECT FROM mine WHERE NOT polpermissive AND NOT all_rows) \
    AND NOT EXISTS ( \
      SELECT FROM unnest(ARRAY['r', 'a', 'w', 'd']) AS command WHERE NOT EXISTS ( \
        SELECT FROM mine WHERE polpermissive AND all_rows AND polcmd::text IN ('*', command))) \
  ) AS sees_all, \
  quote_ident(current_user) AS who, \
  (SELECT quote_ident(r.rolname) FROM pg_policy AS p, unnest(p.polroles) AS role \
     JOIN pg_roles AS r ON r.oid = role \
   WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd = '*' \
     AND pg_get_expr(p.polqual, p.polrelid) = 'true' \
   ORDER BY 1 LIMIT 1) AS admin \
FROM pg_class AS c WHERE c.oid = to_regclass('nodes')";

/// The same on all servers of a cluster, and another after a dump was restored elsewhere.
const POSTGRES_IDENTITY: &str = "\
SELECT c.system_identifier::text || ':' || d.oid::text AS name \
FROM pg_control_system() AS c, pg_database AS d WHERE d.datname = current_database()";
const SQLITE_IDENTITY: &str = "SELECT file AS name FROM pragma_database_list WHERE name = 'main'";
/// Bytes of a hash that tell two databases apart.
const IDENTITY_BYTES: usize = 8;

impl Store {
    /// Identifies this database; `None` before [`Store::migrate`], or if the server does not say.
    pub fn identity(&self) -> Option<&str> {
        self.identity.get().map(String::as_str)
    }

    pub(super) async fn identify(&self) -> Result<(), StoreError> {
        let (backend, sql) = match self.dialect() {
            Dialect::Postgres => (DbBackend::Postgres, POSTGRES_IDENTITY),
            Dialect::Sqlite => (DbBackend::Sqlite, SQLITE_IDENTITY),
        };
        let name: Option<String> = match self
            .writer
            .query_one_raw(Statement::from_string(backend, sql))
            .await
            .map_err(StoreError::from)
        {
            Ok(row) => row.map(|row| row.try_get("", "name")).transpose()?,
            Err(StoreError::Refused(_)) => None,
            Err(error) => return Err(error),
        };
        if let Some(name) = name {
            let digest = Sha256::digest(name);
            // A second call finds the same.
            let _ = self.identity.set(hex(&digest[..IDENTITY_BYTES]));
        }
        Ok(())
    }

    /// Whether this process sees, and may write, the rows of all tenants. Without a table there
    /// is nothing to hide.
    ///
    /// # Errors
    /// [`StoreError::Setup`] says what to grant when it does not.
    pub async fn check_sees_all_rows(&self) -> Result<(), StoreError> {
        if matches!(self.dialect(), Dialect::Sqlite) {
            return Ok(());
        }
        let statement = Statement::from_string(DbBackend::Postgres, SIGHT);
        let Some(row) = self.writer.query_one_raw(statement).await? else { return Ok(()) };
        if row.try_get::<bool>("", "sees_all")? {
            return Ok(());
        }
        let who: String = row.try_get("", "who")?;
        let remedy = match row.try_get::<Option<String>>("", "admin")? {
            Some(admin) => format!("GRANT {admin} TO {who}"),
            None => format!("CREATE POLICY vecmill_all ON nodes TO {who} USING (true)"),
        };
        Err(StoreError::Setup(format!(
            "row-level security hides rows of table nodes from the role {who}: run {remedy} as \
             the owner of the table"
        )))
    }
}
