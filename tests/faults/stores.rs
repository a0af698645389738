//! Stores that end, forget, run full, or are away for a while.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use super::{
    checker::{Checked, Expected, check},
    plan::{Plan, Row, is_full, short_or_full},
    site::{DEADLINE, Site, Stores, texts},
};
use crate::common::{TestPostgres, TestRedis, send_signal, wait_until};

/// What there is to do when the fault comes, 8 texts a batch.
struct Load {
    nodes: usize,
    batch_time: Duration,
}

const MANY: Load = Load { nodes: 600, batch_time: Duration::from_millis(15) };
/// Jobs are in hand for longer than a lease.
const SLOW: Load = Load { nodes: 160, batch_time: Duration::from_millis(600) };
/// More than is done until a disk is full.
const FILLED: Load = Load { nodes: 600, batch_time: Duration::from_millis(60) };
/// Room for both stores with the nodes of all runs.
const DISK_MEGABYTES: usize = 32;
/// An outage uses no attempt and makes little of the work worthless: what was being stored.
const AGAIN_AT_MOST: usize = 8 * 8;

/// Breaks the stores of a site under load, once it is at work, and mends them. `breaks` adds the
/// nodes that it sends in to those that must be there.
async fn outage(
    fault: &'static str,
    mut site: Site,
    Load { nodes, batch_time }: Load,
    again: usize,
    mut breaks: impl AsyncFnMut(&mut Site, &mut Vec<String>),
    mut mends: impl AsyncFnMut(&mut Site),
) {
    let mut plan = Plan::new(fault).await;
    let mut row = Row::new(fault, site.name());
    let (_, url) = site.start_all(batch_time).await;
    let progress = site.progress().await;
    let (mut ids, mut before) = (Vec::new(), Checked::default());
    for run in 0..short_or_full(1, 3) {
        let done = progress.ready().await.unwrap();
        ids.extend(site.ingest(&url, &texts(nodes)).await);
        progress.reach(done + plan.pick(8..nodes as u64 / 3)).await;
        breaks(&mut site, &mut ids).await;
        mends(&mut site).await;
        let fault_gone = Instant::now();
        let recovery = progress.recovery(fault_gone).await;
        row.recovered(recovery.expect("it was broken under load"));
        let expected =
            Expected { ids: &ids, embedded_again: Some((run + 1) * again), ..Expected::default() };
        reservations_run_out(&site).await;
        let so_far = check(&site, &expected).await;
        row.checked(so_far.since(&before));
        before = so_far;
    }
}

