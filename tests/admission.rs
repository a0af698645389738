//! Limits hold under concurrency, and a request that is refused leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{collections::BTreeSet, time::Duration};

use common::{TestApp, TestPostgres, TestRedis, hash_model, wait_until};
use futures::future::join_all;
use reqwest::{Client, StatusCode, header::RETRY_AFTER};
use sea_orm::{ConnectionTrait, Database};
use serde_json::{Value, json};
use tempfile::TempDir;
use vecmill::{
    app::Role,
    config::Settings,
    domain::{Action, Job, TenantId},
    queue::{Admission, Enqueued, Limits, Queue},
};

const DEADLINE: Duration = Duration::from_secs(60);
const PARALLEL: usize = 100;
const BATCH: usize = 40;
/// Of 100 batches of 40, so many fit a limit of 2,000.
const FITTING: usize = 50;
const FITTING_NODES: usize = FITTING * BATCH;

/// A Redis and a database of a test's own.
struct Stores {
    name: &'static str,
    redis: TestRedis,
    dir: TempDir,
    dsn: String,
}

impl Stores {
    fn on_sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dsn = format!("sqlite://{}", dir.path().join("nodes.db").display());
        Self { name: "sqlite", redis: TestRedis::start(), dir, dsn }
    }

    async fn on_postgres(server: &TestPostgres) -> Self {
        let dsn = server.database().await;
        let dir = tempfile::tempdir().unwrap();
        Self { name: "postgres", redis: TestRedis::start(), dir, dsn }
    }

    async fn of_both_kinds() -> [Self; 2] {
        [Self::on_sqlite(), Self::on_postgres(TestPostgres::shared()).await]
    }

    async fn api(&self, limits: &[(&str, &str)]) -> TestApp {
        self.start(Role::Api, limits).await
    }

    async fn worker(&self) -> TestApp {
        self.start(Role::Worker, &[]).await
    }

    async fn start(&self, role: Role, limits: &[(&str, &str)]) -> TestApp {
        let url = self.redis.url();
        let mut settings = vec![("REDIS_URL", url.as_str()), ("ACTIVEKG_DSN", self.dsn.as_str())];
        settings.extend_from_slice(limits);
        let model = (role == Role::Worker).then(hash_model);
        TestApp::start(role, self.dir.path(), &settings, model).await
    }

    fn keys(&self, pattern: &str) -> BTreeSet<String> {
        self.redis.cli(&["KEYS", pattern]).lines().map(str::to_owned).collect()
    }

    fn tenant_count(&self, tenant: &str) -> String {
        self.redis.cli(&["GET", &format!("embedding:tenant:pending:{tenant}")])
    }

    fn queued(&self) -> usize {
        self.redis.cli(&["LLEN", "embedding:queue"]).parse().unwrap()
    }

    /// Redis holds the jobs of these nodes, their pending keys and the counts of their tenants,
    /// and nothing beside.
    fn assert_holds(&self, nodes: &BTreeSet<String>, counts: &[(&str, usize)]) {
        let name = self.name;
        assert_eq!(self.queued(), nodes.len(), "{name}: entries in the queue");
        let pending = nodes.iter().map(|node| format!("embedding:pending:{node}"));
        let counted = counts.iter().filter(|(_, jobs)| *jobs > 0);
        let tenants =
            counted.clone().map(|(tenant, _)| format!("embedding:tenant:pending:{tenant}"));
        let queue = (!nodes.is_empty()).then(|| "embedding:queue".to_owned());
        let expected: BTreeSet<String> = pending.chain(tenants).chain(queue).collect();
        assert_eq!(self.keys("*"), expected, "{name}: the keys in Redis");
        for (tenant, jobs) in counted {
            assert_eq!(self.tenant_count(tenant), jobs.to_string(), "{name}: {tenant}");
        }
    }
}

/// What the server said.
struct Answer {
    status: StatusCode,
    retry_after: Option<u64>,
    body: Value,
}

