//! A pooler that gives a server to another client after each transaction.

use std::{sync::Arc, time::Duration};

use reqwest::StatusCode;
use sea_orm::{ConnectionTrait, Database, Statement};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use vecmill::store::Store;

use crate::common::{
    TestApp, TestPgBouncer, TestPostgres, TestRedis, cosine, vector_of, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);
const CLIENTS: usize = 8;
const NODES_OF_A_CLIENT: usize = 25;

/// A node that was taken in.
struct Taken {
    id: String,
    tenant: String,
    text: String,
}

impl Taken {
    fn path(&self) -> String {
        format!("/nodes/{}?tenant_id={}", self.id, self.tenant)
    }
}

/// Many clients at once; what was taken in.
async fn ingest(app: &Arc<TestApp>, round: &str) -> Vec<Taken> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (app, round) = (Arc::clone(app), round.to_owned());
        clients.spawn(async move {
            let mut taken = Vec::new();
            for number in 0..NODES_OF_A_CLIENT {
                let tenant = format!("tenant-{client}");
                let text = format!("{round}, client {client}, text {number}");
                let node = json!({
                    "classes": ["Doc", round],
                    "props": {"text": text, "number": number},
                    "tenant_id": tenant,
                });
                let (status, answer) = app.post("/nodes", &node).await;
                assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
                let id = answer["id"].as_str().unwrap().to_owned();
                taken.push(Taken { id, tenant, text });
            }
            taken
        });
    }
    clients.join_all().await.into_iter().flatten().collect()
}

async fn assert_whole(app: &TestApp, nodes: &[Taken]) {
    app.settled(DEADLINE).await;
    for Taken { id, text, .. } in nodes {
        let node = app.node(id).await;
        assert_eq!(node["embedding_status"], "ready", "{node}");
        assert_eq!(node["props"]["text"], **text, "{node}");
        assert_eq!(node["classes"][0], "Doc", "{node}");
        let vector: Vec<f32> = serde_json::from_value(node["embedding"].clone()).unwrap();
        assert!(cosine(&vector, &vector_of(text)) > 0.999, "{text}");
    }
}

/// All that clients do, by many of them, on two processes one after the other, and over a restart of
/// the pooler.
async fn everything_works_behind(lines: &str) {
    let server = TestPostgres::shared();
    let (mut pooler, redis) = (TestPgBouncer::before(server, lines).await, TestRedis::start());
    let dsn = pooler.dsn(&server.database().await);
    let dir = tempfile::tempdir().unwrap();
    let redis_url = redis.url();
    let settings = [("ACTIVEKG_DSN", dsn.as_str()), ("REDIS_URL", redis_url.as_str())];
    let mut all = Vec::new();
    for round in ["first", "second"] {
        let app = Arc::new(TestApp::serve(dir.path(), &settings).await);
        let nodes = ingest(&app, round).await;
        assert_whole(&app, &nodes).await;
        all.extend(nodes);
        all = change(&app, all).await;
        assert_eq!(app.count("ready").await, all.len() as u64);

        pooler.restart().await;
        wait_until(DEADLINE, async || app.get("/readyz").await.0 == StatusCode::OK).await;
        all.extend(ingest(&app, "after a restart").await);
        assert_whole(&app, &all).await;
        Arc::into_inner(app).unwrap().stop().await;
    }
}

/// A change, a deletion and a requeue; the nodes that there are then.
async fn change(app: &TestApp, mut nodes: Vec<Taken>) -> Vec<Taken> {
    let changed = nodes.last_mut().unwrap();
    changed.text.push_str(", changed");
    let change = json!({"props": {"text": changed.text}});
    let (status, answer) = app.patch(&changed.path(), &change).await;
    assert!(status.is_success(), "{answer}");
    let deleted = nodes.remove(0);
    assert!(app.delete(&deleted.path()).await.0.is_success());
    let requeue = json!({"status": "all", "backfill_ready": false, "limit": 50});
    let (status, answer) = app.post("/admin/embedding/requeue", &requeue).await;
    assert_eq!((status, &answer["enqueued"]), (StatusCode::OK, &Value::from(50)), "{answer}");
    assert_whole(app, &nodes[nodes.len() - 5..]).await;
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_behind_a_pooler_that_gives_no_sign() {
    everything_works_behind("ignore_startup_parameters = extra_float_digits,options").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_behind_a_pooler_that_refuses_settings() {
    everything_works_behind("").await;
}

/// Processes that start together, first on an empty database, then on rows without an index.
#[tokio::test(flavor = "multi_thread")]
async fn processes_that_migrate_behind_a_pooler_take_turns() {
    let server = TestPostgres::shared();
    let pooler = TestPgBouncer::before(server, "").await;
    let direct = server.database().await;
    let behind = pooler.dsn(&direct);
    let migrate_all = async || {
        let mut processes = JoinSet::new();
        for _ in 0..4 {
            let behind = behind.clone();
            processes.spawn(async move {
                Store::connect(&behind, 3).await.unwrap().migrate().await.unwrap();
            });
        }
        tokio::time::timeout(DEADLINE, processes.join_all()).await.unwrap();
    };
    let raw = Database::connect(&direct).await.unwrap();
    let indexes = async || {
        let sql = "SELECT count(*) FROM pg_index WHERE indrelid = 'nodes'::regclass AND indisvalid";
        let sql = Statement::from_string(raw.get_database_backend(), sql);
        let row = raw.query_one_raw(sql).await.unwrap().unwrap();
        row.try_get_by_index::<i64>(0).unwrap()
    };
    migrate_all().await;
    let all = indexes().await;
    let fill = "INSERT INTO nodes (id, tenant_id, props, metadata, refresh_policy, triggers) \
                SELECT gen_random_uuid(), 'acme', '{}', '{}', '{}', '[]' \
                FROM generate_series(1, 50000)";
    raw.execute_unprepared(fill).await.unwrap();
    raw.execute_unprepared("DROP INDEX vecmill_nodes_status").await.unwrap();
    raw.execute_unprepared("DROP INDEX vecmill_nodes_latest").await.unwrap();
    migrate_all().await;
    assert_eq!(indexes().await, all);
}
