//! Producers and consumers that are not ours, beside ours, on one Redis and one Postgres.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{
    TestApp, TestPostgres, TestRedis, connect, cosine, faulty_model, hash_model, vector_of,
    wait_until,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use serde_json::{Value, json};
use tokio::{task, task::JoinHandle};
use uuid::Uuid;
use vecmill::{
    app::Role,
    inference::{EmbedError, Model},
};

const DEADLINE: Duration = Duration::from_secs(60);

/// The table as another installation made it.
const ACTIVEKG_TABLE: &str = "
    CREATE EXTENSION vector;
    CREATE TABLE nodes (
        id uuid PRIMARY KEY, tenant_id text, classes text[], props jsonb, payload_ref text,
        embedding vector(384), embedding_status text NOT NULL DEFAULT 'queued',
        embedding_error text, embedding_attempts int NOT NULL DEFAULT 0,
        embedding_updated_at timestamptz, metadata jsonb, refresh_policy jsonb, triggers jsonb,
        version int NOT NULL DEFAULT 1, last_refreshed timestamptz, drift_score double precision,
        created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now());";

/// What a foreign producer and a foreign consumer work on.
#[derive(Clone)]
struct Site {
    redis: Arc<TestRedis>,
    db: DatabaseConnection,
    settings: Arc<Vec<(&'static str, String)>>,
}

impl Site {
    async fn new() -> Self {
        let redis = Arc::new(TestRedis::start());
        let dsn = TestPostgres::shared().database().await;
        let db = connect(&dsn, 4).await.unwrap();
        db.execute_unprepared(ACTIVEKG_TABLE).await.unwrap();
        let settings = vec![("REDIS_URL", redis.url()), ("ACTIVEKG_DSN", dsn)];
        Self { redis, db, settings: Arc::new(settings) }
    }

    /// One of our processes.
    async fn start(&self, role: Role, more: &[(&str, &str)]) -> TestApp {
        self.start_with(role, more, (role == Role::Worker).then(hash_model)).await
    }

    /// The same with a model of the caller's.
    async fn start_with(&self, role: Role, more: &[(&str, &str)], model: Option<Model>) -> TestApp {
        let dir = tempfile::tempdir().unwrap();
        let mut settings: Vec<(&str, &str)> =
            self.settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        settings.extend_from_slice(more);
        TestApp::start(role, dir.path(), &settings, model).await
    }

    async fn sql(&self, statement: &str) {
        self.db.execute_unprepared(statement).await.unwrap();
    }

    /// A row as ActiveKG inserts it.
    async fn insert(&self, tenant: Option<&str>, text: &str) -> Uuid {
        let id = Uuid::new_v4();
        let tenant = tenant.map_or("NULL".to_owned(), |tenant| format!("'{tenant}'"));
        let props = json!({"text": text, "content_hash": "theirs"});
        self.sql(&format!(
            "INSERT INTO nodes (id, tenant_id, classes, props) \
             VALUES ('{id}', {tenant}, '{{Chunk}}', '{props}')"
        ))
        .await;
        id
    }

    /// The four commands of a foreign producer, as far as it comes.
    fn produce(&self, node: Uuid, tenant: Option<&str>, commands: usize) {
        let pending = format!("embedding:pending:{node}");
        let count = format!("embedding:tenant:pending:{}", tenant.unwrap_or("default"));
        let entry = entry(node, tenant);
        let all: [&[&str]; 4] = [
            &["SET", &pending, "1", "NX", "EX", "3600"],
            &["LPUSH", "embedding:queue", &entry],
            &["INCRBY", &count, "1"],
            &["EXPIRE", &count, "3600"],
        ];
        for command in &all[..commands] {
            if self.redis.cli(command).is_empty() {
                // The node has a live job already.
                return;
            }
        }
    }

    /// Takes one job as a foreign consumer does, if one comes within a second.
    fn take(&self) -> Option<Value> {
        let popped = task::block_in_place(|| self.redis.cli(&["BRPOP", "embedding:queue", "1"]));
        let (_, entry) = popped.split_once('\n')?;
        Some(serde_json::from_str(entry).unwrap())
    }

