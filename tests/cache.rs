//! The cache by content: what was embedded before is not embedded again, and never wrongly.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{TestApp, TestPostgres, TestRedis, connect, cosine, faulty_model, vector_of};
use sea_orm::ConnectionTrait;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vecmill::{app::Role, inference::Model};

const DEADLINE: Duration = Duration::from_secs(30);

/// The `hash` model, and how many texts it was given.
fn counting_model() -> (Model, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let model = faulty_model(move |batch| {
        counter.fetch_add(batch.len(), Ordering::SeqCst);
        Ok(())
    });
    (model, seen)
}

/// A Vecmill, and how many texts its model was given.
struct Counted {
    app: TestApp,
    seen: Arc<AtomicUsize>,
}

impl Counted {
    async fn start(dir: &tempfile::TempDir, settings: &[(&str, &str)]) -> Self {
        let (model, seen) = counting_model();
        let app = TestApp::start(Role::Serve, dir.path(), settings, Some(model)).await;
        Self { app, seen }
    }

    /// Takes texts in, waits, and looks at what they got; the ids.
    async fn embed(&self, tenant: &str, texts: &[&str]) -> Vec<String> {
        let owned: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let ids = self.app.ingest(tenant, &owned).await;
        self.app.settled(DEADLINE).await;
        for (id, text) in ids.iter().zip(texts) {
            self.has_vector_of(id, text).await;
        }
        ids
    }

    async fn has_vector_of(&self, id: &str, text: &str) {
        let node = self.app.node(id).await;
        assert_eq!(node["embedding_status"], "ready", "{node}");
        let vector: Vec<f32> = serde_json::from_value(node["embedding"].clone()).unwrap();
        let cosine = cosine(&vector, &vector_of(text));
        assert!(cosine > 0.99999, "{cosine}");
    }

    /// How many texts the model was given since this was asked last.
    fn embedded(&self) -> usize {
        self.seen.swap(0, Ordering::SeqCst)
    }
}

