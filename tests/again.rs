//! Refresh and requeue without a queue embed before the answer is sent, and say what became of it;
//! and nodes that are due are embedded again, with and without a queue.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{TestApp, TestPostgres, TestRedis, connect, cosine, faulty_model, ids_of, vector_of};
use sea_orm::ConnectionTrait;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;
use vecmill::{
    app::Role,
    inference::{EmbedError, Model},
};

const DEADLINE: Duration = Duration::from_secs(60);

/// A database, and a model that is away when the test says so, and refuses the word `bad`.
struct Site {
    dir: TempDir,
    dsn: String,
    is_away: Arc<AtomicBool>,
    seen: Arc<AtomicUsize>,
}

impl Site {
    async fn of_both_kinds() -> [Self; 2] {
        let postgres = TestPostgres::shared().database().await;
        let dir = tempfile::tempdir().unwrap();
        let sqlite = format!("sqlite://{}", dir.path().join("nodes.db").display());
        let of = |dir, dsn| Self { dir, dsn, is_away: Arc::default(), seen: Arc::default() };
        [of(dir, sqlite), of(tempfile::tempdir().unwrap(), postgres)]
    }

    fn model(&self) -> Model {
        let (is_away, seen, bad) = (self.is_away.clone(), self.seen.clone(), ids_of("bad"));
        faulty_model(move |batch| {
            if is_away.load(Ordering::SeqCst) {
                return Err(EmbedError::Device("planned".into()));
            }
            if batch.iter().any(|text| text.ids == bad) {
                return Err(EmbedError::Model("planned".to_owned()));
            }
            seen.fetch_add(batch.len(), Ordering::SeqCst);
            Ok(())
        })
    }

    /// Without a queue.
    async fn inline(&self, settings: &[(&str, &str)]) -> TestApp {
        let own = [("EMBEDDING_ASYNC", "false"), ("ACTIVEKG_DSN", self.dsn.as_str())];
        let all = [&own[..], settings].concat();
        TestApp::start(Role::Serve, self.dir.path(), &all, Some(self.model())).await
    }

