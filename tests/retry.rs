//! A failure is tried again after growing delays, ends as a dead letter, and harms no other node.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use common::{TestApp, TestRedis, faulty_model, hash_model, ids_of, wait_until};
use serde_json::{Value, json};
use vecmill::{
    app::Role,
    inference::{
        EmbedError, EmbeddingBackend, Encoding, HashBackend, HashEncoder, Model, TextEncoder,
    },
};

const DEADLINE: Duration = Duration::from_secs(30);
/// The text that the tests' models do not like.
const BAD: &str = "unlucky";

fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// `n` texts, one of them bad; where it is.
fn texts_with_a_bad_one(n: usize) -> (Vec<String>, usize) {
    let at = n / 3;
    let text = |i| if i == at { BAD.to_owned() } else { format!("text number {i}") };
    ((0..n).map(text).collect(), at)
}

fn is_bad(text: &Encoding) -> bool {
    text.ids == ids_of(BAD)
}

fn letters(redis: &TestRedis) -> Vec<Value> {
    let list = redis.cli(&["LRANGE", "embedding:dlq", "0", "-1"]);
    list.lines().map(|letter| serde_json::from_str(letter).unwrap()).collect()
}

/// A retry as it was first seen.
struct Plan {
    seen_at: f64,
    due: f64,
}

