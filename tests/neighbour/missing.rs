//! Rows that a worker does not find.

use serde_json::json;
use vecmill::app::Role;

use crate::{
    common::{TestPostgres, wait_until},
    site::{DEADLINE, Site},
};

fn waiting(site: &Site) -> u64 {
    let count = |args: &[&str]| site.redis.cli(args).parse::<u64>().unwrap();
    count(&["LLEN", "embedding:queue"]) + count(&["HLEN", "embedding:queue:inflight"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_another_database_takes_no_job_away() {
    let site = Site::new().await;
    let api = site.start(Role::Api, &site.dsn, &[]).await.unwrap();
    let texts: Vec<String> = (0..150).map(|i| format!("text {i}")).collect();
    api.ingest("acme", &texts).await;
    assert_eq!(waiting(&site), 150);

    let other = TestPostgres::shared().database().await;
    let stray = site.start(Role::Worker, &other, &[]).await.unwrap();
    // It claims and hands back; the jobs stay, one by one and in bulk.
    for _ in 0..20 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        assert_eq!(waiting(&site), 150);
    }
    let worker = site.start(Role::Worker, &site.dsn, &[]).await.unwrap();
    wait_until(DEADLINE, async || api.count("ready").await == 150).await;
    stray.stop().await;
    worker.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_other_producers_are_kept_in_bulk_until_any_row_is_found() {
    let site = Site::new().await;
    let app = site.serve().await;
    for _ in 0..40 {
        let job = json!({"job_id": "j", "node_id": uuid::Uuid::new_v4(), "tenant_id": "acme",
            "action": "embed", "attempts": 0});
        site.redis.cli(&["LPUSH", "embedding:queue", &job.to_string()]);
    }
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(waiting(&site) >= 30, "{} wait", waiting(&site));
    // One whose row is there tells that the others are gone.
    app.ingest("acme", &["a".to_owned()]).await;
    wait_until(DEADLINE, async || waiting(&site) == 0).await;
    assert_eq!(app.count("ready").await, 1);
    app.stop().await;
}
