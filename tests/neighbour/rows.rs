//! What its table takes and refuses, and what it gets beside a vector.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::site::{DEADLINE, Site};

fn node(props: Value) -> Value {
    json!({"classes": ["a"], "props": props})
}

/// More lexemes than a tsvector takes.
fn many_lexemes() -> String {
    (0..300_000).map(|i| format!("{i:x}q{i} ")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_runs_on_its_table() {
    let site = Site::new().await;
    let app = site.serve().await;
    let (status, answer) = app.post("/nodes", &node(json!({"text": "x"}))).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    assert_eq!(app.settled(DEADLINE).await["ready"], 1);
    let node = app.node(answer["id"].as_str().unwrap()).await;
    assert_eq!(node["embedding"].as_array().unwrap().len(), 384);
    assert_eq!(node["embedding_attempts"], 1);
    for (field, empty) in
        [("metadata", json!({})), ("refresh_policy", json!({})), ("triggers", json!([]))]
    {
        assert_eq!(node[field], empty, "{field}");
    }
    let id = answer["id"].as_str().unwrap();
    let (status, _) = app.patch(&format!("/nodes/{id}"), &json!({"metadata": null})).await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) =
        app.patch(&format!("/nodes/{id}"), &json!({"metadata": {"a": {"b": 1}}})).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(app.node(id).await["metadata"], json!({"a": {"b": 1}}));
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_id_that_is_taken_is_a_conflict_of_its_node_alone() {
    let site = Site::new().await;
    let app = site.serve().await;
    let of = |id: &str| node(json!({"text": "x", "external_id": id}));
    assert_eq!(app.post("/nodes", &of("1")).await.0, StatusCode::ACCEPTED);
    let (status, answer) = app.post("/nodes", &of("1")).await;
    assert_eq!(status, StatusCode::CONFLICT, "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains("external_id"), "{answer}");

    let nodes = json!({"nodes": [of("2"), of("1"), of("3"), of("3")]});
    let (status, answer) = app.post("/nodes/batch", &nodes).await;
    assert_eq!(
        (status, &answer["created"], &answer["failed"]),
        (StatusCode::ACCEPTED, &json!(2), &json!(2))
    );
    let results = answer["results"].as_array().unwrap();
    let failed: Vec<bool> = results.iter().map(|result| result["error"].is_string()).collect();
    assert_eq!(failed, [false, true, false, true]);

    let all = json!({"nodes": [of("4"), of("1")], "continue_on_error": false});
    let (status, answer) = app.post("/nodes/batch", &all).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(answer["detail"].as_str().unwrap().starts_with("nodes[1]: "), "{answer}");
    // Another tenant may have the same.
    let theirs = json!({"classes": ["a"], "props": {"external_id": "1"}, "tenant_id": "other"});
    assert_eq!(app.post("/nodes", &theirs).await.0, StatusCode::ACCEPTED);

    assert_eq!(app.settled(DEADLINE).await["ready"], 3);
    assert_eq!(site.redis.cli(&["KEYS", "embedding:*pending*"]), "", "no refused node is counted");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_to_an_external_id_that_is_taken_changes_nothing() {
    let site = Site::new().await;
    let app = site.serve().await;
    let of = |id: &str| node(json!({"text": "x", "external_id": id}));
    app.post("/nodes", &of("1")).await;
    let (_, second) = app.post("/nodes", &of("2")).await;
    app.settled(DEADLINE).await;
    let path = format!("/nodes/{}", second["id"].as_str().unwrap());
    for props in [json!({"external_id": "1"}), json!({"external_id": "1", "text": "y"})] {
        let (status, answer) = app.patch(&path, &json!({"props": props})).await;
        assert_eq!(status, StatusCode::CONFLICT, "{answer}");
    }
    let (_, kept) = app.get(&path).await;
    assert_eq!(kept["props"], json!({"text": "x", "external_id": "2"}));
    assert_eq!(site.redis.cli(&["KEYS", "embedding:*pending*"]), "");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_with_too_many_lexemes_is_its_own_failure() {
    let site = Site::new().await;
    let app = site.serve().await;
    let long = many_lexemes();
    let (status, answer) = app.post("/nodes", &node(json!({"text": long}))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    let detail = answer["detail"].as_str().unwrap();
    assert!(detail.contains("54000") && detail.len() < 300, "{detail}");
    let nodes = json!({"nodes": [node(json!({"text": "a"})), node(json!({"text": long})),
        node(json!({"text": "b", "external_id": (0..400).map(|_| uuid::Uuid::new_v4().to_string()).collect::<String>()})), node(json!({"text": "c"}))]});
    let (_, answer) = app.post("/nodes/batch", &nodes).await;
    assert_eq!(answer["failed"], 2, "{answer}");
    assert_eq!(app.settled(DEADLINE).await["ready"], 2);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_takes_no_vector_fails_alone() {
    let site = Site::new().await;
    site.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           IF NEW.props->>'text' = 'bad' AND NEW.embedding IS NOT NULL THEN \
             RAISE EXCEPTION 'not this one: %', NEW.props; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER refuse BEFORE UPDATE ON nodes FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    let app = site
        .start(vecmill::app::Role::Serve, &site.dsn, &[("EMBEDDING_MAX_ATTEMPTS", "2")])
        .await
        .unwrap();
    let texts = ["good 1", "bad", "good 2"].map(str::to_owned);
    let ids = app.ingest("acme", &texts).await;
    let counts = app.settled(DEADLINE).await;
    assert_eq!((&counts["ready"], &counts["failed"]), (&json!(2), &json!(1)), "{counts}");
    let bad = app.node(&ids[1]).await;
    assert_eq!(
        (&bad["embedding_status"], &bad["embedding_attempts"]),
        (&json!("failed"), &json!(2))
    );
    assert_eq!(app.get("/readyz").await.0, StatusCode::OK, "it is no outage");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_and_events_are_written_with_the_vector() {
    let site = Site::new().await;
    let app = site.serve().await;
    let body = json!({"classes": ["a"], "props": {"text": "first"}, "payload_ref": "s3://b/k",
        "tenant_id": "acme"});
    // A text in props does not count beside a payload_ref everywhere; here the row keeps both.
    let (_, answer) = app.post("/nodes", &body).await;
    let id = answer["id"].as_str().unwrap().to_owned();
    app.settled(DEADLINE).await;
    let history = "SELECT drift_score, embedding_ref FROM embedding_history ORDER BY created_at";
    let events = "SELECT type, payload, tenant_id, actor_id, actor_type FROM events";
    assert_eq!(site.find(history).await, [json!({"drift_score": 0, "embedding_ref": "s3://b/k"})]);
    assert!(site.find(events).await.is_empty(), "a first vector has not moved");

    let path = format!("/nodes/{id}?tenant_id=acme");
    app.patch(&path, &json!({"props": {"text": "quite another"}})).await;
    app.settled(DEADLINE).await;
    assert_eq!(site.find(history).await.len(), 2);
    let found = site.find(events).await;
    assert_eq!(found.len(), 1, "{found:?}");
    let event = &found[0];
    assert_eq!(event["type"], "refreshed");
    assert_eq!(
        (&event["actor_id"], &event["actor_type"]),
        (&json!("embedding_worker"), &json!("system"))
    );
    assert_eq!(event["tenant_id"], "acme");
    assert!(event["payload"]["drift_score"].as_f64().unwrap() > 0.1, "{event}");
    assert!(
        event["payload"]["last_refreshed"].is_string() && event["payload"]["auto_embed"] == true
    );

    // A refresh makes the same vector: it is history, and no event.
    app.post(&format!("/nodes/{id}/refresh?tenant_id=acme"), &json!({})).await;
    app.settled(DEADLINE).await;
    assert_eq!(site.find(history).await.len(), 3);
    assert_eq!(site.find(events).await.len(), 1);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_beside_that_is_gone_is_no_fault_of_a_vector() {
    let site = Site::new().await;
    let app = site.serve().await;
    for statement in ["SELECT 1", "DROP TABLE events", "ALTER TABLE embedding_history RENAME TO h"]
    {
        site.sql(statement).await;
        app.ingest("acme", &[statement.to_owned()]).await;
        let counts = app.settled(DEADLINE).await;
        assert_eq!(counts["failed"], 0, "{statement}: {counts}");
    }
    assert_eq!(app.count("ready").await, 3);
    assert_eq!(site.find("SELECT 1 FROM h").await.len(), 2);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_queue_a_row_that_takes_no_vector_fails_alone() {
    let site = Site::new().await;
    let settings = [("EMBEDDING_ASYNC", "false")];
    let app = site.start(vecmill::app::Role::Serve, &site.dsn, &settings).await.unwrap();
    let nodes: Vec<Value> =
        ["a", "bad", "b", "c"].iter().map(|t| node(json!({"text": t}))).collect();
    let (_, answer) = app.post("/nodes/batch", &json!({"nodes": nodes})).await;
    assert_eq!(answer["created"], 4, "{answer}");
    site.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           IF NEW.props->>'text' = 'bad' THEN RAISE EXCEPTION 'not this one'; END IF; \
           RETURN NEW; END $$; \
         CREATE TRIGGER refuse BEFORE UPDATE ON nodes FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    let order = json!({"status": "all", "backfill_ready": false});
    let (status, answer) = app.post("/admin/embedding/requeue", &order).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!((&answer["ended"]["ready"], &answer["ended"]["failed"]), (&json!(3), &json!(1)));
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_takes_the_database_too_long_is_done_in_parts() {
    let site = Site::new().await;
    let api = site.start(vecmill::app::Role::Api, &site.dsn, &[]).await.unwrap();
    let texts: Vec<String> = (0..64).map(|i| format!("text {i}")).collect();
    api.ingest("acme", &texts).await;
    // All rows of a claim together take more than a statement is given.
    site.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           PERFORM pg_sleep(0.2); RETURN NEW; END $$; \
         CREATE TRIGGER slow BEFORE UPDATE ON nodes FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    .await;
    let worker = site.start(vecmill::app::Role::Worker, &site.dsn, &[]).await.unwrap();
    assert_eq!(api.settled(DEADLINE * 6).await["ready"], 64);
    worker.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_says_how_far_a_vector_may_move() {
    let site = Site::new().await;
    let app = site.serve().await;
    for (threshold, moved) in [(json!(1.9), 0), (json!("far"), 1), (json!(0.01), 2)] {
        let body = json!({"classes": ["a"], "props": {"text": "first"},
            "refresh_policy": {"drift_threshold": threshold}});
        let (_, answer) = app.post("/nodes", &body).await;
        app.settled(DEADLINE).await;
        let path = format!("/nodes/{}", answer["id"].as_str().unwrap());
        app.patch(&path, &json!({"props": {"text": "something else"}})).await;
        app.settled(DEADLINE).await;
        assert_eq!(site.find("SELECT 1 FROM events").await.len(), moved);
    }
    app.stop().await;
}
