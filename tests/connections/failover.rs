//! Servers that stop taking writes, or that say nothing any more, behind connections that stand.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::json;

use super::address::Address;
use crate::common::{TestApp, TestPostgres, TestRedis, wait_until};

/// The promise, and some time for a busy machine.
const REPLACED_WITHIN: Duration = Duration::from_secs(15);
const DEADLINE: Duration = Duration::from_secs(60);

/// `serve` on a database behind an address.
struct Site {
    app: TestApp,
    address: Address,
    _redis: TestRedis,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn before(server: &TestPostgres, dsn: &str) -> Self {
        let address = Address::of(server.port()).await;
        let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
        let settings = [("ACTIVEKG_DSN", address.dsn(dsn)), ("REDIS_URL", redis.url())];
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        let app = TestApp::serve(dir.path(), &settings).await;
        let site = Self { app, address, _redis: redis, _dir: dir };
        // Several at once, so that there are several connections.
        let posts = (0..8).map(|number| site.post(format!("before {number}")));
        for status in futures::future::join_all(posts).await {
            assert_eq!(status, StatusCode::ACCEPTED);
        }
        site.app.settled(DEADLINE).await;
        site
    }

    async fn post(&self, text: String) -> StatusCode {
        let node = json!({"classes": ["Doc"], "props": {"text": text}});
        self.app.post("/nodes", &node).await.0
    }

    /// Waits until nodes are taken in again; each refusal is an outage, and nothing worse.
    async fn takes_nodes_within(&self, deadline: Duration) -> Duration {
        let started = Instant::now();
        wait_until(deadline, async || {
            let status = self.post("after".to_owned()).await;
            assert!(matches!(status.as_u16(), 202 | 503), "{status}");
            status == StatusCode::ACCEPTED
        })
        .await;
        started.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_became_a_standby_is_left_at_once() {
    let old = TestPostgres::start();
    let dsn = old.database().await;
    let site = Site::before(&old, &dsn).await;
    let new = TestPostgres::standby_of(&old);
    new.sql(None, "SELECT pg_promote()").await;
    // The old one lives on, and answers those who read.
    old.sql(None, "ALTER SYSTEM SET default_transaction_read_only = on").await;
    old.sql(None, "SELECT pg_reload_conf()").await;
    site.address.lead_to(new.port());

    let recovery = site.takes_nodes_within(REPLACED_WITHIN).await;
    println!("took nodes in again after {recovery:?}");
    let counts = site.app.settled(DEADLINE).await;
    assert!(counts["ready"].as_u64().unwrap() >= 9, "{counts}");
    assert_eq!(counts["failed"], 0, "{counts}");
    assert_eq!(site.app.get("/readyz").await.0, StatusCode::OK);
    site.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_says_that_the_database_is_read_only() {
    let server = TestPostgres::start();
    let dsn = server.database().await;
    let site = Site::before(&server, &dsn).await;
    server.sql(None, "ALTER SYSTEM SET default_transaction_read_only = on").await;
    server.sql(None, "SELECT pg_reload_conf()").await;
    wait_until(DEADLINE, async || {
        let (status, answer) = site.app.get("/readyz").await;
        status == StatusCode::SERVICE_UNAVAILABLE
            && answer["detail"].as_str().unwrap().contains("read-only")
    })
    .await;
    assert_eq!(site.post("while it is read-only".to_owned()).await, 503);
    let back = "SET default_transaction_read_only = off; ALTER SYSTEM RESET ALL";
    // Not in one transaction with the first.
    for statement in back.split("; ") {
        let dsn = format!("{dsn}?options=-c%20default_transaction_read_only%3Doff");
        server.sql(Some(&dsn), statement).await;
    }
    server.sql(None, "SELECT pg_reload_conf()").await;
    site.takes_nodes_within(DEADLINE).await;
    site.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_says_which_right_is_missing() {
    let server = TestPostgres::shared();
    let dsn = server.database().await;
    let site = Site::before(server, &dsn).await;
    let role = format!("role_{}", uuid::Uuid::new_v4().simple());
    server.sql(Some(&dsn), &format!("CREATE ROLE {role} LOGIN")).await;
    server
        .sql(Some(&dsn), &format!("GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}"))
        .await;
    let as_role = dsn.replace("postgres@", &format!("{role}@"));
    let store = vecmill::store::Store::connect(&as_role, 384).await.unwrap();
    let error = store.check_writable().await.unwrap_err().for_operators();
    assert!(error.contains("INSERT") && error.contains("GRANT"), "{error}");
    site.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_servers_the_one_that_takes_writes_is_used() {
    let primary = TestPostgres::start();
    let dsn = primary.database().await;
    let standby = TestPostgres::standby_of(&primary);
    standby.sql(None, "SELECT 1").await;
    let database = dsn.rsplit_once('/').unwrap().1;
    let (standby_port, primary_port) = (standby.port(), primary.port());
    let both = format!(
        "postgresql://postgres@127.0.0.1:1,127.0.0.1:{standby_port},127.0.0.1:{primary_port}/{database}"
    );
    let dir = tempfile::tempdir().unwrap();
    let redis = TestRedis::start();
    let redis_url = redis.url();
    let settings = [("ACTIVEKG_DSN", both.as_str()), ("REDIS_URL", redis_url.as_str())];
    let app = TestApp::serve(dir.path(), &settings).await;
    app.ingest("acme", &["text".to_owned()]).await;
    assert_eq!(app.settled(DEADLINE).await["ready"], 1);
    app.stop().await;

    let only_standby = format!("postgresql://postgres@127.0.0.1:{standby_port}/{database}");
    let error = vecmill::store::Store::connect(&only_standby, 384).await.unwrap_err();
    assert!(error.is_unavailable(), "{error:?}");
    assert!(error.for_operators().contains("read-only"), "{}", error.for_operators());
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_are_replaced() {
    let server = TestPostgres::shared();
    let site = Site::before(server, &server.database().await).await;
    // Connections in the middle of work, and idle ones.
    let app = &site.app;
    let texts: Vec<String> = (0..100).map(|number| format!("text {number}")).collect();
    app.ingest("acme", &texts).await;
    let made = site.address.made();
    assert!(made > 1, "{made}");
    site.address.silence();
    let recovery = site.takes_nodes_within(REPLACED_WITHIN).await;
    println!("took nodes in again after {recovery:?}");
    let counts = site.app.settled(DEADLINE).await;
    assert_eq!(counts["failed"], 0, "{counts}");
    assert!(site.address.made() > made);
    site.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_waits_for_a_lock_keeps_its_connection() {
    let server = TestPostgres::shared();
    let dsn = server.database().await;
    let site = Site::before(server, &dsn).await;
    let locked = crate::common::connect(&dsn, 1).await.unwrap();
    let transaction = sea_orm::TransactionTrait::begin(&locked).await.unwrap();
    sea_orm::ConnectionTrait::execute_unprepared(&transaction, "LOCK TABLE nodes").await.unwrap();
    let (started, made) = (Instant::now(), site.address.made());
    let status = site.post("while the table is locked".to_owned()).await;
    // The server gives the statement up before we give the connection up.
    assert_eq!(status, 503);
    println!("refused after {:?}", started.elapsed());
    // A worker that meets the lock, too, may want another one beside; none was given up for it.
    assert!(site.address.made() <= made + 2, "connections were replaced");
    transaction.commit().await.unwrap();
    site.takes_nodes_within(DEADLINE).await;
    site.app.settled(DEADLINE).await;
    site.app.stop().await;
}
