//! Databases whose settings and schemas are not the usual ones.

use std::{sync::Arc, time::Duration};

use reqwest::StatusCode;
use serde_json::json;
use tokio::task::JoinSet;

use crate::common::{TestApp, TestPgBouncer, TestPostgres, TestRedis, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

/// A database with statements run in it before the first start.
async fn prepared(statements: &[&str]) -> String {
    let server = TestPostgres::shared();
    let dsn = server.database().await;
    let database = dsn.rsplit_once('/').unwrap().1;
    for statement in statements {
        server.sql(Some(&dsn), &statement.replace("{database}", database)).await;
    }
    dsn
}

/// Takes nodes in, changes one by many clients at once, and looks at what came of it.
async fn works_on(dsn: &str) {
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let redis_url = redis.url();
    let settings = [("ACTIVEKG_DSN", dsn), ("REDIS_URL", redis_url.as_str())];
    let app = Arc::new(TestApp::serve(dir.path(), &settings).await);
    let texts: Vec<String> = (0..40).map(|number| format!("text {number}")).collect();
    let ids = app.ingest("default", &texts).await;
    assert_eq!(app.settled(DEADLINE).await["ready"], 40);
    let mut clients = JoinSet::new();
    for client in 0..40 {
        let (app, id) = (Arc::clone(&app), ids[0].clone());
        clients.spawn(async move {
            let change = json!({"metadata": {"client": client}});
            app.patch(&format!("/nodes/{id}"), &change).await
        });
    }
    for (status, answer) in clients.join_all().await {
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    let node = app.node(&ids[0]).await;
    assert_eq!(node["embedding"].as_array().unwrap().len(), 384);
    // Another process finds everything as it needs it.
    Arc::into_inner(app).unwrap().stop().await;
    let app = TestApp::serve(dir.path(), &settings).await;
    assert_eq!(app.count("ready").await, 40);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serializable_database_refuses_no_change() {
    let set = "ALTER DATABASE {database} SET default_transaction_isolation = ";
    for level in ["'serializable'", "'repeatable read'"] {
        works_on(&prepared(&[&format!("{set}{level}")]).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_may_be_quoted() {
    works_on(&prepared(&["ALTER DATABASE {database} SET quote_all_identifiers = on"]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_extension_may_be_in_a_schema_of_its_own() {
    let extension =
        ["CREATE SCHEMA \"Exten sions\"", "CREATE EXTENSION vector SCHEMA \"Exten sions\""];
    let dsn = prepared(&extension).await;
    works_on(&dsn).await;

    let dsn = prepared(&extension).await;
    let pooler = TestPgBouncer::before(TestPostgres::shared(), "").await;
    works_on(&pooler.dsn(&dsn)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_sqlite_file_is_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let app = TestApp::serve(dir.path(), &[]).await;
    assert_eq!(app.get("/readyz").await.0, StatusCode::OK);
    let dsn = format!("sqlite://{}/vecmill.db", dir.path().display());
    let other = crate::common::connect(&dsn, 1).await.unwrap();
    sea_orm::ConnectionTrait::execute_unprepared(&other, "BEGIN IMMEDIATE").await.unwrap();
    let (status, answer) = app.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer["detail"].as_str().unwrap().contains("database"), "{answer}");
    sea_orm::ConnectionTrait::execute_unprepared(&other, "ROLLBACK").await.unwrap();
    wait_until(DEADLINE, async || app.get("/readyz").await.0 == StatusCode::OK).await;
    app.stop().await;
}
