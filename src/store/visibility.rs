//! Whether the database hides rows from us, as Postgres does under row-level security; and how that
//! is switched on.

use sea_orm::{ConnectionTrait, DbBackend, Statement, TransactionTrait};

use super::{Store, StoreError, database::Database, dialect::Dialect};

/// Of a table: whether every row is seen and may be written, who we are, and a role that sees all.
/// A policy counts only if it lets every row pass literally: what another expression lets pass is
/// not known.
fn sight(table: &str) -> String {
    format!(
        "WITH mine AS ( \
           SELECT p.polcmd, p.polpermissive, \
                  coalesce(pg_get_expr(p.polqual, p.polrelid), 'true') = 'true' \
                  AND coalesce(pg_get_expr(p.polwithcheck, p.polrelid), 'true') = 'true' \
                    AS all_rows \
           FROM pg_policy AS p \
           WHERE p.polrelid = to_regclass('{table}') AND EXISTS ( \
             SELECT FROM unnest(p.polroles) AS role \
             WHERE role = 0 OR pg_has_role(role, 'USAGE')) \
         ) \
         SELECT NOT row_security_active(c.oid) OR ( \
             NOT EXISTS (SELECT FROM mine WHERE NOT polpermissive AND NOT all_rows) \
             AND NOT EXISTS ( \
               SELECT FROM unnest(ARRAY['r', 'a', 'w', 'd']) AS command WHERE NOT EXISTS ( \
                 SELECT FROM mine \
                 WHERE polpermissive AND all_rows AND polcmd::text IN ('*', command))) \
           ) AS sees_all, \
           quote_ident(current_user) AS who, \
           (SELECT quote_ident(r.rolname) FROM pg_policy AS p, unnest(p.polroles) AS role \
              JOIN pg_roles AS r ON r.oid = role \
            WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd = '*' \
              AND pg_get_expr(p.polqual, p.polrelid) = 'true' \
            ORDER BY 1 LIMIT 1) AS admin \
         FROM pg_class AS c WHERE c.oid = to_regclass('{table}')"
    )
}

/// Switches row-level security on, with policies like those of ActiveKG if there are none yet.
const ENABLE: &str = "\
DO $$ BEGIN \
  IF NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = 'nodes'::regclass) THEN \
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'admin_role') THEN \
      CREATE ROLE admin_role; \
    END IF; \
    CREATE POLICY vecmill_admin ON nodes TO admin_role USING (true) WITH CHECK (true); \
    CREATE POLICY vecmill_tenants ON nodes \
      USING (coalesce(tenant_id, 'default') = current_setting('app.current_tenant_id', true)); \
  END IF; \
  ALTER TABLE nodes ENABLE ROW LEVEL SECURITY; \
END $$";

impl Store {
    /// Whether this process sees, and may write, the rows of all tenants. Without a table there
    /// is nothing to hide.
    ///
    /// # Errors
    /// [`StoreError::Setup`] says what to grant when it does not.
    pub async fn check_sees_all_rows(&self) -> Result<(), StoreError> {
        let Database::Postgres(postgres) = &self.writer else { return Ok(()) };
        let sight = self.check_sight("nodes").await;
        let is_hidden = matches!(sight, Err(StoreError::Setup(_)));
        if self.facts.note_hidden(is_hidden) || is_hidden {
            postgres.renew();
        }
        sight
    }

    pub(super) async fn check_sight(&self, table: &str) -> Result<(), StoreError> {
        let statement = Statement::from_string(DbBackend::Postgres, sight(table));
        let Some(row) = self.writer.query_anew(statement).await?.pop() else { return Ok(()) };
        if row.try_get::<bool>("", "sees_all")? {
            return Ok(());
        }
        let who: String = row.try_get("", "who")?;
        let remedy = match row.try_get::<Option<String>>("", "admin")? {
            Some(admin) => format!("GRANT {admin} TO {who}"),
            None => format!("CREATE POLICY vecmill_all ON {table} TO {who} USING (true)"),
        };
        Err(StoreError::Setup(format!(
            "row-level security hides rows of table {table} from the role {who}: as a superuser or \
             the owner of the table, run {remedy}"
        )))
    }

    /// Switches row-level security on for `nodes`: a role sees the rows of the tenant that its
    /// session sets as `app.current_tenant_id`, and members of the answered role see all. Policies
    /// that are there stay as they are; `None` if no role sees all by them.
    ///
    /// # Errors
    /// The role may not, or the database knows no such thing.
    pub async fn enable_row_level_security(&self) -> Result<Option<String>, StoreError> {
        if matches!(self.dialect(), Dialect::Sqlite) {
            return Err(StoreError::Setup(
                "SQLite has no row-level security: use --rls with Postgres only".to_owned(),
            ));
        }
        let (connection, _) = self.writer.for_migration().await?;
        let transaction = connection.begin().await?;
        transaction.execute_unprepared("SET LOCAL lock_timeout = '5s'").await?;
        transaction.execute_unprepared(ENABLE).await?;
        transaction.commit().await?;
        let statement = Statement::from_string(DbBackend::Postgres, sight("nodes"));
        let row = self.writer.query_one_raw(statement).await?;
        Ok(row.map(|row| row.try_get("", "admin")).transpose()?.flatten())
    }
}
