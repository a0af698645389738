//! Stores that forget, and stores that are away for a while.

use std::time::Duration;

use vecmill::app::Role;

use super::{DEADLINE, all_ready, in_flight, ingest, nothing_is_left_in, slow_model};
use crate::common::{TestApp, TestPostgres, TestRedis, hash_model, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_redis_is_refilled_by_the_sweep() {
    const NODES: usize = 500;
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let url = redis.url();
    let settings = [("REDIS_URL", url.as_str())];
    let api = TestApp::start(Role::Api, dir.path(), &settings, None).await;
    ingest(&api, NODES).await;
    redis.flush();
    assert_eq!(api.count("queued").await, NODES as u64);
    let worker = TestApp::start(Role::Worker, dir.path(), &settings, Some(hash_model())).await;
    all_ready(&api, NODES).await;
    nothing_is_left_in(&redis);
    worker.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_loses_its_memory_under_load_is_refilled_by_the_sweep() {
    const NODES: usize = 500;
    let (mut redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let url = redis.url();
    let settings = [("REDIS_URL", url.as_str()), ("EMBEDDING_BATCH_TEXTS", "4")];
    let model = slow_model(Duration::from_millis(10));
    let app = TestApp::start(Role::Serve, dir.path(), &settings, Some(model)).await;
    ingest(&app, NODES).await;
    wait_until(DEADLINE, async || app.count("ready").await > 20).await;
    redis.kill();
    wait_until(DEADLINE, async || {
        let (status, answer) = app.get("/readyz").await;
        let detail = answer["detail"].as_str().unwrap_or_default();
        status.as_u16() == 503 && detail.contains("redis")
    })
    .await;
    redis.restart();
    all_ready(&app, NODES).await;
    nothing_is_left_in(&redis);
    assert_eq!(app.get("/readyz").await.0.as_u16(), 200);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_costs_no_attempt() {
    const NODES: usize = 400;
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let mut postgres = TestPostgres::start();
    let (url, dsn) = (redis.url(), postgres.database().await);
    let settings = [
        ("REDIS_URL", url.as_str()),
        ("ACTIVEKG_DSN", dsn.as_str()),
        ("EMBEDDING_BATCH_TEXTS", "4"),
    ];
    let model = slow_model(Duration::from_millis(10));
    let app = TestApp::start(Role::Serve, dir.path(), &settings, Some(model)).await;
    ingest(&app, NODES).await;
    wait_until(DEADLINE, async || app.count("ready").await > 20).await;
    postgres.stop();
    wait_until(DEADLINE, async || {
        let (status, answer) = app.get("/readyz").await;
        let detail = answer["detail"].as_str().unwrap_or_default();
        status.as_u16() == 503 && detail.contains("database")
    })
    .await;
    assert_eq!(app.get("/health").await.0.as_u16(), 200, "the process lives");
    postgres.start_again().await;
    assert!(app.count("ready").await < NODES as u64, "it was stopped under load");
    all_ready(&app, NODES).await;
    nothing_is_left_in(&redis);
    wait_until(DEADLINE, async || app.get("/readyz").await.0.as_u16() == 200).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_row_cannot_be_read_goes_back_without_an_attempt() {
    const NODES: usize = 40;
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let mut postgres = TestPostgres::start();
    let (url, dsn) = (redis.url(), postgres.database().await);
    let settings = [("REDIS_URL", url.as_str()), ("ACTIVEKG_DSN", dsn.as_str())];
    let api = TestApp::start(Role::Api, dir.path(), &settings, None).await;
    ingest(&api, NODES).await;
    // The queue is kept from the worker until the database is away.
    redis.cli(&["RENAME", "embedding:queue", "kept"]);
    let worker = TestApp::start(Role::Worker, dir.path(), &settings, Some(hash_model())).await;
    postgres.stop();
    redis.cli(&["RENAME", "kept", "embedding:queue"]);
    wait_until(DEADLINE, async || in_flight(&redis) > 0).await;
    let waiting = || redis.cli(&["LLEN", "embedding:queue"]).parse::<usize>().unwrap();
    wait_until(DEADLINE, async || waiting() == NODES).await;
    postgres.start_again().await;
    all_ready(&api, NODES).await;
    nothing_is_left_in(&redis);
    worker.stop().await;
    api.stop().await;
}
