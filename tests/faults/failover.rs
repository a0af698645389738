//! Connections to Redis that stay, and lead nowhere: the server has become a replica, or is silent.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::Value;

use super::{
    checker::{Expected, check},
    plan::{Plan, Row},
    proxy::{Proxy, behind_a_proxy},
    site::{DEADLINE, Site, Stores, texts},
};
use crate::common::{TestPostgres, TestRedis, send_signal, wait_until};

const BATCH_TIME: Duration = Duration::from_millis(10);
const NODES: usize = 400;
/// Within which a connection that leads nowhere is replaced, and then some for a busy machine.
const REPLACED_WITHIN: Duration = Duration::from_secs(20);

/// The answer to a readiness check: its status and its detail.
async fn readiness(site: &Site, url: &str) -> (StatusCode, String) {
    let response = site.http().get(format!("{url}/readyz")).send().await.unwrap();
    let status = response.status();
    let answer: Value = response.json().await.unwrap();
    (status, answer["detail"].as_str().unwrap_or_default().to_owned())
}

/// Sends nodes until some are accepted; their ids, and how long that took.
async fn ingest_again(site: &Site, url: &str, deadline: Duration) -> (Vec<String>, Duration) {
    let (start, mut ids) = (Instant::now(), Vec::new());
    wait_until(deadline, async || match site.try_ingest(url, &texts(20)).await {
        Ok(new) => {
            ids = new;
            true
        }
        Err(refused) => {
            assert!(refused.starts_with("503"), "{refused}");
            false
        }
    })
    .await;
    (ids, start.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_becomes_a_replica_is_left_for_the_one_that_took_over() {
    let _plan = Plan::new("Redis becomes a replica behind its address").await;
    let mut row = Row::new("Redis becomes a replica behind its address", Stores::Shared.name());
    let (old, new) = (TestRedis::start(), TestRedis::start());
    let proxy = Proxy::before(old.port()).await;
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let dsn = TestPostgres::shared().database().await;
    let new_port = new.port();
    let settings = [("REDIS_URL", url.as_str())];
    let dir = tempfile::tempdir().unwrap();
    let mut site = Site::on(Stores::Shared, dir, Some(new), dsn, &settings);
    let (_, api) = site.start_all(BATCH_TIME).await;
    let mut ids = site.ingest(&api, &texts(NODES)).await;
    let progress = site.progress().await;
    progress.reach(8).await;

    // Nothing else is there yet: what a write would meet is what readiness says.
    old.cli(&["REPLICAOF", "127.0.0.1", &new_port.to_string()]);
    wait_until(DEADLINE, async || {
        let (status, detail) = readiness(&site, &api).await;
        status == StatusCode::SERVICE_UNAVAILABLE
            && detail.contains("redis: ")
            && detail.contains("READONLY")
    })
    .await;
    proxy.lead_to(new_port);
    let moved = Instant::now();
    let (again, refused_for) = ingest_again(&site, &api, REPLACED_WITHIN).await;
    ids.extend(again);
    println!("ingest goes on {refused_for:?} after the address moved");
    if let Some(recovery) = progress.recovery(moved).await {
        row.recovered(recovery);
    }
    wait_until(DEADLINE, async || readiness(&site, &api).await.0 == StatusCode::OK).await;
    row.checked(check(&site, &Expected { ids: &ids, ..Expected::default() }).await);
    // The one that waits for work, too.
    let ours = || site.redis("CLIENT LIST").matches("name=vecmill").count();
    wait_until(DEADLINE, async || ours() == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_falls_silent_is_reached_anew() {
    let mut plan = Plan::new("Redis vanishes without a word").await;
    let mut row = Row::new("Redis vanishes without a word", Stores::Shared.name());
    let (mut site, proxy) = behind_a_proxy(true).await;
    let (_, api) = site.start_all(BATCH_TIME).await;
    let mut ids = site.ingest(&api, &texts(NODES)).await;
    let progress = site.progress().await;
    progress.reach(plan.pick(8..NODES as u64 / 4)).await;
    proxy.vanish();
    let vanished = Instant::now();
    let (again, refused_for) = ingest_again(&site, &api, REPLACED_WITHIN).await;
    ids.extend(again);
    println!("ingest goes on after {refused_for:?}");
    if let Some(recovery) = progress.recovery(vanished).await {
        assert!(recovery < REPLACED_WITHIN, "{recovery:?}");
        row.recovered(recovery);
    }
    row.checked(check(&site, &Expected { ids: &ids, ..Expected::default() }).await);

    // At rest somebody waits for work on a connection of its own, and nothing else is asked.
    proxy.vanish();
    let woken = Instant::now();
    let (more, _) = ingest_again(&site, &api, REPLACED_WITHIN).await;
    ids.extend(more);
    check(&site, &Expected { ids: &ids, ..Expected::default() }).await;
    assert!(woken.elapsed() < REPLACED_WITHIN + DEADLINE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_hangs_is_left_for_the_one_that_its_sentinel_promotes() {
    let _plan = Plan::new("a Sentinel primary hangs").await;
    let mut row = Row::new("a primary with sentinel hangs (SIGSTOP)", Stores::Shared.name());
    let primary = TestRedis::start();
    let replica = TestRedis::start_with(&[
        "--replicaof",
        &format!("127.0.0.1 {}", primary.port()),
        "--repl-diskless-sync-delay",
        "0",
    ]);
    // The first sentinel that is named hangs together with the primary.
    let hangs = TestRedis::start_sentinel(primary.port());
    let others = [(); 2].map(|()| TestRedis::start_sentinel(primary.port()));
    let [sentinel, _] = &others;
    wait_until(DEADLINE, async || {
        replica.cli(&["INFO", "replication"]).contains("master_link_status:up")
            && others.iter().all(|sentinel| {
                let known = sentinel.cli(&["SENTINEL", "MASTER", "vecmill"]);
                known.contains("num-slaves\n1\nnum-other-sentinels\n2\n")
            })
    })
    .await;
    let dsn = TestPostgres::shared().database().await;
    let url = format!(
        "redis-sentinel://127.0.0.1:{}?sentinelServiceName=vecmill&node=127.0.0.1:{}",
        hangs.port(),
        sentinel.port()
    );
    let dir = tempfile::tempdir().unwrap();
    let settings = [("REDIS_URL", url.as_str())];
    let mut site = Site::on(Stores::Shared, dir, Some(replica), dsn, &settings);
    let (_, api) = site.start_all(BATCH_TIME).await;
    let mut ids = site.ingest(&api, &texts(NODES)).await;
    let progress = site.progress().await;
    progress.reach(8).await;

    for server in [&hangs, &primary] {
        assert!(send_signal("STOP", server.pid()));
    }
    wait_until(DEADLINE, async || site.redis("ROLE").starts_with("master")).await;
    let promoted = Instant::now();
    let (again, refused_for) = ingest_again(&site, &api, REPLACED_WITHIN).await;
    ids.extend(again);
    println!("ingest goes on {refused_for:?} after the promotion");
    if let Some(recovery) = progress.recovery(promoted).await {
        row.recovered(recovery);
    }
    row.checked(check(&site, &Expected { ids: &ids, ..Expected::default() }).await);
}
