//! Whatever is killed, at whatever instant: no node is lost, none is embedded for ever, and
//! nobody has to help.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "recovery/damage.rs"]
mod damage;
#[path = "recovery/embedder.rs"]
mod embedder;
#[path = "recovery/machine.rs"]
mod machine;
#[path = "recovery/private_redis.rs"]
mod private_redis;
#[path = "recovery/stores.rs"]
mod stores;
#[path = "recovery/tls.rs"]
mod tls;
#[path = "recovery/workers.rs"]
mod workers;

use std::time::Duration;

use common::{TestApp, TestRedis};
use serde_json::Value;
use vecmill::inference::Model;

const DEADLINE: Duration = Duration::from_secs(60);

/// Texts of one to seven words, so that batches are not in the order of the queue.
fn texts(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("{i}{}", " word".repeat(i % 7))).collect()
}

/// Sends `n` nodes, as many in a request as is allowed; their ids.
async fn ingest(app: &TestApp, n: usize) -> Vec<String> {
    let mut ids = Vec::with_capacity(n);
    for part in texts(n).chunks(200) {
        ids.extend(app.ingest("acme", part).await);
    }
    ids
}

/// The `hash` model, but each batch takes this long.
fn slow_model(per_batch: Duration) -> Model {
    common::faulty_model(move |_| {
        std::thread::sleep(per_batch);
        Ok(())
    })
}

/// Waits for rest, and checks that all `n` nodes have a vector and that none used an attempt.
async fn all_ready(app: &TestApp, n: usize) {
    let counts = app.settled(DEADLINE).await;
    assert_eq!(counts["ready"], n, "{counts}");
    let nodes = app.nodes_in("ready").await;
    assert!(nodes.iter().all(|node| node["has_embedding"] == true));
    let tried: Vec<&Value> = nodes.iter().filter(|node| node["embedding_attempts"] != 1).collect();
    assert!(tried.is_empty(), "attempts were used: {tried:?}");
}

/// Checks that no job is counted as live and that no letter was written.
fn nothing_is_left_in(redis: &TestRedis) {
    assert_eq!(redis.cli(&["KEYS", "embedding:*pending*"]), "", "counters and keys are gone");
    assert_eq!(redis.cli(&["LLEN", "embedding:dlq"]), "0");
}

fn in_flight(redis: &TestRedis) -> u64 {
    redis.cli(&["HLEN", "embedding:queue:inflight"]).parse().unwrap()
}