    /// Ends a job as a foreign consumer does after it stored its vector.
    async fn complete(&self, job: &Value) {
        let node = job["node_id"].as_str().unwrap();
        self.sql(&format!(
            "UPDATE nodes SET embedding = '{vector}', embedding_status = 'ready', \
             embedding_error = NULL, embedding_updated_at = now(), updated_at = now() \
             WHERE id = '{node}'",
            vector = json!(their_vector()),
        ))
        .await;
        self.end(job);
    }

    fn end(&self, job: &Value) {
        let tenant = job["tenant_id"].as_str().unwrap_or("default");
        self.redis
            .cli(&["DEL", &format!("embedding:pending:{}", job["node_id"].as_str().unwrap())]);
        self.redis.cli(&["DECRBY", &format!("embedding:tenant:pending:{tenant}"), "1"]);
    }

    /// Waits until every row is `ready` and nothing of a job is left.
    async fn settled(&self, nodes: u64) {
        wait_until(DEADLINE, async || {
            let query = "SELECT count(*) FROM nodes WHERE embedding_status = 'ready' \
                         AND embedding IS NOT NULL AND embedding_error IS NULL";
            let statement = Statement::from_string(self.db.get_database_backend(), query);
            let row = self.db.query_one_raw(statement).await.unwrap().unwrap();
            let ready: i64 = row.try_get_by_index(0).unwrap();
            ready as u64 == nodes
        })
        .await;
        wait_until(DEADLINE, async || {
            self.redis.cli(&["KEYS", "embedding:*pending*"]).is_empty()
                && self.redis.cli(&["LLEN", "embedding:queue"]) == "0"
                && self.redis.cli(&["ZCARD", "embedding:retry"]) == "0"
                && self.redis.cli(&["HLEN", "embedding:queue:inflight"]) == "0"
        })
        .await;
        assert_eq!(self.redis.cli(&["LLEN", "embedding:dlq"]), "0");
    }

