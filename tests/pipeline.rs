//! Nodes in, vectors out: on SQLite with a private Redis, and on Postgres with another's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{TestApp, TestPostgres, TestRedis, hash_model, vector_of};
use serde_json::{Value, json};
use vecmill::{
    app::Role,
    inference::{EmbedError, Encoding, Model, TextEncoder},
};

const DEADLINE: Duration = Duration::from_secs(30);

fn texts(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("text number {i}")).collect()
}

async fn vectors_are_those_of_the_texts(app: &TestApp) {
    let ids = app.ingest("acme", &texts(150)).await;
    let counts = app.settled(DEADLINE).await;
    assert_eq!(counts["ready"], 150, "{counts}");
    for (id, text) in ids.iter().zip(texts(150)).step_by(37) {
        let node = app.node(id).await;
        let expected = vector_of(&text);
        let stored: Vec<f32> = serde_json::from_value(node["embedding"].clone()).unwrap();
        let cosine: f32 = stored.iter().zip(&expected).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.99999, "{cosine}");
        assert_eq!(node["embedding_status"], "ready");
        assert_eq!(node["drift_score"], 0.0);
        assert_eq!(node["embedding_truncated"], false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_embedded_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let app = TestApp::serve(dir.path(), &[]).await;
    vectors_are_those_of_the_texts(&app).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres_and_redis_with_api_and_workers_apart() {
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let dsn = TestPostgres::shared().database().await;
    let settings: Vec<(&str, String)> = vec![("REDIS_URL", redis.url()), ("ACTIVEKG_DSN", dsn)];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let api = TestApp::start(Role::Api, dir.path(), &settings, None).await;
    let worker = |_| TestApp::start(Role::Worker, dir.path(), &settings, Some(hash_model()));
    let (first, second) = (worker(1).await, worker(2).await);
    vectors_are_those_of_the_texts(&api).await;
    assert_eq!(redis.cli(&["KEYS", "embedding:*pending*"]), "", "counters and keys are gone");
    for app in [first, second, api] {
        app.stop().await;
    }
}

/// Counts the texts that it is given.
struct CountingEncoder(Arc<dyn TextEncoder>, AtomicUsize);

impl TextEncoder for CountingEncoder {
    fn encode(&self, text: &str) -> Result<Encoding, EmbedError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.encode(text)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_text_is_tokenised_once() {
    let dir = tempfile::tempdir().unwrap();
    let model = hash_model();
    let encoder = Arc::new(CountingEncoder(Arc::clone(&model.encoder), AtomicUsize::new(0)));
    let model = Model { encoder: encoder.clone(), ..model };
    let app = TestApp::start(Role::Serve, dir.path(), &[], Some(model)).await;
    app.ingest("acme", &texts(150)).await;
    app.settled(DEADLINE).await;
    assert_eq!(encoder.1.load(Ordering::SeqCst), 150);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_queue_the_answer_waits_for_the_vector() {
    let dir = tempfile::tempdir().unwrap();
    let app = TestApp::serve(dir.path(), &[("EMBEDDING_ASYNC", "false")]).await;
    let body = json!({"classes": ["Doc"], "props": {"text": "at once"}});
    let (status, answer) = app.post("/nodes", &body).await;
    assert_eq!((status.as_u16(), &answer["embedding_status"]), (200, &json!("ready")), "{answer}");
    let node = app.node(answer["id"].as_str().unwrap()).await;
    assert_eq!(node["embedding"].as_array().unwrap().len(), 384);
    let empty = json!({"classes": ["Doc"], "props": {"title": "no text"}});
    assert_eq!(app.post("/nodes", &empty).await.1["embedding_status"], "skipped");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_embedded_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let app = TestApp::serve(dir.path(), &[]).await;
    let long = "word ".repeat(1000);
    let nodes = json!({"nodes": [
        {"classes": ["A"], "props": {"title": "no text here"}},
        {"classes": ["A"], "props": {}, "payload_ref": "file:///etc/passwd"},
        {"classes": ["A"], "props": {"text": "", "body": long}},
    ]});
    let (_, answer) = app.post("/nodes/batch", &nodes).await;
    app.settled(DEADLINE).await;
    let mut found: Vec<Value> = Vec::new();
    for result in answer["results"].as_array().unwrap() {
        found.push(app.node(result["id"].as_str().unwrap()).await);
    }
    assert_eq!(found[0]["embedding_status"], "skipped");
    assert!(found[0]["embedding_error"].as_str().unwrap().contains("no text"));
    assert_eq!(found[1]["embedding_status"], "skipped");
    assert!(found[1]["embedding_error"].as_str().unwrap().contains("payload_ref"));
    assert_eq!(found[2]["embedding_status"], "ready");
    assert_eq!(found[2]["embedding_truncated"], true);
    app.stop().await;
}