/// Room that was reserved for requests that failed, and that Redis did not hear of being given
/// back, is free after a minute. That is not waited for.
async fn reservations_run_out(site: &Site) {
    const RESERVATIONS: &str = "embedding:queue:reservations";
    wait_until(DEADLINE, async || site.redis_answers()).await;
    for reservation in site.redis(&format!("ZRANGE {RESERVATIONS} 0 -1")).lines() {
        site.redis(&format!("ZADD {RESERVATIONS} XX 1 {reservation}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_restarted_with_its_data_loses_nothing() {
    let site = Site::new(Stores::Shared, &[]).await;
    outage(
        "Redis killed and restarted with its data",
        site,
        MANY,
        AGAIN_AT_MOST,
        async |site, _| site.redis_server.as_mut().unwrap().kill(),
        async |site| site.redis_server.as_mut().unwrap().restart(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_private_redis_comes_back_with_its_data() {
    let site = Site::new(Stores::Private, &[]).await;
    outage(
        "Redis killed and restarted with its data",
        site,
        MANY,
        AGAIN_AT_MOST,
        async |site, _| {
            let info = site.redis("INFO server");
            let pid = info.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap();
            send_signal("KILL", pid.trim().parse().unwrap());
        },
        async |site| wait_until(DEADLINE, async || site.redis_answers()).await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_restarted_without_its_data_is_filled_again() {
    let dsn = TestPostgres::shared().database().await;
    let dir = tempfile::tempdir().unwrap();
    let site = Site::on(Stores::Shared, dir, Some(TestRedis::start()), dsn, &[]);
    outage(
        "Redis killed and restarted without its data",
        site,
        MANY,
        // All that was claimed is enqueued again, too.
        MANY.nodes,
        async |site, _| site.redis_server.as_mut().unwrap().kill(),
        async |site| site.redis_server.as_mut().unwrap().restart(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_without_its_data_is_full_again_within_a_minute() {
    if !is_full() {
        // The default interval of the sweep is half a minute.
        return;
    }
    let _plan = Plan::new("Redis without its data, default intervals").await;
    let mut row = Row::new("Redis without its data, default intervals", Stores::Shared.name());
    let dsn = TestPostgres::shared().database().await;
    let dir = tempfile::tempdir().unwrap();
    let settings = [("EMBEDDING_SWEEP_INTERVAL_SECONDS", "30"), ("EMBEDDING_LEASE_SECONDS", "30")];
    let mut site = Site::on(Stores::Shared, dir, Some(TestRedis::start()), dsn, &settings);
    // Slow enough that most of the work is still to be done when the sweep comes.
    let (_, url) = site.start_all(Duration::from_millis(500)).await;
    let ids = site.ingest(&url, &texts(1_200)).await;
    let progress = site.progress().await;
    progress.reach(40).await;
    let redis = site.redis_server.as_mut().unwrap();
    redis.kill();
    redis.restart();
    let restarted = Instant::now();
    wait_until(2 * DEADLINE, async || {
        let waiting: u64 = site.redis("LLEN embedding:queue").parse().unwrap();
        let in_flight: u64 = site.redis("HLEN embedding:queue:inflight").parse().unwrap();
        waiting + in_flight + progress.ready().await.unwrap() >= 1_200
    })
    .await;
    let refilled = restarted.elapsed();
    println!("every open node is queued again {refilled:?} after the restart");
    assert!(refilled <= Duration::from_secs(60), "{refilled:?}");
    row.recovered(refilled);
    // All that was claimed is enqueued again, too.
    let expected =
        Expected { ids: &ids, embedded_again: Some(AGAIN_AT_MOST), ..Expected::default() };
    row.checked(check(&site, &expected).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_forgets_everything_is_filled_again_on_private_stores() {
    let site = Site::new(Stores::Private, &[]).await;
    outage(
        "Redis loses its memory",
        site,
        MANY,
        MANY.nodes,
        async |site, _| assert_eq!(site.redis("FLUSHALL"), "OK"),
        async |_| {},
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_out_of_memory_is_worked_empty_and_refuses_new_nodes() {
    let site = Site::new(Stores::Shared, &[]).await;
    outage(
        "Redis out of memory (`noeviction`)",
        site,
        SLOW,
        8,
        async |site, _| {
            assert_eq!(site.redis("CONFIG SET maxmemory 1"), "OK");
            // Leases are extended all the same, or what is in hand would be embedded again.
            let api = site.url(0).await;
            let before = site.embedded();
            wait_until(DEADLINE, async || site.embedded() > before + 64).await;
            let refused = site.try_ingest(&api, &texts(3)).await.unwrap_err();
            assert!(refused.starts_with("503"), "{refused}");
        },
        async |site| assert_eq!(site.redis("CONFIG SET maxmemory 0"), "OK"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_away_costs_no_attempt() {
    let postgres = TestPostgres::start();
    let dsn = postgres.database().await;
    let dir = tempfile::tempdir().unwrap();
    let site = Site::on(Stores::Shared, dir, Some(TestRedis::start()), dsn, &[]);
    let away = short_or_full(Duration::from_secs(4), Duration::from_secs(20));
    let postgres = tokio::sync::Mutex::new(postgres);
    outage(
        "Postgres stopped (20 s in the matrix)",
        site,
        MANY,
        AGAIN_AT_MOST,
        async |site, _| {
            postgres.lock().await.stop();
            let api = site.url(0).await;
            let (start, mut refused) = (Instant::now(), String::new());
            wait_until(DEADLINE, async || {
                refused = site.try_ingest(&api, &texts(3)).await.unwrap_err();
                start.elapsed() > away
            })
            .await;
            assert!(refused.starts_with("503"), "{refused}");
        },
        async |_| postgres.lock().await.start_again().await,
    )
    .await;
}

/// A small file system, unmounted at the end.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// None where this user may not mount.
    fn mount(megabytes: usize) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .status()
            .unwrap();
        mounted.success().then_some(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// Fills the disk on which a site has its stores: all of them, or its database only.
async fn full_disk(stores: Stores) {
    let Some(disk) = Tmpfs::mount(DISK_MEGABYTES) else {
        eprintln!("not run: mounting a tmpfs needs root");
        return;
    };
    let on_disk = tempfile::tempdir_in(disk.0.path()).unwrap();
    let dsn = format!("sqlite://{}", on_disk.path().join("vecmill.db").display());
    let (fault, site) = match stores {
        Stores::Private => {
            ("disk full under all stores", Site::on(stores, on_disk, None, dsn, &[]))
        }
        Stores::Shared => {
            let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
            ("disk full under SQLite", Site::on(stores, dir, Some(redis), dsn, &[]))
        }
    };
    let ballast = disk.0.path().join("ballast");
    outage(
        fault,
        site,
        FILLED,
        // A batch that cannot be written is not embedded again: it waits.
        AGAIN_AT_MOST,
        async |site, ids| {
            // As much as there is; what cannot be written is the point.
            let _ = std::fs::write(&ballast, vec![0_u8; DISK_MEGABYTES << 20]);
            let api = site.url(0).await;
            wait_until(DEADLINE, async || match site.try_ingest(&api, &texts(50)).await {
                Ok(new) => {
                    ids.extend(new);
                    false
                }
                Err(refused) => {
                    assert!(refused.starts_with("503"), "{refused}");
                    let persistence = site.redis("INFO persistence");
                    stores == Stores::Shared || persistence.contains("aof_last_write_status:err")
                }
            })
            .await;
        },
        async |_| std::fs::remove_file(&ballast).unwrap(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_nodes_and_loses_none() {
    full_disk(Stores::Shared).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_for_redis_too_refuses_nodes_and_loses_none() {
    full_disk(Stores::Private).await;
}
