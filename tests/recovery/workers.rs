//! Worker processes that are killed, stopped, or taken down by a text.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use vecmill::{app::Role, inference::Model};

use super::{DEADLINE, all_ready, in_flight, ingest, nothing_is_left_in, texts};
use crate::common::{Program, TestApp, TestRedis, faulty_model, hash_model, ids_of, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_of_a_killed_worker_are_done_by_another() {
    const NODES: usize = 400;
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let url = redis.url();
    let settings = [("REDIS_URL", url.as_str()), ("EMBEDDING_BATCH_TEXTS", "4")];
    let api = TestApp::start(Role::Api, dir.path(), &settings, None).await;
    ingest(&api, NODES).await;

    let mut first = Program::start("worker", dir.path(), &settings);
    wait_until(DEADLINE, async || {
        // A worker that stands still with jobs in hand surely has them when it is killed.
        first.signal("STOP");
        let holds_jobs = in_flight(&redis) > 0 && api.count("ready").await > 0;
        if !holds_jobs {
            first.signal("CONT");
        }
        holds_jobs
    })
    .await;
    first.kill();
    assert!(in_flight(&redis) > 0, "its jobs are still under its leases");
    assert!(api.count("ready").await < NODES as u64);

    let second = TestApp::start(Role::Worker, dir.path(), &settings, Some(hash_model())).await;
    all_ready(&api, NODES).await;
    nothing_is_left_in(&redis);
    second.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_hands_its_jobs_back_in_their_places() {
    const NODES: usize = 600;
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let url = redis.url();
    let settings = [
        ("REDIS_URL", url.as_str()),
        ("EMBEDDING_BATCH_TEXTS", "4"),
        // A lease that runs out could otherwise bring back what was not handed back.
        ("EMBEDDING_LEASE_SECONDS", "3600"),
        ("EMBEDDING_SWEEP_INTERVAL_SECONDS", "3600"),
    ];
    let api = TestApp::start(Role::Api, dir.path(), &settings, None).await;
    ingest(&api, NODES).await;
    let waiting = || redis.cli(&["LRANGE", "embedding:queue", "0", "-1"]);
    let before = waiting();

    let mut worker = Program::start("worker", dir.path(), &settings);
    wait_until(DEADLINE, async || api.count("ready").await > 20).await;
    worker.signal("TERM");
    assert_eq!(worker.exit_code(DEADLINE).await, Some(0), "{}", worker.stderr());

    assert_eq!(in_flight(&redis), 0);
    let counts = api.status().await["status_counts"].clone();
    let ready = counts["ready"].as_u64().unwrap() as usize;
    assert!(ready < NODES, "it was stopped under load");
    assert_eq!(counts["queued"], NODES - ready, "{counts}");
    let mut done: Vec<String> = Vec::new();
    for offset in (0..ready).step_by(500) {
        let (_, page) = api.get(&format!("/nodes?status=ready&limit=500&offset={offset}")).await;
        let ids = page["nodes"].as_array().unwrap().iter();
        done.extend(ids.map(|node| node["id"].as_str().unwrap().to_owned()));
    }
    let expected: Vec<&str> =
        before.lines().filter(|entry| !done.iter().any(|id| entry.contains(id))).collect();
    assert_eq!(expected.len(), NODES - ready);
    assert!(waiting().lines().eq(expected), "the order of the queue changed");
    api.stop().await;
}

/// A worker on a runtime of its own, which is dropped as if the process had ended; a model waits
/// for ever when it sees `poison`, and counts how often that happened.
struct DoomedWorker(tokio::runtime::Runtime);

impl DoomedWorker {
    fn start(dir: &std::path::Path, settings: &[(&str, &str)], model: Model) -> Self {
        let own = |text: &str| text.to_owned();
        let settings: Vec<(String, String)> =
            settings.iter().map(|(name, value)| (own(name), own(value))).collect();
        let dir = dir.to_owned();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.spawn(async move {
            let settings: Vec<(&str, &str)> =
                settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let _app = TestApp::start(Role::Worker, &dir, &settings, Some(model)).await;
            std::future::pending::<()>().await;
        });
        Self(runtime)
    }

    /// Everything stops in the middle of what it does; nothing is handed back.
    fn end(self) {
        self.0.shutdown_background();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_takes_its_workers_down_is_buried() {
    const NODES: usize = 40;
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let url = redis.url();
    let settings = [("REDIS_URL", url.as_str()), ("EMBEDDING_LEASE_SECONDS", "1")];
    let api = TestApp::start(Role::Api, dir.path(), &settings, None).await;
    let mut texts = texts(NODES);
    texts[17] = "poison".to_owned();
    let ids = api.ingest("acme", &texts).await;

    let begun = Arc::new(AtomicUsize::new(0));
    let model = || {
        let begun = Arc::clone(&begun);
        faulty_model(move |batch| {
            if batch.iter().any(|text| text.ids == ids_of("poison")) {
                begun.fetch_add(1, Ordering::SeqCst);
                loop {
                    std::thread::park();
                }
            }
            Ok(())
        })
    };
    for lost in 1..=4 {
        let worker = DoomedWorker::start(dir.path(), &settings, model());
        wait_until(DEADLINE, async || begun.load(Ordering::SeqCst) == lost).await;
        worker.end();
    }
    let survivor = TestApp::start(Role::Worker, dir.path(), &settings, Some(model())).await;
    let counts = api.settled(DEADLINE).await;
    assert_eq!((&counts["ready"], &counts["failed"]), (&json!(NODES - 1), &json!(1)), "{counts}");
    assert_eq!(begun.load(Ordering::SeqCst), 4, "no fifth worker had to try it");
    let poison = api.node(&ids[17]).await;
    assert_eq!(poison["embedding_error"], "worker lost 3 times", "{poison}");
    let letter: Value = serde_json::from_str(&redis.cli(&["LPOP", "embedding:dlq"])).unwrap();
    assert_eq!(letter["node_id"], ids[17].as_str());
    assert_eq!(letter["error"], "worker lost 3 times");
    nothing_is_left_in(&redis);
    survivor.stop().await;
    api.stop().await;
}