/// Watches the only job that fails until its fourth attempt failed; its retries by the number
/// of attempts.
async fn planned_retries(redis: &TestRedis) -> BTreeMap<u32, Plan> {
    let mut plans = BTreeMap::new();
    wait_until(DEADLINE, async || {
        let answer = redis.cli(&["ZRANGE", "embedding:retry", "0", "-1", "WITHSCORES"]);
        if let Some((entry, score)) = answer.split_once('\n') {
            let job: Value = serde_json::from_str(entry).unwrap();
            let attempts = u32::try_from(job["attempts"].as_u64().unwrap()).unwrap();
            let plan = Plan { seen_at: unix_now(), due: score.parse().unwrap() };
            plans.entry(attempts).or_insert(plan);
        }
        plans.contains_key(&4)
    })
    .await;
    assert_eq!(plans.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
    plans
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_text_is_retried_alone_and_buried_alone() {
    const BASE: f64 = 0.5;
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let failed_at: Arc<Mutex<Vec<f64>>> = Arc::default();
    let is_broken = Arc::new(AtomicBool::new(true));
    let model = faulty_model({
        let (failed_at, is_broken) = (Arc::clone(&failed_at), Arc::clone(&is_broken));
        move |batch| {
            if !is_broken.load(Ordering::SeqCst) || !batch.iter().any(is_bad) {
                return Ok(());
            }
            if batch.len() == 1 {
                failed_at.lock().unwrap().push(unix_now());
            }
            Err(EmbedError::Model("planned".to_owned()))
        }
    });
    let (url, base) = (redis.url(), BASE.to_string());
    let settings = [("REDIS_URL", url.as_str()), ("EMBEDDING_RETRY_BASE_SECONDS", base.as_str())];
    let app = TestApp::start(Role::Serve, dir.path(), &settings, Some(model)).await;
    let (texts, at) = texts_with_a_bad_one(40);
    let ingest = async {
        let ids = app.ingest("acme", &texts).await;
        wait_until(DEADLINE, async || app.count("ready").await == 39).await;
        let bad = app.node(&ids[at]).await;
        let status = bad["embedding_status"].as_str().unwrap();
        assert!(["queued", "processing"].contains(&status), "its mates did not wait: {bad}");
        assert!(bad["embedding_attempts"].as_u64().unwrap() < 5, "{bad}");
        ids
    };
    let (ids, plans) = tokio::join!(ingest, planned_retries(&redis));
    let bad = app.node(&ids[at]).await;
    assert_eq!(bad["embedding_attempts"], 4, "the row tells the attempts: {bad}");
    assert_eq!(bad["embedding_status"], "queued", "{bad}");
    assert!(bad["embedding_error"].as_str().unwrap().contains("planned"), "{bad}");
    for (failed_at, (attempt, plan)) in failed_at.lock().unwrap().iter().zip(&plans) {
        // The delay began after the failure and before it was seen.
        let (at_least, at_most) = (plan.due - plan.seen_at, plan.due - failed_at);
        let delay = BASE * f64::from(1 << (attempt - 1));
        println!("attempt {attempt}: {at_least:.3} to {at_most:.3} s, planned {delay:.1} s");
        assert!(at_least <= delay * 1.1 + 0.002, "{at_least} s after attempt {attempt}");
        assert!(at_most >= delay * 0.9 - 0.002, "{at_most} s after attempt {attempt}");
    }
    let counts = app.settled(DEADLINE).await;
    assert_eq!((&counts["ready"], &counts["failed"]), (&json!(39), &json!(1)), "{counts}");
    assert_eq!(failed_at.lock().unwrap().len(), 5, "attempts in all");
    let bad = app.node(&ids[at]).await;
    assert_eq!(bad["embedding_status"], "failed");
    assert_eq!(bad["embedding_attempts"], 5);
    assert_eq!(bad["has_embedding"], false);
    assert!(bad["embedding_error"].as_str().unwrap().contains("planned"), "{bad}");
    assert!(app.nodes_in("ready").await.iter().all(|node| node["embedding_attempts"] == 1));

    let letters = letters(&redis);
    assert_eq!(letters.len(), 1, "{letters:?}");
    let letter = &letters[0];
    assert_eq!(letter["node_id"], ids[at].as_str());
    assert_eq!((&letter["tenant_id"], &letter["action"]), (&json!("acme"), &json!("embed")));
    assert_eq!(letter["attempts"], 5);
    assert!(letter["job_id"].is_string() && letter["enqueued_at"].is_f64(), "{letter}");
    assert!(letter["error"].as_str().unwrap().contains("planned"), "{letter}");
    let last_failure = *failed_at.lock().unwrap().last().unwrap();
    let buried_at = letter["failed_at"].as_f64().unwrap();
    assert!(last_failure <= buried_at && buried_at <= unix_now(), "{letter}");
    assert_eq!(redis.cli(&["KEYS", "embedding:*pending*"]), "", "nothing is live");

    is_broken.store(false, Ordering::SeqCst);
    let order = json!({"tenant_id": "acme", "status": "failed"});
    let (_, answer) = app.post("/admin/embedding/requeue", &order).await;
    assert_eq!(
        answer,
        json!({"backfilled": 0, "requested": 1, "enqueued": 1, "next_cursor": null})
    );
    assert_eq!(app.settled(DEADLINE).await["ready"], 40);
    let node = app.node(&ids[at]).await;
    assert_eq!(node["embedding_attempts"], 1, "attempts were counted from 0 again: {node}");
    assert_eq!(node["embedding_error"], Value::Null);
    app.stop().await;
}

/// Answers with a vector that must not be stored for the bad text.
struct WrongVectors(Vec<f32>);

impl EmbeddingBackend for WrongVectors {
    fn dimension(&self) -> usize {
        HashBackend.dimension()
    }

    fn embed(&self, batch: &[Encoding]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut vectors = HashBackend.embed(batch)?;
        for (vector, text) in vectors.iter_mut().zip(batch) {
            if is_bad(text) {
                vector.clone_from(&self.0);
            }
        }
        Ok(vectors)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_that_mean_nothing_are_never_stored() {
    let dimension = HashBackend.dimension();
    let mut not_a_number =
        hash_model().backend.embed(&[Encoding { ids: ids_of("any"), truncated: false }]);
    not_a_number.as_mut().unwrap()[0][7] = f32::NAN;
    let wrong = [
        ("NaN", not_a_number.unwrap().remove(0)),
        ("zero", vec![0.0; dimension]),
        ("too long", vec![1.0; dimension]),
        ("infinite", vec![f32::INFINITY; dimension]),
        ("too few components", vec![1.0]),
    ];
    for (what, vector) in wrong {
        let dir = tempfile::tempdir().unwrap();
        let model = Model { backend: Arc::new(WrongVectors(vector)), ..hash_model() };
        let settings = [("EMBEDDING_MAX_ATTEMPTS", "2"), ("EMBEDDING_RETRY_BASE_SECONDS", "0.05")];
        let app = TestApp::start(Role::Serve, dir.path(), &settings, Some(model)).await;
        let (texts, at) = texts_with_a_bad_one(10);
        let ids = app.ingest("acme", &texts).await;
        let counts = app.settled(DEADLINE).await;
        assert_eq!(counts["ready"], 9, "{what}: {counts}");
        let bad = app.node(&ids[at]).await;
        assert_eq!(bad["embedding_status"], "failed", "{what}: {bad}");
        assert_eq!(bad["has_embedding"], false, "{what}: {bad}");
        assert!(bad["embedding_error"].as_str().unwrap().contains("vector"), "{what}: {bad}");
        app.stop().await;
    }
}

/// Refuses the bad text before any model sees it.
struct StrictEncoder;

impl TextEncoder for StrictEncoder {
    fn encode(&self, text: &str) -> Result<Encoding, EmbedError> {
        if text == BAD {
            return Err(EmbedError::Tokenizer("planned".to_owned()));
        }
        HashEncoder.encode(text)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_retry_can_mend_is_buried_at_once() {
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let url = redis.url();
    // A retry would come after an hour, long after the test.
    let settings = [("REDIS_URL", url.as_str()), ("EMBEDDING_RETRY_BASE_SECONDS", "3600")];
    let model = Model { encoder: Arc::new(StrictEncoder), ..hash_model() };
    let app = TestApp::start(Role::Serve, dir.path(), &settings, Some(model)).await;
    let (texts, at) = texts_with_a_bad_one(10);
    let ids = app.ingest("acme", &texts).await;
    let counts = app.settled(DEADLINE).await;
    assert_eq!((&counts["ready"], &counts["failed"]), (&json!(9), &json!(1)), "{counts}");
    let bad = app.node(&ids[at]).await;
    assert_eq!(bad["embedding_attempts"], 1, "{bad}");
    assert!(bad["embedding_error"].as_str().unwrap().contains("planned"), "{bad}");
    let letters = letters(&redis);
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0]["node_id"], ids[at].as_str());
    assert_eq!(redis.cli(&["KEYS", "embedding:*pending*"]), "", "nothing is live");
    app.stop().await;
}
