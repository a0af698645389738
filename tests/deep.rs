//! Operators' calls on a table of many rows: each reads no more than it must, whatever the planner of
//! the database believes.
//!
//! What SQLite reads is what this program reads from files. So these tests are a program of their own
//! and run one after the other.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "store/support.rs"]
#[allow(dead_code, unused_macros, unused_imports)]
mod support;

use std::time::Duration;

use common::wait_until;
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use support::{DIMENSION, TestDb, only};
use tokio::sync::Mutex;
use vecmill::{
    domain::{NodeStatus, TenantScope},
    store::{Cursor, NodeFilter, RequeueFilter, Store},
};

const DEADLINE: Duration = Duration::from_secs(30);
const ROWS: u64 = 300_000;

static ALONE: Mutex<()> = Mutex::const_new(());

/// What a call may read: entries of indexes and rows in Postgres, KiB of the file in SQLite.
#[derive(Clone, Copy)]
struct Most {
    entries: u64,
    kib: u64,
}

/// A call that is about some rows.
const FEW: Most = Most { entries: 2_500, kib: 1_600 };
/// One that counts to the bound beside it, or looks at as many rows as one call may.
const MANY: Most = Most { entries: 125_000, kib: 28_000 };
/// One that counts nodes of several statuses.
const COUNTS: Most = Most { entries: 160_000, kib: 36_000 };
/// One that passes over as many as it may, and counts.
const PASSES: Most = Most { entries: 260_000, kib: 24_000 };

struct Table {
    db: TestDb,
    raw: DatabaseConnection,
}

impl Table {
    /// 250,000 nodes of one tenant that are ready, 48,970 behind them that wait, 1,000 that failed,
    /// and at the end 30 of another tenant that are ready without a vector. `statistics` is run when
    /// a tenth of them is there.
    async fn new(db: TestDb, statistics: &str) -> Self {
        db.migrated().await;
        let raw = db.raw().await;
        if !db.is_sqlite() {
            let off = "ALTER TABLE nodes SET (autovacuum_enabled = off)";
            raw.execute_unprepared(off).await.unwrap();
        }
        for (first, last) in [(1, ROWS / 10), (ROWS / 10 + 1, ROWS)] {
            let (n, id, at, vector, text) = if db.is_sqlite() {
                (
                    format!(
                        "(WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n \
                         WHERE i < {last}) SELECT i FROM n)"
                    ),
                    "unhex(printf('%032x', i))",
                    "strftime('%Y-%m-%dT%H:%M:%f+00:00', '2026-01-01', i || ' seconds')",
                    "x'0000803f0000000000000000'",
                    "json_object('text', printf('%0200d', i))",
                )
            } else {
                (
                    format!("(SELECT i FROM generate_series({first}, {last}) AS i)"),
                    "lpad(to_hex(i), 32, '0')::uuid",
                    "timestamptz '2026-01-01' + i * interval '1 second'",
                    "'[1,0,0]'::vector",
                    "jsonb_build_object('text', lpad(i::text, 200, '0'))",
                )
            };
            let fill = format!(
                "INSERT INTO nodes (id, tenant_id, props, embedding_status, embedding, created_at) \
                 SELECT {id}, CASE WHEN i > 299970 THEN 'small' ELSE 'big' END, {text}, \
                   CASE WHEN i <= 250000 OR i > 299970 THEN 'ready' WHEN i > 298970 THEN 'failed' \
                     ELSE 'queued' END, \
                   CASE WHEN i <= 250000 THEN {vector} END, {at} \
                 FROM {n} AS n"
            );
            raw.execute_unprepared(&fill).await.unwrap();
            if first == 1 && !statistics.is_empty() {
                raw.execute_unprepared(statistics).await.unwrap();
            }
        }
        Self { db, raw }
    }