impl Answer {
    /// The ids of the nodes that were taken in.
    fn ids(&self) -> Vec<String> {
        let results = self.body["results"].as_array().unwrap();
        results.iter().map(|result| result["id"].as_str().unwrap().to_owned()).collect()
    }

    /// It was refused with this status, says when to return, and what was the matter.
    fn assert_refused(&self, status: StatusCode, reason: &str) {
        assert_eq!(self.status, status, "{}", self.body);
        assert!(self.retry_after.is_some_and(|seconds| seconds >= 1), "Retry-After is missing");
        let detail = self.body["detail"].as_str().unwrap();
        assert!(detail.contains(reason), "{detail}");
    }
}

async fn send(client: &Client, app: &TestApp, body: &Value) -> Answer {
    let request = client.post(format!("{}/nodes/batch", app.url())).json(body);
    let response = request.send().await.unwrap();
    let retry_after = response.headers().get(RETRY_AFTER);
    Answer {
        status: response.status(),
        retry_after: retry_after.map(|value| value.to_str().unwrap().parse().unwrap()),
        body: response.json().await.unwrap(),
    }
}

fn batch(tenant: &str, nodes: usize) -> Value {
    let node = |i| json!({"classes": ["Doc"], "props": {"text": format!("text {i} of {tenant}")}});
    json!({"tenant_id": tenant, "nodes": (0..nodes).map(node).collect::<Vec<_>>()})
}

/// Sends batches of 40 nodes all at once, each for the tenant that `tenant` names.
async fn flood(app: &TestApp, tenant: impl Fn(usize) -> String) -> Vec<Answer> {
    let client = Client::new();
    let bodies: Vec<Value> = (0..PARALLEL).map(|i| batch(&tenant(i), BATCH)).collect();
    join_all(bodies.iter().map(|body| send(&client, app, body))).await
}

async fn rows(app: &TestApp) -> u64 {
    let (status, page) = app.get("/nodes?limit=1").await;
    assert_eq!(status, StatusCode::OK, "{page}");
    page["total"].as_u64().unwrap()
}

