//! Tables in bad shape: whatever the planner of Postgres believes of them, a statement of the hot
//! path reads the rows that it is about, and no text of another.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use uuid::Uuid;
use vecmill::{
    domain::{NewNode, NodePatch, NodeStatus, TenantScope},
    heavy::Weight,
    store::{BeginJob, Candidate, Cursor, OnNewText, Store},
};

use crate::{
    common::wait_until,
    support::{DIMENSION, TestDb, outcome, tenant, vector},
};

const DEADLINE: Duration = Duration::from_secs(30);
/// Nodes that a statement is about.
const CLAIM: usize = 64;

/// Rows read, with or without an index, and blocks of texts read, since the server began to count.
#[derive(Clone, Copy, Debug)]
struct Reads {
    rows: i64,
    text_blocks: i64,
}

/// A database with the rows that a statement of SQL makes.
struct Shape {
    db: TestDb,
    raw: DatabaseConnection,
    nodes: Vec<Uuid>,
}

impl Shape {
    /// `statistics` is run when a tenth of the rows is there.
    async fn new(rows: usize, text: &str, statistics: &str) -> Self {
        let db = TestDb::postgres().await;
        db.migrated().await;
        let raw = db.raw().await;
        let off = "ALTER TABLE nodes SET (autovacuum_enabled = off)";
        raw.execute_unprepared(off).await.unwrap();
        for (first, last) in [(1, rows / 10), (rows / 10 + 1, rows)] {
            let fill = format!(
                "INSERT INTO nodes (id, tenant_id, props, metadata, refresh_policy, triggers) \
                 SELECT lpad(to_hex(i), 32, '0')::uuid, 'acme', \
                        jsonb_build_object('text', {text}), '{{}}', '{{}}', '[]' \
                 FROM generate_series({first}, {last}) AS i"
            );
            raw.execute_unprepared(&fill).await.unwrap();
            if first == 1 && !statistics.is_empty() {
                raw.execute_unprepared(statistics).await.unwrap();
            }
        }
        let step = (rows / CLAIM).max(1);
        let nodes = (1..=rows).step_by(step).take(CLAIM).map(|i| Uuid::from_u128(i as u128));
        Self { db, raw, nodes: nodes.collect() }
    }

    async fn number(&self, sql: &str) -> i64 {
        let statement = Statement::from_string(self.raw.get_database_backend(), sql);
        self.raw.query_one_raw(statement).await.unwrap().unwrap().try_get_by_index(0).unwrap()
    }

    async fn reads(&self) -> Reads {
        let counter = |column: &str, view: &str| {
            format!("SELECT coalesce({column}, 0)::bigint FROM {view} WHERE relname = 'nodes'")
        };
        let blocks = "toast_blks_read + toast_blks_hit";
        Reads {
            rows: self
                .number(&counter("seq_tup_read + idx_tup_fetch", "pg_stat_user_tables"))
                .await,
            text_blocks: self.number(&counter(blocks, "pg_statio_user_tables")).await,
        }
    }

    /// What a call of the store reads. A session reports its reads when it ends, at the latest.
    async fn reads_of(&self, call: impl AsyncFnOnce(&Store, &[Uuid])) -> Reads {
        let others = "SELECT count(*) FROM pg_stat_activity \
                      WHERE application_name = 'vecmill' AND datname = current_database()";
        let are_gone = async || self.number(others).await == 0;
        wait_until(DEADLINE, are_gone).await;
        let before = self.reads().await;
        let store = Store::connect(&self.db.dsn, DIMENSION).await.unwrap();
        call(&store, &self.nodes).await;
        drop(store);
        wait_until(DEADLINE, are_gone).await;
        let after = self.reads().await;
        Reads {
            rows: after.rows - before.rows,
            text_blocks: after.text_blocks - before.text_blocks,
        }
    }