    async fn sql(&self, statement: &str) {
        let db = connect(&self.dsn, 1).await.unwrap();
        db.execute_unprepared(statement).await.unwrap();
        db.close().await.unwrap();
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

/// Takes nodes of these texts in; their ids.
async fn ingest(app: &TestApp, texts: &[&str], policy: &Value) -> Vec<String> {
    let node = |text: &&str| {
        json!({"classes": ["Doc"], "props": {"text": text}, "tenant_id": "acme",
               "refresh_policy": policy})
    };
    let nodes: Vec<Value> = texts.iter().map(node).collect();
    let answer = app.post("/nodes/batch", &json!({"nodes": nodes})).await.1;
    let results = answer["results"].as_array().unwrap().iter();
    results.map(|result| result["id"].as_str().unwrap().to_owned()).collect()
}

fn has_vector_of(node: &Value, text: &str) -> bool {
    let vector: Vec<f32> = serde_json::from_value(node["embedding"].clone()).unwrap();
    cosine(&vector, &vector_of(text)) > 0.999
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_is_done_when_it_is_answered() {
    for site in Site::of_both_kinds().await {
        let app = site.inline(&[]).await;
        let id = ingest(&app, &["one"], &json!({})).await.remove(0);
        let before = app.node(&id).await;
        let path = format!("/nodes/{id}/refresh");
        let (status, answer) = app.post(&path, &Value::Null).await;
        let expected = json!({"id": id, "status": "ready", "job_id": null});
        assert_eq!((status.as_u16(), answer), (200, expected));
        assert_eq!(site.seen(), 2, "it did not take the vector that was there");
        let after = app.node(&id).await;
        assert_ne!(after["last_refreshed"], before["last_refreshed"]);
        assert!(has_vector_of(&after, "one"));

        // A text that another program wrote.
        site.sql("UPDATE nodes SET props = '{\"text\": \"two\"}'").await;
        assert_eq!(app.post(&path, &Value::Null).await.1["status"], "ready");
        let after = app.node(&id).await;
        assert!(has_vector_of(&after, "two"));
        assert!(after["drift_score"].as_f64().unwrap() > 0.1, "{after}");
        // One that there is not, and one that the model refuses.
        for (props, status, reason) in
            [("{}", "skipped", "no text"), ("{\"text\": \"bad\"}", "failed", "planned")]
        {
            site.sql(&format!("UPDATE nodes SET props = '{props}'")).await;
            let (code, answer) = app.post(&path, &Value::Null).await;
            assert_eq!((code.as_u16(), &answer["status"]), (200, &json!(status)), "{answer}");
            let node = app.node(&id).await;
            assert_eq!(node["embedding_status"], status);
            let error = node["embedding_error"].as_str().unwrap();
            assert!(error.contains(reason), "{error}");
        }
        let path = format!("/nodes/{}/refresh", Uuid::new_v4());
        assert_eq!(app.post(&path, &Value::Null).await.0.as_u16(), 404);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_away_changes_nothing() {
    for site in Site::of_both_kinds().await {
        let app = site.inline(&[]).await;
        let id = ingest(&app, &["one"], &json!({})).await.remove(0);
        let before = app.node(&id).await;
        site.is_away.store(true, Ordering::SeqCst);
        let order = json!({"status": "all", "backfill_ready": false});
        for (path, body) in [
            (format!("/nodes/{id}/refresh"), json!({})),
            ("/admin/refresh".to_owned(), json!([id])),
            ("/admin/embedding/requeue".to_owned(), order),
        ] {
            let (status, answer) = app.post(&path, &body).await;
            assert_eq!(status.as_u16(), 503, "{path}: {answer}");
            assert_eq!(app.node(&id).await, before, "{path}");
        }
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_says_how_its_nodes_ended() {
    for site in Site::of_both_kinds().await {
        let app = site.inline(&[("NODE_BATCH_MAX", "3")]).await;
        let mut ids = ingest(&app, &["one", "two", "bad"], &json!({})).await;
        ids.extend(ingest(&app, &["", "five"], &json!({})).await);
        let requeue = async |body: Value| {
            let (status, answer) = app.post("/admin/embedding/requeue", &body).await;
            assert_eq!(status.as_u16(), 200, "{answer}");
            answer
        };
        let all = json!({"node_ids": &ids[..3], "backfill_ready": false});
        let ended = json!({"ready": 2, "failed": 1, "skipped": 0});
        let expected = json!({"backfilled": 0, "requested": 3, "enqueued": 3, "ended": ended, "next_cursor": null});
        assert_eq!(requeue(all).await, expected);
        // No more than a batch may hold, for as long as a client waits.
        let all = json!({"status": "all", "backfill_ready": false});
        assert_eq!(requeue(all).await["requested"], 3);

        // What a process that ended in the middle of its work left.
        site.sql("UPDATE nodes SET embedding_status = 'processing', embedding = NULL").await;
        let (mut ended, mut calls) = ([0, 0, 0], 0);
        while ended.iter().sum::<u64>() < 5 {
            let answer = requeue(json!({"status": "processing", "limit": 2})).await;
            let names = ["ready", "failed", "skipped"];
            let counts = names.map(|name| answer["ended"][name].as_u64().unwrap());
            ended = std::array::from_fn(|i| ended[i] + counts[i]);
            calls += 1;
            assert!(calls <= 3, "{answer}");
        }
        assert_eq!((ended, calls), ([3, 1, 1], 3));
        let status = app.status().await["status_counts"].clone();
        assert_eq!((&status["ready"], &status["processing"]), (&json!(3), &json!(0)), "{status}");

        // Nodes that have a vector are not embedded for nothing.
        site.sql("UPDATE nodes SET embedding_status = 'queued' WHERE embedding IS NOT NULL").await;
        let seen = site.seen();
        let answer = requeue(json!({"status": "queued"})).await;
        assert_eq!((&answer["backfilled"], &answer["requested"]), (&json!(3), &json!(0)));
        assert_eq!(site.seen(), seen);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_named_or_due_are_refreshed() {
    let hour = json!({"interval": "1h", "drift_threshold": 0.1});
    for site in Site::of_both_kinds().await {
        let app = site.inline(&[]).await;
        let due = ingest(&app, &["one", "two"], &hour).await;
        ingest(&app, &["three"], &json!({"interval": "2d"})).await;
        ingest(&app, &["four"], &json!({})).await;
        let refresh = async |path: &str, body: Value| {
            let (status, answer) = app.post(path, &body).await;
            assert_eq!(status.as_u16(), 200, "{answer}");
            let number = |field: &str| answer[field].as_u64().unwrap();
            assert_eq!((&answer["status"], number("enqueued")), (&json!("completed"), 0));
            let mode = answer["mode"].as_str().unwrap().to_owned();
            (mode, number("requested"), number("refreshed"))
        };
        let named = |requested, refreshed| ("specific_nodes".to_owned(), requested, refreshed);
        let all_due = |count| ("all_due_nodes".to_owned(), count, count);
        let unknown = Uuid::new_v4().to_string();
        assert_eq!(refresh("/admin/refresh", json!([due[0], unknown])).await, named(2, 1));
        assert_eq!(refresh("/admin/refresh", json!({"node_ids": [due[0]]})).await, named(1, 1));
        let of_other = "/admin/refresh?tenant_id=other";
        assert_eq!(refresh(of_other, json!([due[0]])).await, named(1, 0));

        assert_eq!(refresh("/admin/refresh", json!([])).await, all_due(0), "they are fresh");
        site.sql("UPDATE nodes SET last_refreshed = '2026-01-01T00:00:00+00:00'").await;
        site.sql(
            "UPDATE nodes SET last_refreshed = CURRENT_TIMESTAMP \
             WHERE CAST(props AS TEXT) LIKE '%three%'",
        )
        .await;
        assert_eq!(refresh(of_other, json!({})).await, all_due(0));
        let seen = site.seen();
        assert_eq!(refresh("/admin/refresh", json!({"tenant_id": "acme"})).await, all_due(2));
        assert_eq!(site.seen(), seen + 2);
        // Without a body, and without a type of it.
        let url = format!("{}/admin/refresh", app.url());
        let answer = reqwest::Client::new().post(url).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        assert_eq!(answer.json::<Value>().await.unwrap()["requested"], 0);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_queue_what_is_due_gets_a_job_once() {
    for site in Site::of_both_kinds().await {
        let redis = TestRedis::start();
        let url = redis.url();
        let settings = [
            ("REDIS_URL", url.as_str()),
            ("ACTIVEKG_DSN", site.dsn.as_str()),
            ("EMBEDDING_SWEEP_INTERVAL_SECONDS", "3600"),
        ];
        let model = Some(site.model());
        let worker = TestApp::start(Role::Worker, site.dir.path(), &settings, model).await;
        let api = TestApp::start(Role::Api, site.dir.path(), &settings, None).await;
        let policy = json!({"cron": "*/5 * * * *"});
        let ids = ingest(&api, &["one", "two", "three"], &policy).await;
        api.settled(DEADLINE).await;
        worker.stop().await;
        site.sql("UPDATE nodes SET last_refreshed = '2026-01-01T00:00:00+00:00'").await;
        let refreshed = async |body: Value| {
            let (status, answer) = api.post("/admin/refresh", &body).await;
            assert_eq!((status.as_u16(), &answer["status"]), (200, &json!("queued")), "{answer}");
            let number = |field: &str| answer[field].as_u64().unwrap();
            assert_eq!(number("refreshed"), 0);
            (number("requested"), number("enqueued"))
        };
        assert_eq!(refreshed(json!([ids[0]])).await, (1, 1));
        assert_eq!(refreshed(json!([ids[0]])).await, (1, 0), "it has a job");
        assert_eq!(refreshed(json!({})).await, (2, 2));
        assert_eq!(refreshed(json!({})).await, (0, 0), "they wait already");
        assert_eq!(api.count("queued").await, 3);
        let jobs = redis.cli(&["LRANGE", "embedding:queue", "0", "-1"]);
        assert_eq!(jobs.matches("\"action\":\"refresh\"").count(), 3, "{jobs}");
        let worker =
            TestApp::start(Role::Worker, site.dir.path(), &settings, Some(site.model())).await;
        assert_eq!(api.settled(DEADLINE).await["ready"], 3);
        assert_eq!(refreshed(json!({})).await, (0, 0), "they are fresh");
        worker.stop().await;
        api.stop().await;
    }
}
