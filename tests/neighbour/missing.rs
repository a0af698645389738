//! Rows that a worker does not find.

use serde_json::json;
use vecmill::app::Role;

use crate::{
    common::{TestPostgres, wait_until},
    site::{DEADLINE, Site},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_another_database_takes_no_job_away() {
    let site = Site::new().await;
    let api = site.start(Role::Api, &site.dsn, &[]).await.unwrap();
    let texts: Vec<String> = (0..150).map(|i| format!("text {i}")).collect();
    api.ingest("acme", &texts).await;
    assert_eq!(site.waiting(), 150);

    let other = TestPostgres::shared().database().await;
    let stray = site.start(Role::Worker, &other, &[]).await.unwrap();
    // It claims and hands back.
    site.keeps_all_through_claims().await;
    let worker = site.start(Role::Worker, &site.dsn, &[]).await.unwrap();
    wait_until(DEADLINE, async || api.count("ready").await == 150).await;
    stray.stop().await;
    worker.stop().await;
    api.stop().await;
}

fn push_foreign(site: &Site, node: &str) {
    let job = json!({"job_id": "j", "node_id": node, "tenant_id": "acme", "action": "embed",
        "attempts": 0});
    site.redis.cli(&["LPUSH", "embedding:queue", &job.to_string()]);
}

fn nobody() -> String {
    uuid::Uuid::new_v4().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn not_even_one_job_of_another_producer_is_ended_before_any_row_was_found() {
    let site = Site::new().await;
    push_foreign(&site, &nobody());
    let other = TestPostgres::shared().database().await;
    let stray = site.start(Role::Worker, &other, &[]).await.unwrap();
    let aside = async || site.redis.cli(&["ZCARD", "embedding:retry"]) == "1";
    wait_until(DEADLINE, aside).await;
    stray.stop().await;

    // With any row found, one that is not there is gone.
    let app = site.serve().await;
    app.ingest("acme", &["a".to_owned()]).await;
    wait_until(DEADLINE, async || app.count("ready").await == 1).await;
    push_foreign(&site, &nobody());
    wait_until(DEADLINE, async || site.waiting() == 1).await;
    app.stop().await;
}

/// So many jobs of producers that name no database may be given up by a worker that has rows of its
/// own.
const GIVEN_UP: u64 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_rows_of_its_own_takes_no_job_of_another_database_away() {
    let site = Site::new().await;
    let api = site.start(Role::Api, &site.dsn, &[]).await.unwrap();
    let texts: Vec<String> = (0..20).map(|i| format!("text {i}")).collect();
    api.ingest("acme", &texts).await;
    let foreign: Vec<String> = (0..40).map(|_| nobody()).collect();
    foreign.iter().for_each(|node| push_foreign(&site, node));

    let other = TestPostgres::shared().database().await;
    let stray = site.start(Role::Serve, &other, &[]).await.unwrap();
    for round in 0..5 {
        stray.ingest("acme", &[format!("of the stray {round}")]).await;
        wait_until(DEADLINE, async || stray.count("ready").await == round + 1).await;
        assert!(site.waiting() >= 60 - GIVEN_UP, "{}", site.waiting());
    }
    stray.stop().await;
    let worker = site.start(Role::Worker, &site.dsn, &[]).await.unwrap();
    wait_until(2 * DEADLINE, async || api.count("ready").await == 20).await;
    worker.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_other_producers_are_kept_in_bulk_until_any_row_of_theirs_is_found() {
    let site = Site::new().await;
    // All at once, before anybody looks.
    (0..40).for_each(|_| push_foreign(&site, &nobody()));
    let app = site.serve().await;
    site.keeps_all_through_claims().await;
    assert_eq!(site.waiting(), 40);
    // Jobs of our own go on meanwhile.
    app.ingest("acme", &["a".to_owned()]).await;
    wait_until(DEADLINE, async || app.count("ready").await == 1).await;
    assert!(site.waiting() >= 40 - GIVEN_UP, "{}", site.waiting());
    let (_, nodes) = app.get("/nodes").await;
    push_foreign(&site, nodes["nodes"][0]["id"].as_str().unwrap());
    // A few may have been put aside for half a minute.
    wait_until(2 * DEADLINE, async || site.waiting() == 0).await;
    app.stop().await;
}
