//! An ActiveKG database, and Vecmill on it.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use serde_json::Value;
use vecmill::app::{App, Role};

use crate::common::{
    TestApp, TestPostgres, TestRedis, connect, hash_model, wait_until, with_short_intervals,
};

pub const DEADLINE: Duration = Duration::from_secs(30);

/// The servers, and the database as its owner sees it.
pub struct Site {
    pub redis: TestRedis,
    /// Of the owner of the tables.
    pub dsn: String,
    pub raw: DatabaseConnection,
    dir: tempfile::TempDir,
}

impl Site {
    /// Its tables, without row-level security.
    pub async fn new() -> Self {
        let dsn = TestPostgres::shared().database().await;
        let raw = connect(&dsn, 2).await.unwrap();
        raw.execute_unprepared(include_str!("schema.sql")).await.unwrap();
        Self { redis: TestRedis::start(), dsn, raw, dir: tempfile::tempdir().unwrap() }
    }

    /// With row-level security, and the roles that it is about: `admin_role`, and two that may log
    /// in and have the rights of a user, of which the second is a member of `admin_role`.
    pub async fn secured() -> (Self, [String; 2]) {
        let site = Self::new().await;
        // Roles are of the whole server, which tests share.
        let suffix = uuid::Uuid::new_v4().simple().to_string();
        let names = ["plain", "member"].map(|name| format!("{name}_{suffix}"));
        site.sql(
            "DO $$ BEGIN CREATE ROLE admin_role; \
             EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$",
        )
        .await;
        site.sql(include_str!("rls.sql")).await;
        let [plain, member] = &names;
        site.sql(&format!("CREATE ROLE {plain} LOGIN; CREATE ROLE {member} LOGIN")).await;
        site.sql(&format!("GRANT admin_role TO {member}")).await;
        // The owner migrates; the others need no right to create anything.
        let app = site.start(Role::Api, &site.dsn, &[]).await.unwrap();
        app.stop().await;
        for role in &names {
            site.sql(&format!(
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
            ))
            .await;
        }
        let dsns = names.map(|name| site.dsn.replace("postgres@", &format!("{name}@")));
        (site, dsns)
    }

    pub async fn sql(&self, sql: &str) {
        self.raw.execute_unprepared(sql).await.unwrap();
    }

    /// The first column of the rows that a query finds, as JSON.
    pub async fn find(&self, sql: &str) -> Vec<Value> {
        let sql = format!("SELECT to_jsonb(found) FROM ({sql}) AS found");
        let statement = Statement::from_string(self.raw.get_database_backend(), sql);
        let rows = self.raw.query_all_raw(statement).await.unwrap();
        rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
    }

    /// Starts a Vecmill; the error is what an operator reads.
    pub async fn start(
        &self,
        role: Role,
        dsn: &str,
        settings: &[(&str, &str)],
    ) -> Result<TestApp, String> {
        let url = self.redis.url();
        let mut all = vec![("REDIS_URL", url.as_str()), ("ACTIVEKG_DSN", dsn)];
        all.extend_from_slice(settings);
        let settings = with_short_intervals(self.dir.path(), &all);
        let config = vecmill::config::Settings::with(&settings).map_err(|e| e.to_string())?;
        match App::start_with(role, config, Some(hash_model()), Default::default()).await {
            Ok(app) => Ok(TestApp::of(app)),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    /// Jobs that wait or are in hand, at one moment.
    pub fn waiting(&self) -> u64 {
        let count = "return redis.call('LLEN', 'embedding:queue') \
                     + redis.call('HLEN', 'embedding:queue:inflight') \
                     + redis.call('ZCARD', 'embedding:retry')";
        self.redis.cli(&["EVAL", count, "0"]).parse().unwrap()
    }

    /// How often jobs were claimed.
    fn claims(&self) -> u64 {
        let stats = self.redis.cli(&["INFO", "commandstats"]);
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_rpop:calls="));
        calls.and_then(|calls| calls.split(',').next()?.parse().ok()).unwrap_or(0)
    }

    /// Waits until workers have claimed some times more, and checks each time that nothing is
    /// ended.
    pub async fn keeps_all_through_claims(&self) {
        let (jobs, claims) = (self.waiting(), self.claims());
        wait_until(DEADLINE, async || {
            assert_eq!(self.waiting(), jobs);
            self.claims() >= claims + 4
        })
        .await;
    }

    /// `serve`, as the owner of the tables.
    pub async fn serve(&self) -> TestApp {
        self.start(Role::Serve, &self.dsn, &[]).await.unwrap()
    }
}
