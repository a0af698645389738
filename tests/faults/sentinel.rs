//! Redis failing over: a primary, a replica, and a sentinel that promotes it.

use std::time::{Duration, Instant};

use super::{
    checker::{Expected, check},
    plan::{Plan, Row, short_or_full},
    site::{DEADLINE, Site, Stores, texts},
};
use crate::common::{TestPostgres, TestRedis, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_under_ingest_and_drain_loses_nothing() {
    let mut plan = Plan::new("Redis fails over to a replica").await;
    let mut row = Row::new("Redis fails over (sentinel), ingest and drain", Stores::Shared.name());
    let primary = TestRedis::start();
    let replica = TestRedis::start_with(&[
        "--replicaof",
        &format!("127.0.0.1 {}", primary.port()),
        "--repl-diskless-sync-delay",
        "0",
    ]);
    let sentinel = TestRedis::start_sentinel(primary.port());
    wait_until(DEADLINE, async || {
        replica.cli(&["INFO", "replication"]).contains("master_link_status:up")
            && sentinel.cli(&["SENTINEL", "REPLICAS", "vecmill"]).contains("127.0.0.1")
    })
    .await;
    let dsn = TestPostgres::shared().database().await;
    let url = format!("redis-sentinel://127.0.0.1:{}?sentinelServiceName=vecmill", sentinel.port());
    let mut site = Site::on(
        Stores::Shared,
        tempfile::tempdir().unwrap(),
        // The one that is asked at the end.
        Some(replica),
        dsn,
        &[("REDIS_URL", &url)],
    );
    let nodes = short_or_full(600, 5_989);
    let (_, api) = site.start_all(Duration::from_millis(10)).await;
    let texts = texts(nodes);
    let (before, during) = texts.split_at(nodes / 2);
    let mut ids = site.ingest(&api, before).await;
    let progress = site.progress().await;
    progress.reach(plan.pick(8..nodes as u64 / 4)).await;

    let mut primary = primary;
    primary.kill();
    let killed = Instant::now();
    let mut refused = 0;
    for texts in during.chunks(20) {
        // What is refused is sent again, as a client does that heeds Retry-After.
        wait_until(DEADLINE, async || match site.try_ingest(&api, texts).await {
            Ok(new) => {
                ids.extend(new);
                true
            }
            Err(error) => {
                assert!(error.starts_with("503"), "{error}");
                refused += 1;
                false
            }
        })
        .await;
    }
    let failover = killed.elapsed();
    println!("requests refused during the failover: {refused}; ingest went on within {failover:?}");
    // The fault is gone when the replica is promoted.
    if let Some(recovery) = progress.recovery(killed).await {
        row.recovered(recovery);
    }
    assert!(site.redis("ROLE").starts_with("master"));
    // A request that was refused may have written its rows: they are embedded too.
    let expected = Expected { ids: &ids, embedded_again: Some(64), ..Expected::default() };
    row.checked(check(&site, &expected).await);
}
