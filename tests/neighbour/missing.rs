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

fn push_foreign(site: &Site, node: uuid::Uuid) {
    let job = json!({"job_id": "j", "node_id": node, "tenant_id": "acme", "action": "embed",
        "attempts": 0});
    site.redis.cli(&["LPUSH", "embedding:queue", &job.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn not_even_one_job_of_another_producer_is_taken_by_a_worker_on_another_database() {
    let site = Site::new().await;
    push_foreign(&site, uuid::Uuid::new_v4());
    let other = TestPostgres::shared().database().await;
    let stray = site.start(Role::Worker, &other, &[]).await.unwrap();
    site.keeps_all_through_claims().await;
    assert_eq!(site.waiting(), 1);
    stray.stop().await;

    // Once a row was found, a row that is not there is gone.
    let app = site.serve().await;
    app.ingest("acme", &["a".to_owned()]).await;
    wait_until(DEADLINE, async || site.waiting() == 0).await;
    push_foreign(&site, uuid::Uuid::new_v4());
    wait_until(DEADLINE, async || site.waiting() == 0).await;
    assert_eq!(app.count("ready").await, 1);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_other_producers_are_kept_in_bulk_until_any_row_is_found() {
    let site = Site::new().await;
    // All at once, before anybody looks.
    for _ in 0..40 {
        push_foreign(&site, uuid::Uuid::new_v4());
    }
    let app = site.serve().await;
    site.keeps_all_through_claims().await;
    assert_eq!(site.waiting(), 40);
    // One whose row is there tells that the others are gone.
    app.ingest("acme", &["a".to_owned()]).await;
    wait_until(DEADLINE, async || site.waiting() == 0).await;
    assert_eq!(app.count("ready").await, 1);
    app.stop().await;
}
