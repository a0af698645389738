//! `LLEN`, `ZCARD` and `DEL` on the keys of the contract.

use super::{DEADLINE, Deployment, texts};
use crate::common::wait_until;

#[tokio::test(flavor = "multi_thread")]
async fn the_depths_are_what_redis_says() {
    let settings = [("EMBEDDING_MAX_ATTEMPTS", "2"), ("EMBEDDING_RETRY_BASE_SECONDS", "3600")];
    let deployment = Deployment::start(&settings).await;
    let redis_says = || {
        [["LLEN", "embedding:queue"], ["ZCARD", "embedding:retry"], ["LLEN", "embedding:dlq"]]
            .map(|command| deployment.redis_number(&command))
    };
    let status_says = async || {
        let status = deployment.api.status().await["queue"].clone();
        ["queue", "retry", "dlq"].map(|structure| status[structure].as_u64().unwrap())
    };
    // No entry of the queue is hidden elsewhere, whatever tenant it belongs to.
    deployment.api.ingest("default", &texts(7)).await;
    deployment.api.ingest("other", &texts(5)).await;
    assert_eq!((redis_says(), status_says().await), ([12, 0, 0], [12, 0, 0]));

    deployment.break_model(true);
    let worker = deployment.start_worker().await;
    wait_until(DEADLINE, async || redis_says() == [0, 12, 0]).await;
    worker.stop().await;
    deployment.api.ingest("default", &texts(2)).await;
    assert_eq!((redis_says(), status_says().await), ([2, 12, 0], [2, 12, 0]));
    assert_eq!(deployment.api.count("queued").await, 14, "a node that waits is queued");

    // The operator need not wait for the hour: what is due is what the score says.
    for entry in deployment.redis.cli(&["ZRANGE", "embedding:retry", "0", "-1"]).lines() {
        deployment.redis.cli(&["ZADD", "embedding:retry", "0", entry]);
    }
    let worker = deployment.start_worker().await;
    wait_until(DEADLINE, async || redis_says() == [0, 2, 12]).await;
    assert_eq!(status_says().await, [0, 2, 12]);
    worker.stop().await;
    deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_letters_may_be_deleted_at_any_time() {
    let settings = [("EMBEDDING_MAX_ATTEMPTS", "2"), ("EMBEDDING_RETRY_BASE_SECONDS", "0.05")];
    let deployment = Deployment::start(&settings).await;
    deployment.break_model(true);
    let worker = deployment.start_worker().await;
    deployment.api.ingest("default", &texts(200)).await;
    let mut deleted = 0;
    wait_until(DEADLINE, async || {
        deleted += deployment.redis_number(&["DEL", "embedding:dlq"]);
        deployment.api.count("failed").await == 200
    })
    .await;
    assert!(deleted > 0, "there were letters to delete");
    deployment.api.settled(DEADLINE).await;
    deployment.redis_number(&["DEL", "embedding:dlq"]);
    assert_eq!(deployment.api.count("failed").await, 200, "the rows stay failed");
    assert_eq!(deployment.redis.cli(&["KEYS", "embedding:*pending*"]), "");

    deployment.break_model(false);
    let body = r#"{"tenant_id":"default","status":"failed"}"#;
    assert_eq!(deployment.requeue(body).await["enqueued"], 200);
    assert_eq!(deployment.api.settled(DEADLINE).await["ready"], 200);
    worker.stop().await;
    deployment.stop().await;
}