    /// Entries of indexes and rows of Postgres that were read until now; KiB of files in SQLite.
    async fn read_so_far(&self) -> u64 {
        if self.db.is_sqlite() {
            let io = std::fs::read_to_string("/proc/self/io").unwrap();
            let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
            return read.parse::<u64>().unwrap() / 1024;
        }
        let sql = "SELECT ((SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'nodes') \
                     + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes \
                        WHERE relname = 'nodes'))::bigint";
        self.number(sql).await.unsigned_abs()
    }

    async fn number(&self, sql: &str) -> i64 {
        let statement = Statement::from_string(self.raw.get_database_backend(), sql);
        self.raw.query_one_raw(statement).await.unwrap().unwrap().try_get_by_index(0).unwrap()
    }

    /// A session of Postgres reports its reads when it ends, at the latest; a new one of SQLite has
    /// nothing in memory yet.
    async fn check(&self, name: &str, most: Most, call: impl AsyncFnOnce(&Store)) {
        let are_gone = async || {
            let others = "SELECT count(*) FROM pg_stat_activity \
                          WHERE application_name = 'vecmill' AND datname = current_database()";
            self.db.is_sqlite() || self.number(others).await == 0
        };
        wait_until(DEADLINE, are_gone).await;
        let before = self.read_so_far().await;
        let store = Store::connect(&self.db.dsn, DIMENSION).await.unwrap();
        call(&store).await;
        drop(store);
        wait_until(DEADLINE, are_gone).await;
        let read = self.read_so_far().await - before;
        let (most, unit) = match self.db.is_sqlite() {
            true => (most.kib, "KiB"),
            false => (most.entries, "entries"),
        };
        println!("{name:44} {read:>8} {unit}");
        assert!(read <= most, "{name} reads {read} {unit}");
    }

