//! `POST /admin/embedding/requeue`, with the bodies of the runbook.

use serde_json::{Value, json};

use super::{DEADLINE, Deployment, texts};

/// The call of the contract, word for word.
const QUEUED: &str = r#"{"tenant_id":"default","status":"queued","only_missing_embedding":true,"backfill_ready":true,"limit":2000}"#;

fn answer(backfilled: u64, requested: u64, enqueued: u64) -> Value {
    json!({
        "backfilled": backfilled,
        "requested": requested,
        "enqueued": enqueued,
        "next_cursor": null
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn queued_nodes_without_a_job_are_enqueued_once() {
    let deployment = Deployment::start(&[]).await;
    // Redis forgot these at ingest; those were written before there was a queue.
    deployment.api.ingest("default", &texts(20)).await;
    deployment.redis.flush();
    let by_another_program = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
         WHERE i < 10) INSERT INTO nodes (id, tenant_id, classes, props) \
         SELECT randomblob(16), NULL, '[\"Old\"]', '{\"text\": \"old ' || i || '\"}' FROM n";
    assert_eq!(deployment.sql(by_another_program).await, 10);
    assert_eq!(deployment.api.count("queued").await, 30);
    assert_eq!(deployment.redis_number(&["LLEN", "embedding:queue"]), 0);

    assert_eq!(deployment.requeue(QUEUED).await, answer(0, 30, 30));
    assert_eq!(deployment.redis_number(&["LLEN", "embedding:queue"]), 30);
    assert_eq!(deployment.redis.cli(&["GET", "embedding:tenant:pending:default"]), "30");
    assert_eq!(deployment.requeue(QUEUED).await, answer(0, 30, 0), "they have live jobs now");
    let all = deployment.requeue(r#"{"status":"all"}"#).await;
    assert_eq!(all, answer(0, 30, 0));
    assert_eq!(deployment.redis_number(&["LLEN", "embedding:queue"]), 30);

    let worker = deployment.start_worker().await;
    assert_eq!(deployment.api.settled(DEADLINE).await["ready"], 30);
    assert_eq!(deployment.texts_seen(), 30, "each was embedded once");
    assert_eq!(deployment.redis.cli(&["KEYS", "embedding:*pending*"]), "");
    assert_eq!(deployment.requeue(QUEUED).await, answer(0, 0, 0), "nothing is left to mend");
    worker.stop().await;
    deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_who_call_at_once_enqueue_each_node_once() {
    let deployment = Deployment::start(&[]).await;
    deployment.api.ingest("default", &texts(100)).await;
    deployment.redis.flush();
    let calls = (0..10).map(|_| deployment.requeue(QUEUED));
    let answers = futures::future::join_all(calls).await;
    let enqueued: u64 = answers.iter().map(|answer| answer["enqueued"].as_u64().unwrap()).sum();
    assert_eq!(enqueued, 100, "{answers:?}");
    assert_eq!(deployment.redis_number(&["LLEN", "embedding:queue"]), 100);
    assert_eq!(deployment.redis.cli(&["GET", "embedding:tenant:pending:default"]), "100");
    deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_nodes_without_a_vector_are_found_and_mended() {
    let deployment = Deployment::start(&[]).await;
    let ids = deployment.ready_nodes("default", 30).await;
    let lost = "UPDATE nodes SET embedding = NULL WHERE rowid % 3 = 0";
    assert_eq!(deployment.sql(lost).await, 10);

    let found = "/nodes?has_embedding=false&status=ready";
    let (_, page) = deployment.api.get(found).await;
    assert_eq!(page["total"], 10, "{page}");
    for node in page["nodes"].as_array().unwrap() {
        assert_eq!(
            (&node["has_embedding"], &node["embedding_status"]),
            (&json!(false), &json!("ready"))
        );
        assert!(ids.iter().any(|id| node["id"] == id.as_str()));
    }
    let body = r#"{"tenant_id":"default","status":"ready","only_missing_embedding":true}"#;
    assert_eq!(deployment.requeue(body).await, answer(0, 10, 10));
    assert_eq!(deployment.api.count("queued").await, 10);
    let worker = deployment.start_worker().await;
    assert_eq!(deployment.api.settled(DEADLINE).await["ready"], 30);
    assert_eq!(deployment.api.get(found).await.1["total"], 0);
    assert_eq!(deployment.texts_seen(), 40, "those that had a vector were left alone");
    worker.stop().await;
    deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_ready_alone_mends_nodes_without_a_vector() {
    let deployment = Deployment::start(&[]).await;
    let ids = deployment.ready_nodes("default", 2).await;
    deployment.sql("UPDATE nodes SET embedding = NULL").await;
    assert_eq!(deployment.requeue(r#"{"status":"ready"}"#).await, answer(0, 2, 2));
    let worker = deployment.start_worker().await;
    assert_eq!(deployment.api.settled(DEADLINE).await["ready"], 2);
    assert_eq!(deployment.api.node(&ids[0]).await["has_embedding"], true);
    worker.stop().await;
    deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_nodes_start_again_from_attempt_0() {
    let settings = [("EMBEDDING_MAX_ATTEMPTS", "2"), ("EMBEDDING_RETRY_BASE_SECONDS", "0.05")];
    let deployment = Deployment::start(&settings).await;
    deployment.break_model(true);
    let ids = deployment.api.ingest("default", &texts(50)).await;
    let others = deployment.api.ingest("other", &texts(3)).await;
    let worker = deployment.start_worker().await;
    let counts = deployment.api.settled(DEADLINE).await;
    assert_eq!(counts["failed"], 53, "{counts}");
    assert_eq!(deployment.redis_number(&["LLEN", "embedding:dlq"]), 53);
    let failed = deployment.api.node(&ids[0]).await;
    assert_eq!(failed["embedding_attempts"], 2);
    worker.stop().await;

    let body = r#"{"tenant_id":"default","status":"failed"}"#;
    assert_eq!(deployment.requeue(body).await, answer(0, 50, 50));
    let queued = deployment.api.node(&ids[0]).await;
    assert_eq!(queued["embedding_status"], "queued");
    assert_eq!(
        (&queued["embedding_attempts"], &queued["embedding_error"]),
        (&json!(0), &Value::Null)
    );
    assert_eq!(deployment.api.node(&others[0]).await["embedding_status"], "failed");

    // All attempts count again: the first failure is not the last.
    let worker = deployment.start_worker().await;
    assert_eq!(deployment.api.settled(DEADLINE).await["failed"], 53);
    assert_eq!(deployment.api.node(&ids[0]).await["embedding_attempts"], 2);
    deployment.break_model(false);
    assert_eq!(deployment.requeue("{}").await, answer(0, 53, 53), "failed is the default");
    assert_eq!(deployment.api.settled(DEADLINE).await["ready"], 53);
    let ready = deployment.api.node(&ids[0]).await;
    assert_eq!(
        (&ready["embedding_attempts"], &ready["embedding_error"]),
        (&json!(1), &Value::Null)
    );
    worker.stop().await;
    deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_have_a_vector_are_marked_and_not_embedded_for_nothing() {
    let deployment = Deployment::start(&[]).await;
    deployment.ready_nodes("default", 30).await;
    let ours = deployment.ready_nodes("other", 4).await;
    let seen = deployment.texts_seen();
    let lost_status = "UPDATE nodes SET embedding_status = \
         CASE WHEN rowid % 2 = 0 THEN 'queued' ELSE 'failed' END, embedding_error = 'old'";
    assert_eq!(deployment.sql(lost_status).await, 34);

    assert_eq!(deployment.requeue(QUEUED).await, answer(30, 0, 0));
    assert_eq!(deployment.api.count("ready").await, 30);
    assert_ne!(deployment.api.node(&ours[0]).await["embedding_status"], "ready", "not asked for");
    assert_eq!(deployment.requeue(r#"{"status":"failed"}"#).await, answer(4, 0, 0));
    assert_eq!(deployment.redis_number(&["LLEN", "embedding:queue"]), 0);
    let worker = deployment.start_worker().await;
    assert_eq!(deployment.api.settled(DEADLINE).await["ready"], 34);
    assert_eq!(deployment.texts_seen(), seen, "no text went to the model");
    assert!(
        deployment.api.nodes_in("ready").await.iter().all(|node| node["embedding_error"].is_null())
    );
    worker.stop().await;
    deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vector_of_an_older_text_is_none_that_a_node_may_be_marked_ready_for() {
    let deployment = Deployment::start(&[]).await;
    let ids = deployment.ready_nodes("default", 3).await;
    let body = json!({"props": {"text": "the new text"}});
    let (status, said) = deployment.api.patch(&format!("/nodes/{}", ids[1]), &body).await;
    assert_eq!(status.as_u16(), 202, "{said}");
    deployment.redis.flush();
    deployment.sql("UPDATE nodes SET embedding_status = 'queued'").await;

    assert_eq!(deployment.requeue(QUEUED).await, answer(2, 1, 1));
    assert_eq!(deployment.api.count("ready").await, 2);
    let changed = deployment.api.node(&ids[1]).await;
    assert_eq!(changed["embedding_status"], "queued");
    assert_eq!(changed["has_embedding"], true, "the old one is stored all the same");
    let worker = deployment.start_worker().await;
    assert_eq!(deployment.api.settled(DEADLINE).await["ready"], 3);
    assert_eq!(deployment.texts_seen(), 4, "the others were not embedded again");
    let drift = deployment.api.node(&ids[1]).await["drift_score"].as_f64();
    assert!(drift.unwrap() > 0.1, "{drift:?}");
    worker.stop().await;
    deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_limits_forbid_is_requested_less_enqueued() {
    for (limit, value) in
        [("EMBEDDING_TENANT_MAX_PENDING", "12"), ("EMBEDDING_QUEUE_MAX_DEPTH", "12")]
    {
        let settings = [(limit, value), ("EMBEDDING_MAX_ATTEMPTS", "1")];
        let deployment = Deployment::start(&settings).await;
        deployment.break_model(true);
        for _ in 0..3 {
            deployment.ready_nodes("default", 10).await;
        }
        deployment.break_model(false);
        assert_eq!(deployment.api.count("failed").await, 30);

        let body = r#"{"tenant_id":"default","status":"failed"}"#;
        assert_eq!(deployment.requeue(body).await, answer(0, 30, 12), "{limit}");
        assert_eq!(deployment.redis_number(&["LLEN", "embedding:queue"]), 12);
        assert_eq!(deployment.api.count("queued").await, 12, "{limit}");
        assert_eq!(deployment.api.count("failed").await, 18, "the others wait for another call");
        let worker = deployment.start_worker().await;
        assert_eq!(deployment.api.settled(DEADLINE).await["ready"], 12);
        worker.stop().await;
        let body = r#"{"tenant_id":"default","status":"failed","limit":5}"#;
        let mut some = deployment.requeue(body).await;
        assert!(some["next_cursor"].take().is_string(), "there are more");
        assert_eq!(some, answer(0, 5, 5), "no more than asked for");
        deployment.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_nodes_named_are_enqueued() {
    let deployment = Deployment::start(&[]).await;
    let ids = deployment.api.ingest("default", &texts(10)).await;
    deployment.redis.flush();
    let named = json!({"status": "queued", "node_ids": &ids[..3]}).to_string();
    assert_eq!(deployment.requeue(&named).await, answer(0, 3, 3));
    let entries = deployment.redis.cli(&["LRANGE", "embedding:queue", "0", "-1"]);
    assert!(ids[..3].iter().all(|id| entries.contains(id)), "{entries}");
    let of_another = json!({"status": "queued", "tenant_id": "other", "node_ids": ids}).to_string();
    assert_eq!(deployment.requeue(&of_another).await, answer(0, 0, 0));
    deployment.stop().await;
}

/// 6,000 nodes `queued` that no job is there for, as a Redis that lost its memory leaves them.
async fn six_thousand(deployment: &Deployment) {
    let lost = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000) \
         INSERT INTO nodes (id, tenant_id, classes, props, created_at) \
         SELECT randomblob(16), 'tenant ' || (i % 4), '[\"Old\"]', '{\"text\": \"t\"}', \
           strftime('%Y-%m-%dT%H:%M:%f+00:00', '2026-01-01', i || ' seconds') FROM n";
    assert_eq!(deployment.sql(lost).await, 6000);
}

const NO_LIMITS: [(&str, &str); 2] =
    [("EMBEDDING_QUEUE_MAX_DEPTH", "1000000"), ("EMBEDDING_TENANT_MAX_PENDING", "0")];

#[tokio::test(flavor = "multi_thread")]
async fn the_same_call_again_comes_to_nodes_that_have_no_job_yet() {
    let deployment = Deployment::start(&NO_LIMITS).await;
    six_thousand(&deployment).await;
    let body = r#"{"status":"queued","only_missing_embedding":true}"#;
    for (requested, enqueued) in [(2000, 2000), (4000, 2000), (6000, 2000), (6000, 0)] {
        let mut answer = deployment.requeue(body).await;
        answer["next_cursor"].take();
        assert_eq!(answer, self::answer(0, requested, enqueued));
    }
    assert_eq!(deployment.redis_number(&["LLEN", "embedding:queue"]), 6000);
    // Few at once do not keep it from those behind many.
    deployment.sql("DELETE FROM nodes WHERE rowid = 5900").await;
    let one = "INSERT INTO nodes (id, tenant_id, props, created_at) \
         VALUES (x'00000000000000000000000000000001', 'acme', '{\"text\": \"t\"}', '2027-01-01')";
    deployment.sql(one).await;
    let few = r#"{"status":"queued","limit":1}"#;
    assert_eq!(deployment.requeue(few).await, answer(0, 6000, 1));
    deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requeues_by_cursor_come_to_each_node_once() {
    let deployment = Deployment::start(&NO_LIMITS).await;
    six_thousand(&deployment).await;
    let (mut cursor, mut calls) = (Value::Null, Vec::new());
    loop {
        let body = json!({"status": "queued", "limit": 1500, "cursor": cursor}).to_string();
        let answer = deployment.requeue(&body).await;
        calls.push((answer["requested"].as_u64().unwrap(), answer["enqueued"].as_u64().unwrap()));
        cursor = answer["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(calls, [(1500, 1500); 4]);
    deployment.stop().await;
}