    async fn vector(&self, node: Uuid) -> Vec<f32> {
        let query = format!("SELECT embedding::text FROM nodes WHERE id = '{node}'");
        let statement = Statement::from_string(self.db.get_database_backend(), query);
        let row = self.db.query_one_raw(statement).await.unwrap().unwrap();
        serde_json::from_str(&row.try_get_by_index::<String>(0).unwrap()).unwrap()
    }
}

/// A job as Python's `json.dumps` writes it, with a field of its producer's own.
fn entry(node: Uuid, tenant: Option<&str>) -> String {
    let (job, tenant) = (Uuid::new_v4(), json!(tenant));
    format!(
        r#"{{"job_id": "{job}", "node_id": "{node}", "tenant_id": {tenant}, "action": "embed", "attempts": 0, "enqueued_at": 1795477681.46, "source": "activekg"}}"#
    )
}

/// What a foreign consumer stores; our model makes no such vector.
fn their_vector() -> Vec<f32> {
    let mut vector = vec![0.0; 384];
    vector[7] = 1.0;
    vector
}

fn are_equal(a: &[f32], b: &[f32]) -> bool {
    cosine(a, b) > 0.9999
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_for_a_ready_node_without_a_text_ends() {
    let site = Site::new().await;
    let worker = site.start(Role::Worker, &[]).await;
    let node = site.insert(None, "").await;
    site.sql(&format!(
        "UPDATE nodes SET embedding_status = 'ready', embedding = '{}' WHERE id = '{node}'",
        json!(their_vector()),
    ))
    .await;
    site.produce(node, None, 4);
    site.settled(1).await;
    assert!(are_equal(&site.vector(node).await, &their_vector()), "it keeps what it has");
    worker.stop().await;
}

/// Consumes until told to stop, at most so many jobs; answers the nodes that it embedded.
fn foreign_consumer(site: &Site, most: usize, stop: &Arc<AtomicBool>) -> JoinHandle<HashSet<Uuid>> {
    let (site, stop) = (site.clone(), Arc::clone(stop));
    tokio::spawn(async move {
        let mut embedded = HashSet::new();
        while embedded.len() < most && !stop.load(Ordering::Relaxed) {
            // A test that fails ends this task here.
            task::yield_now().await;
            if let Some(job) = site.take() {
                site.complete(&job).await;
                embedded.insert(job["node_id"].as_str().unwrap().parse().unwrap());
            }
        }
        embedded
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn both_sides_produce_and_consume_and_nothing_is_lost() {
    const EACH: usize = 120;
    const AT_FIRST: usize = 20;
    let site = Site::new().await;
    let api = site.start(Role::Api, &[]).await;
    let mut texts: HashMap<Uuid, String> = HashMap::new();

    // Only the foreign consumer is there at first, so that it has its share for certain.
    let of_api: Vec<String> = (0..AT_FIRST).map(|i| format!("early text {i}")).collect();
    let ids = api.ingest("ours", &of_api).await;
    texts.extend(ids.iter().map(|id| id.parse().unwrap()).zip(of_api));
    let stop = Arc::new(AtomicBool::new(false));
    let early = foreign_consumer(&site, AT_FIRST, &stop).await.unwrap();
    assert_eq!(early, texts.keys().copied().collect(), "it takes the jobs of our API");

    // And at most half of the rest.
    let worker = site.start(Role::Worker, &[]).await;
    let late = foreign_consumer(&site, EACH, &stop);
    let producer = task::spawn({
        let site = site.clone();
        async move {
            let mut texts = HashMap::new();
            for i in 0..EACH {
                let tenant = [Some("theirs"), Some("ours"), None][i % 3];
                let text = format!("their text {i}");
                let node = site.insert(tenant, &text).await;
                task::block_in_place(|| site.produce(node, tenant, 4));
                texts.insert(node, text);
            }
            texts
        }
    });
    for round in 0..4 {
        let of_api: Vec<String> = (0..EACH / 4).map(|i| format!("our text {round} {i}")).collect();
        let ids = api.ingest("ours", &of_api).await;
        texts.extend(ids.iter().map(|id| id.parse().unwrap()).zip(of_api));
    }
    texts.extend(producer.await.unwrap());
    assert_eq!(texts.len(), AT_FIRST + 2 * EACH);

    site.settled(texts.len() as u64).await;
    stop.store(true, Ordering::Relaxed);
    let foreign: HashSet<Uuid> = early.union(&late.await.unwrap()).copied().collect();
    for (node, text) in &texts {
        let vector = site.vector(*node).await;
        let is_ours = are_equal(&vector, &vector_of(text));
        let is_theirs = foreign.contains(node) && are_equal(&vector, &their_vector());
        assert!(is_ours || is_theirs, "{node} has the vector of neither side");
    }
    assert!(early.len() <= foreign.len() && foreign.len() < texts.len());
    worker.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_foreign_producer_that_dies_halfway_loses_no_node() {
    let site = Site::new().await;
    let settings = [("EMBEDDING_ORPHAN_SECONDS", "2")];
    let worker = site.start(Role::Worker, &settings).await;
    for commands in 0..=4 {
        for tenant in [Some("theirs"), None] {
            let node = site.insert(tenant, &format!("after {commands} commands")).await;
            site.produce(node, tenant, commands);
        }
    }
    site.settled(10).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_foreign_consumer_that_dies_with_a_job_loses_no_node() {
    let site = Site::new().await;
    let api = site.start(Role::Api, &[]).await;
    api.ingest("ours", &["taken".to_owned(), "taken in hand".to_owned()]).await;
    let node = site.insert(Some("theirs"), "taken and stored").await;
    site.produce(node, Some("theirs"), 4);
    let _dies_with_it = site.take().unwrap();
    let in_hand = site.take().unwrap();
    site.sql(&format!(
        "UPDATE nodes SET embedding_status = 'processing' WHERE id = '{}'",
        in_hand["node_id"].as_str().unwrap()
    ))
    .await;
    let stored = site.take().unwrap();
    site.sql(&format!(
        "UPDATE nodes SET embedding = '{}', embedding_status = 'ready' WHERE id = '{node}'",
        json!(their_vector())
    ))
    .await;
    assert_eq!(stored["node_id"], node.to_string());

    let settings = [("EMBEDDING_ORPHAN_SECONDS", "2")];
    let worker = site.start(Role::Worker, &settings).await;
    site.settled(3).await;
    assert!(are_equal(&site.vector(node).await, &their_vector()), "it was done already");
    worker.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slow_foreign_consumer_is_not_disturbed() {
    let site = Site::new().await;
    let node = site.insert(Some("theirs"), "slowly").await;
    site.produce(node, Some("theirs"), 4);
    let job = site.take().unwrap();
    site.sql(&format!("UPDATE nodes SET embedding_status = 'processing' WHERE id = '{node}'"))
        .await;
    let worker = site.start(Role::Worker, &[]).await;
    // Several sweeps go by: each enqueues rows that have no job, and these are seen to be done.
    for round in 0..3 {
        site.insert(Some("theirs"), &format!("found by a sweep {round}")).await;
        wait_until(DEADLINE, async || {
            let query = "SELECT count(*) FROM nodes WHERE embedding_status = 'ready'";
            let statement = Statement::from_string(site.db.get_database_backend(), query);
            let row = site.db.query_one_raw(statement).await.unwrap().unwrap();
            row.try_get_by_index::<i64>(0).unwrap() == round + 1
        })
        .await;
    }
    let pending = site.redis.cli(&["GET", &format!("embedding:pending:{node}")]);
    let count = site.redis.cli(&["GET", "embedding:tenant:pending:theirs"]);
    assert_eq!((pending.as_str(), count.as_str()), ("1", "1"), "it still counts");
    site.complete(&job).await;
    site.settled(4).await;
    assert!(are_equal(&site.vector(node).await, &their_vector()), "nobody did its work again");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_queued_twice_and_a_foreign_retry_end_well() {
    let site = Site::new().await;
    let twice = site.insert(Some("theirs"), "queued twice").await;
    site.produce(twice, Some("theirs"), 4);
    // Its pending key ran out before its turn came.
    site.redis.cli(&["DEL", &format!("embedding:pending:{twice}")]);
    site.produce(twice, Some("theirs"), 4);
    assert_eq!(site.redis.cli(&["LLEN", "embedding:queue"]), "2");

    let retried = site.insert(None, "retried").await;
    site.produce(retried, None, 1);
    site.redis.cli(&["ZADD", "embedding:retry", "1700000000", &entry(retried, None)]);
    site.redis.cli(&["INCRBY", "embedding:tenant:pending:default", "1"]);

    let worker = site.start(Role::Worker, &[]).await;
    site.settled(2).await;
    worker.stop().await;
}

/// A job that the extraction worker of ActiveKG sends once it has filled in a node.
fn reembed(node: Uuid, tenant: &str) -> String {
    entry(node, Some(tenant)).replace(r#""action": "embed""#, r#""action": "reembed""#)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reembed_job_embeds_again_and_keeps_its_name() {
    let site = Site::new().await;
    let worker = site.start(Role::Worker, &[]).await;
    let node = site.insert(Some("theirs"), "extracted").await;
    site.sql(&format!(
        "UPDATE nodes SET embedding = '{}', embedding_status = 'ready' WHERE id = '{node}'",
        json!(their_vector())
    ))
    .await;
    site.redis.cli(&["SET", &format!("embedding:pending:{node}"), "1", "NX", "EX", "3600"]);
    site.redis.cli(&["INCRBY", "embedding:tenant:pending:theirs", "1"]);
    site.redis.cli(&["LPUSH", "embedding:queue", &reembed(node, "theirs")]);
    wait_until(DEADLINE, async || are_equal(&site.vector(node).await, &vector_of("extracted")))
        .await;
    site.settled(1).await;
    worker.stop().await;

    // It is passed on as it came: to the next attempt, and to the dead letters.
    let broken = faulty_model(|_| Err(EmbedError::Model("it fails".to_owned())));
    let settings = [("EMBEDDING_MAX_ATTEMPTS", "2")];
    let worker = site.start_with(Role::Worker, &settings, Some(broken)).await;
    site.redis.cli(&["LPUSH", "embedding:queue", &reembed(node, "theirs")]);
    wait_until(DEADLINE, async || site.redis.cli(&["LLEN", "embedding:dlq"]) == "1").await;
    let letter: Value =
        serde_json::from_str(&site.redis.cli(&["LINDEX", "embedding:dlq", "0"])).unwrap();
    let said = [&letter["action"], &letter["source"], &letter["attempts"]];
    assert_eq!(said, [&json!("reembed"), &json!("activekg"), &json!(2)], "{letter}");
    worker.stop().await;
}