    /// Runs every statement of the hot path; none may read more than this.
    async fn check(&self, most: Reads) {
        macro_rules! check {
            ($name:literal, $call:expr) => {{
                let reads = self.reads_of($call).await;
                println!("{:24} {reads:?}", $name);
                assert!(
                    reads.rows <= most.rows && reads.text_blocks <= most.text_blocks,
                    "{} reads {reads:?}",
                    $name
                );
            }};
        }
        check!("begin", async |store, nodes| {
            assert_eq!(store.begin(&jobs(nodes), usize::MAX).await.unwrap().len(), nodes.len());
        });
        check!("present", async |store, nodes| {
            assert_eq!(store.present(&jobs(nodes)).await.unwrap().len(), nodes.len());
        });
        check!("record", async |store, nodes| {
            let outcomes: Vec<_> =
                nodes[..1].iter().map(|&id| outcome(id, NodeStatus::Queued)).collect();
            assert_eq!(store.record(&outcomes).await.unwrap().len(), 1);
        });
        check!("return to queue", async |store, nodes| {
            store.return_to_queue(nodes).await.unwrap();
        });
        check!("complete", async |store, nodes| {
            let vectors: Vec<_> =
                nodes.iter().map(|&id| vector(id, "of another text", [1.0, 0.0, 0.0])).collect();
            assert!(store.complete(&vectors).await.unwrap().is_empty());
        });
        check!("vectors of inputs", async |store, nodes| {
            let inputs: Vec<[u8; 32]> = (0..nodes.len()).map(|i| [i as u8; 32]).collect();
            assert!(store.vectors_of(&inputs).await.unwrap().is_empty());
        });
        check!("open nodes", async |store, nodes| {
            let page = store.open_nodes(Some(nodes[0]), 100, 0.0).await.unwrap();
            assert_eq!(page.nodes.len(), 100);
        });
        check!("open among", async |store, nodes| {
            assert_eq!(store.open_among(nodes).await.unwrap().len(), nodes.len());
        });
        check!("reopen overwritten", async |store, _| {
            assert_eq!(store.reopen_overwritten().await.unwrap(), 0);
        });
        check!("tenants of", async |store, nodes| {
            assert_eq!(store.tenants_of(nodes).await.unwrap().len(), nodes.len());
        });
        check!("mark queued", async |store, nodes| {
            let candidates: Vec<Candidate> = nodes.iter().map(|&id| candidate(id)).collect();
            assert!(store.mark_queued(&candidates).await.unwrap().is_empty());
        });
        // It counts many rows that match, and reads the text of none.
        let reads = self.reads_of(async |store, _| {
            let filter = vecmill::store::NodeFilter {
                scope: TenantScope::All,
                has_embedding: Some(false),
                status: Some(NodeStatus::Queued),
                limit: 50,
                from: Cursor::default(),
            };
            assert_eq!(store.list(&filter).await.unwrap().nodes.len(), 50);
        });
        let reads = reads.await;
        println!("{:24} {reads:?}", "list");
        assert_eq!(reads.text_blocks, 0, "a listing reads texts");
        check!("requeue candidates", async |store, nodes| {
            let filter = vecmill::store::RequeueFilter {
                scope: TenantScope::All,
                node_ids: Some(nodes.to_vec()),
                status: None,
                only_missing_embedding: true,
                limit: 2000,
                from: Cursor::default(),
            };
            assert_eq!(store.requeue_candidates(&filter).await.unwrap().len(), nodes.len());
        });
        check!("backfill", async |store, nodes| {
            let backfilled = store.backfill_ready(&TenantScope::All, Some(nodes)).await;
            assert_eq!(backfilled.unwrap().nodes, 0);
        });
        check!("one node", async |store, nodes| {
            assert!(
                store
                    .get(&TenantScope::All, nodes[0], true, Weight::Light)
                    .await
                    .unwrap()
                    .is_some()
            );
        });
        check!("patch", async |store, nodes| {
            let patch =
                NodePatch { metadata: Some(serde_json::json!({"a": 1})), ..NodePatch::default() };
            store.patch(&TenantScope::All, nodes[0], &patch, OnNewText::Ask).await.unwrap();
        });
        check!("insert", async |store, _| {
            let new: NewNode = crate::support::node("acme", "new");
            let written = store
                .insert_nodes(&[new], NodeStatus::Queued, vecmill::store::OnRefusal::KeepOthers)
                .await
                .unwrap();
            assert_eq!(written, [None]);
        });
    }
}

fn jobs(nodes: &[Uuid]) -> Vec<BeginJob> {
    let job = |&id| BeginJob { id, tenant_id: tenant("acme"), refresh: false, failed_attempts: 0 };
    nodes.iter().map(job).collect()
}

fn candidate(id: Uuid) -> Candidate {
    Candidate {
        id,
        tenant_id: tenant("acme"),
        status: NodeStatus::Queued,
        has_current_embedding: false,
        changed: Some("never".to_owned()),
    }
}

/// Rows that a statement may read, some of them twice or thrice.
const MOST_ROWS: i64 = 4 * CLAIM as i64;
/// Texts of 3 MB, which lie outside of the table in some blocks each.
const WIDE: &str = "repeat(md5(i::text), 100000)";
const NARROW: &str = "'text ' || i";

#[tokio::test(flavor = "multi_thread")]
async fn few_wide_rows_without_statistics() {
    let shape = Shape::new(640, WIDE, "").await;
    let of_one = shape.reads_of(async |store, nodes| {
        store.get(&TenantScope::All, nodes[0], false, Weight::Light).await.unwrap();
    });
    let of_one = of_one.await.text_blocks;
    assert!(of_one > 4, "{of_one}");
    // Of the nodes that it is about, a statement may look at each text a few times.
    let text_blocks = of_one * CLAIM as i64 * 6;
    shape.check(Reads { rows: 640 * 4, text_blocks }).await;
    // One vector costs the text of one node, whatever the others are.
    let one = shape
        .reads_of(async |store, nodes| {
            store.complete(&[vector(nodes[0], "another", [1.0, 0.0, 0.0])]).await.unwrap();
        })
        .await;
    assert!(one.text_blocks <= of_one * 6, "{one:?}, and {of_one} for one text");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_rows_without_statistics() {
    let shape = Shape::new(200_000, NARROW, "").await;
    shape.check(Reads { rows: MOST_ROWS, text_blocks: 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_rows_with_the_statistics_of_few() {
    let shape = Shape::new(200_000, NARROW, "ANALYZE nodes").await;
    shape.check(Reads { rows: MOST_ROWS, text_blocks: 0 }).await;
}

/// What the server falls back on when it has seen a statement a few times.
#[tokio::test(flavor = "multi_thread")]
async fn many_rows_with_plans_for_any_parameters() {
    let shape = Shape::new(200_000, NARROW, "ANALYZE nodes").await;
    let (_, database) = shape.db.dsn.rsplit_once('/').unwrap();
    let always = format!("ALTER DATABASE {database} SET plan_cache_mode = force_generic_plan");
    shape.raw.execute_unprepared(&always).await.unwrap();
    shape.check(Reads { rows: MOST_ROWS, text_blocks: 0 }).await;
}