    async fn check_all(&self) {
        let list = |scope: TenantScope, has_embedding, status, skip| NodeFilter {
            scope,
            has_embedding,
            status,
            limit: 100,
            from: Cursor { after: None, skip },
        };
        let (all, big, small) = (TenantScope::All, only("big"), only("small"));
        let (ready, queued, failed) =
            (Some(NodeStatus::Ready), Some(NodeStatus::Queued), Some(NodeStatus::Failed));
        for (name, most, filter, shown, total) in [
            ("ready without a vector", FEW, list(all.clone(), Some(false), ready, 0), 30, 30),
            ("of its tenant", FEW, list(small.clone(), Some(false), ready, 0), 30, 30),
            ("of another tenant", FEW, list(big.clone(), Some(false), ready, 0), 0, 0),
            (
                "without a vector, of a tenant",
                FEW,
                list(small.clone(), Some(false), None, 0),
                30,
                30,
            ),
            ("a small tenant", FEW, list(small.clone(), None, None, 0), 30, 30),
            ("failed", FEW, list(all.clone(), None, failed, 0), 100, 1000),
            ("failed, of a tenant", FEW, list(big.clone(), None, failed, 900), 100, 1000),
            ("failed, of another tenant", FEW, list(small.clone(), None, failed, 0), 0, 0),
            ("queued", MANY, list(all.clone(), None, queued, 0), 100, 48970),
            ("without a vector", MANY, list(all.clone(), Some(false), None, 0), 100, 50000),
            ("queued with a vector", MANY, list(all.clone(), Some(true), queued, 0), 0, 0),
        ] {
            self.check(name, most, async |store| {
                let page = store.list(&filter).await.unwrap();
                assert_eq!((page.nodes.len(), page.total.nodes), (shown, total), "{name}");
                assert!(page.total.is_exact, "{name}");
            })
            .await;
        }
        for (name, most, filter) in [
            ("all", MANY, list(all.clone(), None, None, 0)),
            ("ready", MANY, list(all.clone(), None, ready, 0)),
            ("a large tenant", MANY, list(big.clone(), None, None, 0)),
            ("with a vector", COUNTS, list(all.clone(), Some(true), None, 0)),
            ("all, 100,000 passed over", PASSES, list(all.clone(), None, None, 100_000)),
        ] {
            self.check(name, most, async |store| {
                let page = store.list(&filter).await.unwrap();
                assert_eq!(page.nodes.len(), 100, "{name}");
                assert!(page.total.nodes > 100_000 && !page.total.is_exact, "{name}");
            })
            .await;
        }
        self.check("status counts", COUNTS, async |store| {
            let counts = store.status_counts(&all).await.unwrap();
            assert_eq!((counts.queued, counts.failed, counts.skipped), (48970, 1000, 0));
            assert!(counts.ready > 100_000 && counts.is_estimated);
        })
        .await;
        self.check("status counts of a tenant", FEW, async |store| {
            let counts = store.status_counts(&small).await.unwrap();
            assert_eq!((counts.ready, counts.queued, counts.is_estimated), (30, 0, false));
        })
        .await;
        let requeue = |scope: &TenantScope, status, only_missing_embedding| RequeueFilter {
            scope: scope.clone(),
            node_ids: None,
            status,
            only_missing_embedding,
            limit: 500,
            from: Cursor::default(),
        };
        for (name, filter, found) in [
            ("requeue ready ones", requeue(&all, ready, true), 30),
            ("requeue failed ones", requeue(&all, failed, true), 500),
            ("requeue failed ones of a tenant", requeue(&big, failed, false), 500),
            ("requeue queued ones", requeue(&all, queued, true), 500),
            ("requeue whatever lacks a vector", requeue(&small, None, true), 30),
        ] {
            self.check(name, FEW, async |store| {
                assert_eq!(store.requeue_page(&filter).await.unwrap().nodes.len(), found, "{name}");
            })
            .await;
        }
        // What the sweep asks for must not take these indexes.
        self.check("open nodes", FEW, async |store| {
            let page = store.open_nodes(None, 500, -60.0).await.unwrap();
            assert_eq!(page.nodes.len(), 500);
            let ids: Vec<_> = page.nodes.iter().map(|node| node.id).collect();
            assert_eq!(store.open_among(&ids).await.unwrap().len(), 500);
            assert_eq!(store.reopen_overwritten().await.unwrap(), 0);
        })
        .await;
        for (name, scope) in [("backfill", &all), ("backfill of a tenant", &big)] {
            self.check(name, FEW, async |store| {
                assert_eq!(store.backfill_ready(scope, None).await.unwrap().nodes, 0);
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite() {
    let _alone = ALONE.lock().await;
    Table::new(TestDb::sqlite().await, "").await.check_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_with_the_statistics_of_few() {
    let _alone = ALONE.lock().await;
    Table::new(TestDb::sqlite().await, "ANALYZE").await.check_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_without_statistics() {
    let _alone = ALONE.lock().await;
    Table::new(TestDb::postgres().await, "").await.check_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_with_the_statistics_of_few() {
    let _alone = ALONE.lock().await;
    Table::new(TestDb::postgres().await, "ANALYZE nodes").await.check_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_with_true_statistics() {
    let _alone = ALONE.lock().await;
    let table = Table::new(TestDb::postgres().await, "").await;
    table.raw.execute_unprepared("VACUUM ANALYZE nodes").await.unwrap();
    table.check_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_with_statistics_of_another_table() {
    let _alone = ALONE.lock().await;
    let table = Table::new(TestDb::postgres().await, "ANALYZE nodes").await;
    let always = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET plan_cache_mode = \
                  force_generic_plan', current_database()); END $$";
    table.raw.execute_unprepared(always).await.unwrap();
    // Whoever waits is believed to be nobody, and who is ready to be one in a million.
    let skewed = "UPDATE nodes SET embedding_status = 'failed' WHERE embedding_status = 'queued'; \
                  ANALYZE nodes; \
                  UPDATE nodes SET embedding_status = 'queued' \
                  WHERE embedding_status = 'failed' AND created_at < \
                    timestamptz '2026-01-01' + 298971 * interval '1 second'; \
                  VACUUM nodes";
    for step in skewed.split("; ") {
        table.raw.execute_unprepared(step).await.unwrap();
    }
    table.check_all().await;
}