/// Exactly as many as fit were taken in, whole; the others were refused for `reason` and left
/// nothing. Returns the ids of the nodes.
async fn assert_exactly_full(app: &TestApp, answers: &[Answer], reason: &str) -> BTreeSet<String> {
    let (accepted, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == StatusCode::ACCEPTED);
    assert_eq!((accepted.len(), refused.len()), (FITTING, PARALLEL - FITTING));
    for answer in refused {
        answer.assert_refused(StatusCode::TOO_MANY_REQUESTS, reason);
    }
    let ids: BTreeSet<String> = accepted.iter().flat_map(|answer| answer.ids()).collect();
    assert_eq!(ids.len(), FITTING_NODES);
    assert_eq!(rows(app).await, FITTING_NODES as u64);
    assert_eq!(app.status().await["status_counts"]["queued"], FITTING_NODES);
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_requests_cannot_pass_a_tenants_limit_together() {
    for stores in Stores::of_both_kinds().await {
        let app = stores.api(&[]).await;
        let answers = flood(&app, |_| "busy".to_owned()).await;
        let reason = "EMBEDDING_TENANT_MAX_PENDING";
        let mut ids = assert_exactly_full(&app, &answers, reason).await;
        stores.assert_holds(&ids, &[("busy", FITTING_NODES)]);

        ids.extend(app.ingest("calm", &["not held up by another".to_owned()]).await);
        stores.assert_holds(&ids, &[("busy", FITTING_NODES), ("calm", 1)]);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_requests_cannot_pass_the_depth_of_the_queue_together() {
    for stores in Stores::of_both_kinds().await {
        let app = stores.api(&[("EMBEDDING_QUEUE_MAX_DEPTH", "2000")]).await;
        let answers = flood(&app, |i| format!("tenant-{}", i % 4)).await;
        let ids = assert_exactly_full(&app, &answers, "EMBEDDING_QUEUE_MAX_DEPTH").await;
        let accepted = |tenant: usize| {
            let of_tenant = answers.iter().skip(tenant).step_by(4);
            of_tenant.filter(|answer| answer.status == StatusCode::ACCEPTED).count() * BATCH
        };
        let counts = [0, 1, 2, 3].map(|tenant| (format!("tenant-{tenant}"), accepted(tenant)));
        let counts = counts.each_ref().map(|(tenant, jobs)| (tenant.as_str(), *jobs));
        stores.assert_holds(&ids, &counts);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_tenant_limit_only_the_depth_counts() {
    for stores in Stores::of_both_kinds().await {
        let limits = [("EMBEDDING_TENANT_MAX_PENDING", "0"), ("EMBEDDING_QUEUE_MAX_DEPTH", "4000")];
        let app = stores.api(&limits).await;
        for answer in flood(&app, |_| "busy".to_owned()).await {
            assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
        }
        assert_eq!(rows(&app).await, (PARALLEL * BATCH) as u64);
        assert_eq!(stores.tenant_count("busy"), (PARALLEL * BATCH).to_string());
        let one_more = send(&Client::new(), &app, &batch("busy", 1)).await;
        one_more.assert_refused(
            StatusCode::TOO_MANY_REQUESTS,
            "the queue is at its maximum depth of 4000",
        );
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_which_one_tenant_is_full_leaves_nothing_of_the_others() {
    for stores in Stores::of_both_kinds().await {
        let app = stores.api(&[("EMBEDDING_TENANT_MAX_PENDING", "10")]).await;
        let full = app.ingest("full", &vec!["text".to_owned(); 10]).await;
        let mut mixed = batch("other", 5);
        mixed["tenant_id"] = json!(null);
        for (at, tenant) in ["other", "other", "other", "full", "other"].iter().enumerate() {
            mixed["nodes"][at]["tenant_id"] = json!(tenant);
        }
        let answer = send(&Client::new(), &app, &mixed).await;
        answer.assert_refused(StatusCode::TOO_MANY_REQUESTS, "tenant full");
        stores.assert_holds(&full.into_iter().collect(), &[("full", 10)]);
        assert_eq!(rows(&app).await, 10);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn room_returns_when_work_is_done() {
    for stores in Stores::of_both_kinds().await {
        let limits = [("EMBEDDING_TENANT_MAX_PENDING", "40"), ("EMBEDDING_QUEUE_MAX_DEPTH", "60")];
        let app = stores.api(&limits).await;
        let client = Client::new();
        let too_many = send(&client, &app, &batch("busy", 41)).await;
        too_many.assert_refused(StatusCode::TOO_MANY_REQUESTS, "tenant busy");
        for (tenant, nodes) in [("busy", 40), ("calm", 20)] {
            assert_eq!(send(&client, &app, &batch(tenant, nodes)).await.status, 202);
        }
        let of_the_tenant = send(&client, &app, &batch("busy", 1)).await;
        of_the_tenant.assert_refused(StatusCode::TOO_MANY_REQUESTS, "tenant busy");
        let of_all = send(&client, &app, &batch("third", 1)).await;
        of_all.assert_refused(StatusCode::TOO_MANY_REQUESTS, "the queue");

        let worker = stores.worker().await;
        assert_eq!(app.settled(DEADLINE).await["ready"], 60, "{}", stores.name);
        assert_eq!(stores.keys("embedding:*pending*"), BTreeSet::new(), "{}", stores.name);
        worker.stop().await;
        for (tenant, nodes) in [("busy", 40), ("calm", 20)] {
            assert_eq!(send(&client, &app, &batch(tenant, nodes)).await.status, 202);
        }
        assert_eq!((stores.tenant_count("busy"), stores.queued()), ("40".to_owned(), 60));
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn room_that_is_reserved_is_not_given_to_a_refresh_or_requeue() {
    let redis = TestRedis::start();
    let queue = Queue::connect(&redis.url(), &Settings::with(&[]).unwrap().queue).await.unwrap();
    let limits = Limits { max_depth: 10, tenant_max_pending: 0 };
    let tenant = TenantId::default();
    let Admission::Admitted(reservation) =
        queue.reserve(&[(&tenant, 9)].into(), limits).await.unwrap()
    else {
        panic!("there is room");
    };
    let job = || Job::new(uuid::Uuid::new_v4(), tenant.clone(), Action::Refresh, 0.0);
    let answers = queue.enqueue(&[job(), job()], Some(limits)).await.unwrap();
    assert_eq!(answers, [Enqueued::New, Enqueued::QueueFull]);
    let jobs: Vec<Job> = (0..9).map(|_| job()).collect();
    assert_eq!(queue.publish(&reservation, &jobs).await.unwrap(), 9);
    assert_eq!(redis.cli(&["LLEN", "embedding:queue"]), "10");
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_leaves_nothing_in_redis() {
    let mut server = TestPostgres::start();
    let stores = Stores::on_postgres(&server).await;
    let app = stores.api(&[]).await;
    let before: BTreeSet<String> =
        app.ingest("acme", &["before".to_owned()]).await.into_iter().collect();
    server.stop();
    for _ in 0..3 {
        let answer = send(&Client::new(), &app, &batch("acme", BATCH)).await;
        answer.assert_refused(StatusCode::SERVICE_UNAVAILABLE, "database");
        stores.assert_holds(&before, &[("acme", 1)]);
    }
    server.start_again().await;
    wait_until(DEADLINE, async || {
        send(&Client::new(), &app, &batch("acme", 1)).await.status == StatusCode::ACCEPTED
    })
    .await;
    assert_eq!((rows(&app).await, stores.queued()), (2, 2));
    assert_eq!(stores.tenant_count("acme"), "2");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_refuses_the_rows_leaves_nothing_in_redis() {
    for stores in Stores::of_both_kinds().await {
        let app = stores.api(&[]).await;
        let database = Database::connect(&stores.dsn).await.unwrap();
        database.execute_unprepared("ALTER TABLE nodes RENAME TO elsewhere").await.unwrap();
        let answer = send(&Client::new(), &app, &batch("acme", BATCH)).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.body);
        stores.assert_holds(&BTreeSet::new(), &[]);
        database.execute_unprepared("ALTER TABLE elsewhere RENAME TO nodes").await.unwrap();
        database.close().await.unwrap();
        assert_eq!(rows(&app).await, 0, "{}", stores.name);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_away_leaves_no_row() {
    for mut stores in Stores::of_both_kinds().await {
        let app = stores.api(&[]).await;
        app.ingest("acme", &["before".to_owned()]).await;
        stores.redis.kill();
        for _ in 0..2 {
            let answer = send(&Client::new(), &app, &batch("acme", BATCH)).await;
            answer.assert_refused(StatusCode::SERVICE_UNAVAILABLE, "Redis");
            assert_eq!(rows(&app).await, 1, "{}", stores.name);
        }
        stores.redis.restart();
        wait_until(DEADLINE, async || {
            send(&Client::new(), &app, &batch("acme", 1)).await.status == StatusCode::ACCEPTED
        })
        .await;
        assert_eq!(rows(&app).await, 2, "{}", stores.name);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_without_memory_leaves_no_row() {
    let stores = Stores::on_sqlite();
    let app = stores.api(&[]).await;
    let id = app.ingest("acme", &["before".to_owned()]).await;
    assert_eq!(stores.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]), "OK");
    let answer = send(&Client::new(), &app, &batch("acme", BATCH)).await;
    answer.assert_refused(StatusCode::SERVICE_UNAVAILABLE, "Redis");
    stores.assert_holds(&id.into_iter().collect(), &[("acme", 1)]);
    assert_eq!(rows(&app).await, 1);
    assert_eq!(stores.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
    app.ingest("acme", &["after".to_owned()]).await;
    app.stop().await;
}