async fn what_was_embedded_is_found(counted: &Counted) {
    counted.embed("acme", &["one two", "three"]).await;
    assert_eq!(counted.embedded(), 2);
    // The model sees words only; whose node it is does not matter.
    counted.embed("other", &["three", " one \n two ", "four"]).await;
    assert_eq!(counted.embedded(), 1, "four is new");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_embedded_is_found_in_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let counted = Counted::start(&dir, &[]).await;
    what_was_embedded_is_found(&counted).await;
    counted.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_embedded_is_found_in_postgres() {
    let (dir, redis) = (tempfile::tempdir().unwrap(), TestRedis::start());
    let dsn = TestPostgres::shared().database().await;
    let settings = [("ACTIVEKG_DSN", dsn.as_str()), ("REDIS_URL", &redis.url())];
    let counted = Counted::start(&dir, &settings).await;
    what_was_embedded_is_found(&counted).await;
    assert_eq!(redis.cli(&["KEYS", "embedding:*pending*"]), "", "counters and keys are gone");
    counted.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_texts_of_one_batch_are_embedded_once() {
    let dir = tempfile::tempdir().unwrap();
    let counted = Counted::start(&dir, &[]).await;
    counted.embed("acme", &["same"; 30]).await;
    assert_eq!(counted.embedded(), 1);
    counted.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_embeds_again_and_others_may_use_it() {
    let dir = tempfile::tempdir().unwrap();
    let counted = Counted::start(&dir, &[]).await;
    let ids = counted.embed("acme", &["text"]).await;
    counted.embedded();
    let (status, _) = counted.app.post(&format!("/nodes/{}/refresh", ids[0]), &json!({})).await;
    assert_eq!(status.as_u16(), 202);
    counted.app.settled(DEADLINE).await;
    assert_eq!(counted.embedded(), 1, "a refresh is there to embed again");
    counted.embed("acme", &["text"]).await;
    assert_eq!(counted.embedded(), 0);
    counted.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_redis_forgot_is_one_when_it_is_found() {
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let settings = [("REDIS_URL", redis.url()), ("EMBEDDING_SWEEP_INTERVAL_SECONDS", "0.2".into())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let counted = Counted::start(&dir, &settings).await;
    let ids = counted.embed("acme", &["text", "other"]).await;
    counted.embedded();
    counted.app.stop().await;
    let api = TestApp::start(Role::Api, dir.path(), &settings, None).await;
    let (status, _) = api.post(&format!("/nodes/{}/refresh", ids[0]), &json!({})).await;
    assert_eq!(status.as_u16(), 202);
    redis.flush();
    api.stop().await;
    let counted = Counted::start(&dir, &settings).await;
    counted.app.settled(DEADLINE).await;
    assert_eq!(counted.embedded(), 1, "not taken from the cache");
    counted.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_embeds_again_beside_another_job_of_its_node() {
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let counted = Counted::start(&dir, &[("REDIS_URL", &redis.url())]).await;
    let ids = counted.embed("acme", &["text"]).await;
    counted.embedded();
    let entry = |action| json!({"node_id": ids[0], "tenant_id": "acme", "action": action});
    let entries = [entry("embed").to_string(), entry("refresh").to_string()];
    // One command, so that one claim takes both, the first one first.
    redis.cli(&["LPUSH", "embedding:queue", &entries[0], &entries[1]]);
    counted.app.settled(DEADLINE).await;
    assert_eq!(counted.embedded(), 1);
    counted.has_vector_of(&ids[0], "text").await;
    counted.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_turned_off() {
    let dir = tempfile::tempdir().unwrap();
    let counted = Counted::start(&dir, &[("EMBEDDING_CACHE", "false")]).await;
    counted.embed("acme", &["text"; 3]).await;
    counted.embed("acme", &["text"]).await;
    assert_eq!(counted.embedded(), 4);
    counted.app.stop().await;
    // What was written without it is not found with it.
    let counted = Counted::start(&dir, &[]).await;
    counted.embed("acme", &["text"]).await;
    assert_eq!(counted.embedded(), 1);
    counted.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vector_of_another_program_is_not_taken_for_ours() {
    let dir = tempfile::tempdir().unwrap();
    let counted = Counted::start(&dir, &[]).await;
    counted.embed("acme", &["text"]).await;
    counted.embedded();
    let db = connect(&format!("sqlite://{}/vecmill.db", dir.path().display()), 1).await.unwrap();
    // Our columns stay as they are; the vector is one of length 1, but of another text.
    let other: String = (0..384).map(|i| if i == 0 { "0000803f" } else { "00000000" }).collect();
    db.execute_unprepared(&format!("UPDATE nodes SET embedding = x'{other}'")).await.unwrap();
    counted.embed("acme", &["text"]).await;
    assert_eq!(counted.embedded(), 1);
    counted.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vector_that_could_not_be_stored_today_is_embedded_again() {
    let dir = tempfile::tempdir().unwrap();
    let counted = Counted::start(&dir, &[]).await;
    counted.embed("acme", &["text"]).await;
    counted.embedded();
    let db = connect(&format!("sqlite://{}/vecmill.db", dir.path().display()), 1).await.unwrap();
    // One of length 0, with a checksum that fits.
    let digest = Sha256::digest([0; 384 * 4]);
    let checksum = i64::from_be_bytes(std::array::from_fn(|i| digest[i]));
    db.execute_unprepared(&format!(
        "UPDATE nodes SET embedding = zeroblob(1536), embedding_checksum = {checksum}"
    ))
    .await
    .unwrap();
    counted.embed("acme", &["text"]).await;
    assert_eq!(counted.embedded(), 1);
    counted.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vector_of_an_older_text_still_serves_it() {
    let dir = tempfile::tempdir().unwrap();
    let counted = Counted::start(&dir, &[]).await;
    let ids = counted.embed("acme", &["old"]).await;
    let new = json!({"props": {"text": "new"}});
    let (_, answer) = counted.app.patch(&format!("/nodes/{}?tenant_id=acme", ids[0]), &new).await;
    assert_eq!(answer["embedding_status"], "queued", "{answer}");
    counted.app.settled(DEADLINE).await;
    counted.has_vector_of(&ids[0], "new").await;
    counted.embedded();
    counted.embed("acme", &["old", "new"]).await;
    assert_eq!(counted.embedded(), 1, "only the new text has its vector still");
    counted.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_queue_too() {
    let dir = tempfile::tempdir().unwrap();
    let counted = Counted::start(&dir, &[("EMBEDDING_ASYNC", "false")]).await;
    let nodes = |texts: &[&str]| -> Value {
        let node = |text: &&str| json!({"classes": ["A"], "props": {"text": text}});
        json!({ "nodes": texts.iter().map(node).collect::<Vec<_>>() })
    };
    for (texts, embedded) in
        [(["a", "b", "a"].as_slice(), 2), (&["b", "c", "a", "c"], 1), (&["a", "b"], 0)]
    {
        let (_, answer) = counted.app.post("/nodes/batch", &nodes(texts)).await;
        assert_eq!(answer["created"], texts.len(), "{answer}");
        for (result, text) in answer["results"].as_array().unwrap().iter().zip(texts) {
            counted.has_vector_of(result["id"].as_str().unwrap(), text).await;
        }
        assert_eq!(counted.embedded(), embedded, "{texts:?}");
    }
    counted.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let counted = Counted::start(&dir, &[]).await;
    counted.embed("acme", &["counted text"]).await;
    counted.embed("acme", &["counted text"]).await;
    let metrics = reqwest::get(format!("{}/metrics", counted.app.url())).await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let hits = metrics
        .lines()
        .find_map(|line| line.strip_prefix("vecmill_embedding_cache_total{result=\"hit\"} "));
    // Other tests of this program count, too.
    assert!(hits.unwrap().parse::<u64>().unwrap() >= 1, "{metrics}");
    counted.app.stop().await;
}
