//! Models that panic or hang: the thread is replaced or given up, the process lives.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use vecmill::{
    app::Role,
    inference::{EmbedError, Encoding},
    runtime::RestartIntensity,
};

use super::{DEADLINE, all_ready, ingest, nothing_is_left_in, texts};
use crate::common::{TestApp, TestRedis, faulty_model, hash_model, ids_of, wait_until};

/// Checks that the program goes on and embeds.
async fn is_alive(app: &mut TestApp) {
    tokio::select! {
        biased;
        reason = app.failed() => panic!("it gave up: {reason}"),
        () = std::future::ready(()) => {}
    }
    // The last restart may still have to wait for its turn.
    wait_until(DEADLINE, async || app.get("/readyz").await.0.as_u16() == 200).await;
    let id = app.ingest("acme", &["one more".to_owned()]).await.remove(0);
    app.settled(DEADLINE).await;
    assert_eq!(app.node(&id).await["embedding_status"], "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_embedder_panics_is_done_by_the_next() {
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let batches = Arc::new(AtomicUsize::new(0));
    let model = faulty_model({
        let batches = Arc::clone(&batches);
        move |_| {
            assert_ne!(batches.fetch_add(1, Ordering::SeqCst), 2, "planned panic");
            Ok(())
        }
    });
    let url = redis.url();
    let settings = [
        ("REDIS_URL", url.as_str()),
        ("EMBEDDING_BATCH_TEXTS", "8"),
        // It must not be a lease that brings the batch back.
        ("EMBEDDING_LEASE_SECONDS", "3600"),
        ("EMBEDDING_SWEEP_INTERVAL_SECONDS", "3600"),
    ];
    let mut app = TestApp::start(Role::Serve, dir.path(), &settings, Some(model)).await;
    ingest(&app, 100).await;
    all_ready(&app, 100).await;
    assert!(batches.load(Ordering::SeqCst) > 3, "the panic was planned for the third batch");
    nothing_is_left_in(&redis);
    is_alive(&mut app).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_always_panics_is_buried_alone() {
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let panics = Arc::new(AtomicUsize::new(0));
    let model = faulty_model({
        let panics = Arc::clone(&panics);
        move |batch| {
            if batch.iter().any(|text| text.ids == ids_of("poison")) {
                panics.fetch_add(1, Ordering::SeqCst);
                panic!("planned");
            }
            Ok(())
        }
    });
    let url = redis.url();
    let settings = [("REDIS_URL", url.as_str())];
    let mut app = TestApp::start(Role::Serve, dir.path(), &settings, Some(model)).await;
    let mut texts = texts(40);
    texts[17] = "poison".to_owned();
    let ids = app.ingest("acme", &texts).await;

    let counts = app.settled(DEADLINE).await;
    assert_eq!((&counts["ready"], &counts["failed"]), (&json!(39), &json!(1)), "{counts}");
    let poison = app.node(&ids[17]).await;
    assert_eq!(poison["embedding_status"], "failed");
    assert!(poison["embedding_error"].as_str().unwrap().contains("panicked"), "{poison}");
    let mates = app.nodes_in("ready").await;
    assert!(mates.iter().all(|node| node["embedding_attempts"] == 1), "no mate is blamed");
    let letter: Value = serde_json::from_str(&redis.cli(&["LPOP", "embedding:dlq"])).unwrap();
    assert_eq!(letter["node_id"], ids[17].as_str());
    nothing_is_left_in(&redis);
    assert!(panics.load(Ordering::SeqCst) <= 6, "each panic costs everybody a restart");
    is_alive(&mut app).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedder_that_only_panics_ends_the_process_and_loses_nothing() {
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let model = faulty_model(|_: &[Encoding]| -> Result<(), EmbedError> { panic!("planned") });
    let url = redis.url();
    let settings = [("REDIS_URL", url.as_str())];
    let intensity = RestartIntensity {
        max_restarts: 2,
        base_delay: Duration::from_millis(10),
        ..RestartIntensity::default()
    };
    let mut broken =
        TestApp::start_with(Role::Serve, dir.path(), &settings, Some(model), intensity).await;
    ingest(&broken, 50).await;
    let reason = tokio::time::timeout(DEADLINE, broken.failed()).await.expect("it gives up");
    assert!(reason.contains("embedder fails too often"), "{reason}");
    broken.stop().await;

    let app = TestApp::start(Role::Serve, dir.path(), &settings, Some(hash_model())).await;
    let counts = app.settled(DEADLINE).await;
    let (ready, failed) = (counts["ready"].as_u64().unwrap(), counts["failed"].as_u64().unwrap());
    assert_eq!(ready + failed, 50, "{counts}");
    assert!(failed <= 2, "one restart can condemn one text, no more: {counts}");
    app.post("/admin/embedding/requeue", &json!({"status": "failed"})).await;
    assert_eq!(app.settled(DEADLINE).await["ready"], 50);
    redis.cli(&["DEL", "embedding:dlq"]);
    nothing_is_left_in(&redis);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_hangs_while_the_client_waits_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let model = faulty_model(|batch| {
        if batch.iter().any(|text| text.ids == ids_of("hangs")) {
            loop {
                std::thread::park();
            }
        }
        Ok(())
    });
    let settings = [("EMBEDDING_ASYNC", "false"), ("EMBEDDING_BATCH_TIMEOUT_SECONDS", "0.3")];
    let app = TestApp::start(Role::Serve, dir.path(), &settings, Some(model)).await;
    let node = |text: &str| json!({"classes": ["Test"], "props": {"text": text}});
    let (status, answer) = app.post("/nodes", &node("hangs")).await;
    assert_eq!(status.as_u16(), 503, "{answer}");
    let (status, answer) = app.post("/nodes", &node("does not")).await;
    assert_eq!((status.as_u16(), &answer["embedding_status"]), (200, &json!("ready")));
    assert_eq!(app.get("/nodes").await.1["total"], 1, "a 503 leaves nothing behind");
    app.stop().await;
}
