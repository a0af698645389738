//! Calls as clients of ActiveKG send them mean here what they mean there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod tiny_bert;

use std::{path::Path, time::Duration};

use common::{
    Program, TestApp, TestPostgres, TestRedis, connect, hash_model, wait_until,
    with_short_intervals,
};
use sea_orm::ConnectionTrait;
use serde_json::{Value, json};
use tempfile::TempDir;
use vecmill::{
    app::{Role, model_config},
    config::Settings,
    inference::load,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// A database and a Redis of a test's own.
struct Site {
    redis: TestRedis,
    dir: TempDir,
    dsn: String,
}

impl Site {
    async fn of_both_kinds() -> [Self; 2] {
        let postgres = TestPostgres::shared().database().await;
        let dir = tempfile::tempdir().unwrap();
        let sqlite = format!("sqlite://{}", dir.path().join("nodes.db").display());
        let of = |dir, dsn| Self { redis: TestRedis::start(), dir, dsn };
        [of(dir, sqlite), of(tempfile::tempdir().unwrap(), postgres)]
    }

    async fn start(&self, role: Role, settings: &[(&str, &str)]) -> TestApp {
        let url = self.redis.url();
        let own = [("REDIS_URL", url.as_str()), ("ACTIVEKG_DSN", self.dsn.as_str())];
        let all = [&own[..], settings].concat();
        let model = (role != Role::Api).then(hash_model);
        TestApp::start(role, self.dir.path(), &all, model).await
    }

    async fn sql(&self, statement: &str) {
        let db = connect(&self.dsn, 1).await.unwrap();
        db.execute_unprepared(statement).await.unwrap();
        db.close().await.unwrap();
    }
}

fn node(text: &str, tenant: Option<&str>) -> Value {
    json!({"classes": ["Doc"], "props": {"text": text}, "tenant_id": tenant,
           "extract": false, "extract_before_embed": true})
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tenant_of_a_batch_comes_before_those_of_its_nodes() {
    for site in Site::of_both_kinds().await {
        let app = site.start(Role::Api, &[]).await;
        let nodes = json!([node("a", Some("own")), node("b", None), {"classes": []}]);
        for (tenant, expected) in [
            (json!("acme"), ["acme", "acme", "acme"]),
            (json!(""), ["own", "default", "default"]),
            (json!(null), ["own", "default", "default"]),
        ] {
            let body = json!({"nodes": nodes, "tenant_id": tenant, "extract": null});
            let (status, answer) = app.post("/nodes/batch", &body).await;
            assert_eq!((status.as_u16(), &answer["created"]), (202, &json!(2)), "{answer}");
            for (result, tenant) in answer["results"].as_array().unwrap().iter().zip(expected) {
                assert_eq!(result["tenant_id"], tenant, "{answer}");
            }
            let id = answer["results"][0]["id"].as_str().unwrap();
            assert_eq!(app.node(id).await["tenant_id"], expected[0]);
        }
        let (status, answer) = app.post("/nodes", &node("c", Some(""))).await;
        assert_eq!(status.as_u16(), 202, "{answer}");
        let stored = app.node(answer["id"].as_str().unwrap()).await;
        assert_eq!(stored["tenant_id"], "default");
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_is_bounded_and_knows_many_words_for_yes() {
    for site in Site::of_both_kinds().await {
        let app = site.start(Role::Serve, &[]).await;
        let texts: Vec<String> = (0..102).map(|i| format!("text {i}")).collect();
        let ids = app.ingest("acme", &texts).await;
        app.ingest("acme", &[String::new(), String::new()]).await;
        app.settled(DEADLINE).await;
        let listed = async |query: &str| {
            let (status, page) = app.get(&format!("/nodes?{query}")).await;
            assert_eq!(status.as_u16(), 200, "{query}: {page}");
            let rows = page["nodes"].as_array().unwrap().len();
            (rows, page["total"].as_u64().unwrap(), page["limit"].as_u64().unwrap())
        };
        for (query, expected) in [
            ("", (100, 104, 100)),
            ("limit=0", (1, 104, 1)),
            ("limit=-5", (1, 104, 1)),
            ("limit=5000", (104, 104, 1000)),
            ("tenant_id=", (100, 104, 100)),
            ("tenant_id=&has_embedding=0", (2, 2, 100)),
        ] {
            assert_eq!(listed(query).await, expected, "{query}");
        }
        for word in ["true", "True", "1", "yes", "YES", "on"] {
            assert_eq!(listed(&format!("has_embedding={word}")).await.1, 102, "{word}");
            let path = format!("/nodes/{}?include_embedding={word}", ids[0]);
            assert!(app.get(&path).await.1["embedding"].is_array(), "{word}");
        }
        for word in ["false", "FALSE", "0", "no", "Off"] {
            assert_eq!(listed(&format!("has_embedding={word}")).await.1, 2, "{word}");
            let path = format!("/nodes/{}?include_embedding={word}&tenant_id=", ids[0]);
            assert!(app.get(&path).await.1["embedding"].is_null(), "{word}");
        }
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_means_the_nodes_that_it_names() {
    for site in Site::of_both_kinds().await {
        let app = site.start(Role::Api, &[("EMBEDDING_SWEEP_INTERVAL_SECONDS", "3600")]).await;
        let texts: Vec<String> = (0..3).map(|i| format!("text {i}")).collect();
        let ids = app.ingest("acme", &texts).await;
        let others = app.ingest("other", &texts).await;
        site.sql("UPDATE nodes SET embedding_status = 'skipped' WHERE tenant_id = 'acme'").await;
        let requeued = async |body: Value| {
            site.redis.flush();
            let (status, answer) = app.post("/admin/embedding/requeue", &body).await;
            assert_eq!(status.as_u16(), 200, "{body}: {answer}");
            answer["requested"].as_u64().unwrap()
        };
        for (body, expected) in [
            // Whatever their status.
            (json!({"node_ids": [&ids[0], &others[0]]}), 2),
            (json!({"node_ids": [&ids[0], &others[0]], "tenant_id": ""}), 2),
            (json!({"node_ids": [&ids[1], &others[0]], "status": "skipped"}), 1),
            (json!({"status": null}), 6),
            (json!({"status": "ALL"}), 6),
            (json!({"status": "all", "node_ids": []}), 6),
            (json!({"status": "all", "limit": 0}), 1),
            (json!({"status": "all", "limit": -1}), 1),
            (json!({"status": "all", "limit": 100_000}), 6),
            (json!({"node_ids": []}), 0),
            (json!({}), 0),
        ] {
            assert_eq!(requeued(body.clone()).await, expected, "{body}");
        }
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_sent_is_answered_as_empty_and_never_as_null() {
    for site in Site::of_both_kinds().await {
        let app = site.start(Role::Api, &[]).await;
        let mut given = node("a", None);
        for field in ["metadata", "refresh_policy", "triggers"] {
            given[field] = json!(null);
        }
        let empty = [json!({}), json!({}), json!([])];
        let fields_of =
            |node: Value| ["metadata", "refresh_policy", "triggers"].map(|f| node[f].clone());
        for body in [node("a", None), given] {
            let id = app.post("/nodes", &body).await.1["id"].as_str().unwrap().to_owned();
            assert_eq!(fields_of(app.node(&id).await), empty);
        }
        // An older program left nulls there.
        let id = app.get("/nodes?limit=1").await.1["nodes"][0]["id"].as_str().unwrap().to_owned();
        site.sql("UPDATE nodes SET metadata = NULL, refresh_policy = NULL, triggers = NULL").await;
        assert_eq!(fields_of(app.node(&id).await), empty);

        let path = format!("/nodes/{id}");
        assert_eq!(app.patch(&path, &json!({"metadata": {"a": 1}})).await.0.as_u16(), 200);
        assert_eq!(app.node(&id).await["metadata"], json!({"a": 1}));
        assert_eq!(app.patch(&path, &json!({"metadata": null})).await.0.as_u16(), 200);
        assert_eq!(app.node(&id).await["metadata"], json!({}));
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_found_by_the_id_that_its_producer_has_for_it() {
    for site in Site::of_both_kinds().await {
        let app = site.start(Role::Api, &[]).await;
        let mut ids = Vec::new();
        for (tenant, external) in [
            ("acme", json!("e/1 ü")),
            ("other", json!("e/1 ü")),
            ("acme", json!(7)),
            ("acme", json!("8")),
        ] {
            let mut body = node("a", Some(tenant));
            body["props"]["external_id"] = external;
            ids.push(app.post("/nodes", &body).await.1["id"].clone());
        }
        let found = async |query: &str| {
            let (status, node) =
                app.get(&format!("/nodes/by-external-id?external_id={query}")).await;
            (status.as_u16(), node)
        };
        let (status, node) = found("e%2F1+%C3%BC&tenant_id=acme").await;
        assert_eq!((status, &node["id"]), (200, &ids[0]), "{node}");
        assert_eq!((&node["tenant_id"], &node["props"]["text"]), (&json!("acme"), &json!("a")));
        assert_eq!(found("e%2F1+%C3%BC&tenant_id=other").await.1["id"], ids[1]);
        assert_eq!(found("7").await.1["id"], ids[2]);
        assert_eq!(found("8&tenant_id=").await.1["id"], ids[3]);
        assert_eq!(found("8&tenant_id=other").await.0, 404);
        assert_eq!(found("9").await.0, 404);
        let (status, answer) = found("e%2F1+%C3%BC").await;
        assert_eq!(status, 422, "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains("name its tenant"), "{answer}");
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_former_vectors_of_a_node_are_those_that_its_database_keeps() {
    let types = [("BLOB", "TEXT"), ("UUID", "TIMESTAMPTZ")];
    for (site, (id_type, timestamp)) in Site::of_both_kinds().await.into_iter().zip(types) {
        let app = site.start(Role::Api, &[]).await;
        let id = app.ingest("acme", &["a".to_owned()]).await.remove(0);
        let path = format!("/nodes/{id}/versions");
        let none = json!({"node_id": id, "versions": [], "count": 0});
        assert_eq!(app.get(&path).await.1, none, "there is no such table");

        let literal = match id_type {
            "BLOB" => format!("X'{}'", id.replace('-', "")),
            _ => format!("'{id}'"),
        };
        site.sql(&format!(
            "CREATE TABLE embedding_history (node_id {id_type} NOT NULL, created_at {timestamp} \
             NOT NULL, drift_score DOUBLE PRECISION, embedding_ref TEXT)"
        ))
        .await;
        assert_eq!(app.get(&path).await.1, none, "the table is empty");
        for day in 1..=12 {
            let drift = if day == 1 { "NULL".to_owned() } else { format!("0.{day:02}") };
            site.sql(&format!(
                "INSERT INTO embedding_history VALUES ({literal}, \
                 '2026-01-{day:02}T00:00:00+00:00', {drift}, 'file:///{day}')"
            ))
            .await;
        }
        let answer = app.get(&path).await.1;
        assert_eq!((&answer["count"], &answer["node_id"]), (&json!(10), &json!(id)), "{answer}");
        let newest = json!({"version_index": 0, "drift_score": 0.12,
            "created_at": "2026-01-12T00:00:00+00:00", "embedding_ref": "file:///12"});
        assert_eq!(answer["versions"][0], newest);
        let all = app.get(&format!("{path}?limit=100000&tenant_id=acme")).await.1;
        assert_eq!(all["count"], 12);
        assert_eq!(all["versions"][11]["drift_score"], Value::Null);
        assert_eq!(app.get(&format!("{path}?limit=0")).await.1["count"], 1);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_of_the_process_and_asks_nobody() {
    let [site, _] = Site::of_both_kinds().await;
    let app = site.start(Role::Serve, &[]).await;
    let (status, before) = app.get("/health").await;
    assert_eq!((status.as_u16(), &before["status"]), (200, &json!("ok")), "{before}");
    assert_eq!(before["version"], env!("CARGO_PKG_VERSION"));
    assert!(before["timestamp"].as_str().unwrap().contains('T'));
    assert!(before["uptime_seconds"].as_f64().unwrap() >= 0.0);
    let unknown = json!({"status": "unknown"});
    assert_eq!(
        before["components"],
        json!({"database": unknown, "model": unknown, "redis": unknown})
    );
    assert_eq!(app.get("/readyz").await.0.as_u16(), 200);
    let ok = json!({"status": "ok"});
    let components = app.get("/health").await.1["components"].clone();
    assert_eq!(components, json!({"database": ok, "model": ok, "redis": ok}));
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_vectors_are_made_is_told_without_a_secret() {
    let [site, _] = Site::of_both_kinds().await;
    for (role, revision) in [(Role::Serve, json!("1")), (Role::Api, Value::Null)] {
        let app = site.start(role, &[]).await;
        let (status, info) = app.get("/debug/embed_info").await;
        assert_eq!(status.as_u16(), 200, "{info}");
        assert_eq!((&info["embedding_backend"], &info["dimension"]), (&json!("hash"), &json!(384)));
        assert_eq!((&info["device"], &info["model_revision"]), (&json!("auto"), &revision));
        assert_eq!(info["embedding_model"], "all-MiniLM-L6-v2");
        assert!(!info.to_string().contains(&site.dsn), "{info}");
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn info_tells_of_the_model_what_this_process_knows() {
    let [site, _] = Site::of_both_kinds().await;
    for role in [Role::Serve, Role::Api] {
        let app = site.start(role, &[]).await;
        let (status, info) = app.get("/info").await;
        assert_eq!(status.as_u16(), 200, "{info}");
        let model = hash_model();
        let known = |value: Value| if role == Role::Api { Value::Null } else { value };
        assert_eq!(
            info,
            json!({
                "version": env!("CARGO_PKG_VERSION"), "model": "all-MiniLM-L6-v2",
                "revision": known(json!("1")), "dimension": 384,
                "max_tokens": known(json!(model.max_tokens)), "pooling": known(json!([])),
                "prompts": known(json!([])), "default_prompt": null,
                "normalises": known(json!(model.description.normalises)),
                "dtype": known(json!("f32")), "kernel": known(json!("auto")), "device": "auto"
            })
        );
        app.stop().await;
    }
}

/// Writes what a tiny model says of its prompts, and gives a server with it.
async fn start_tiny(site: &Site, model: &Path, role: Role, prompt: &str) -> TestApp {
    let own = json!({"prompts": {"query": "two ", "passage": "one "},
        "default_prompt_name": prompt, "truncate_dim": 3});
    std::fs::write(model.join("config_sentence_transformers.json"), own.to_string()).unwrap();
    let url = site.redis.url();
    let all = [
        ("REDIS_URL", url.as_str()),
        ("ACTIVEKG_DSN", site.dsn.as_str()),
        ("EMBEDDING_MODEL", model.to_str().unwrap()),
        ("EMBEDDING_BACKEND", "candle"),
        ("EMBEDDING_DEVICE", "cpu"),
    ];
    let config = Settings::with(&with_short_intervals(site.dir.path(), &all)).unwrap();
    let model = match role {
        Role::Api => None,
        _ => Some(load(&model_config(&config.model)).await.unwrap()),
    };
    TestApp::start(role, site.dir.path(), &all, model).await
}

/// The vector of a node, once it is ready and not `old`.
async fn vector_but(app: &TestApp, id: &str, old: &Value) -> Value {
    let mut vector = Value::Null;
    wait_until(Duration::from_secs(30), async || {
        let node = app.get(&format!("/nodes/{id}?include_embedding=true")).await.1;
        vector = node["embedding"].clone();
        node["embedding_status"] == "ready" && vector != *old
    })
    .await;
    vector
}

/// A model that keeps the first components of its vectors makes the column, whichever process
/// makes it. Its prompt is before every text; with another, no vector of the former is taken.
#[tokio::test(flavor = "multi_thread")]
async fn the_dimension_and_the_prompt_are_the_models() {
    for site in Site::of_both_kinds().await {
        let model = tempfile::tempdir().unwrap();
        tiny_bert::write(model.path(), "mean_tokens");
        let api = start_tiny(&site, model.path(), Role::Api, "passage").await;
        assert_eq!(api.get("/info").await.1["dimension"], 3);
        api.stop().await;

        let app = start_tiny(&site, model.path(), Role::Serve, "passage").await;
        let info = app.get("/info").await.1;
        assert_eq!((&info["dimension"], &info["max_tokens"]), (&json!(3), &json!(12)), "{info}");
        assert_eq!(info["pooling"], json!(["mean"]), "{info}");
        assert_eq!(info["prompts"], json!(["query", "passage"]), "{info}");
        assert_eq!(info["default_prompt"], "passage", "{info}");
        assert_eq!(info["normalises"], false, "{info}");
        let body = json!({"classes": ["A"], "props": {"text": "three"}});
        let post = async |app: &TestApp| {
            app.post("/nodes", &body).await.1["id"].as_str().unwrap().to_owned()
        };
        let id = post(&app).await;
        let vector = vector_but(&app, &id, &Value::Null).await;
        assert_eq!(vector.as_array().unwrap().len(), 3, "{vector}");
        app.stop().await;

        let app = start_tiny(&site, model.path(), Role::Serve, "query").await;
        let other = post(&app).await;
        let requeue = json!({"node_ids": [id], "status": "all", "backfill_ready": false});
        assert_eq!(app.post("/admin/embedding/requeue", &requeue).await.1["enqueued"], 1);
        let anew = vector_but(&app, &id, &vector).await;
        assert_eq!(vector_but(&app, &other, &Value::Null).await, anew);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_compat_clients_of_activekg_need_no_change() {
    let [site, _] = Site::of_both_kinds().await;
    let app = site.start(Role::Serve, &[("VECMILL_COMPAT", "activekg")]).await;
    let mut odd = node("a", None);
    odd["score"] = json!(1);
    let (status, answer) = app.post("/nodes", &odd).await;
    assert_eq!((status.as_u16(), &answer["embedding_status"]), (200, &json!("queued")), "{answer}");
    let id = answer["id"].as_str().unwrap().to_owned();
    let batch = json!({"nodes": [odd], "score": 1});
    assert_eq!(app.post("/nodes/batch", &batch).await.0.as_u16(), 200);
    let refresh = format!("/nodes/{id}/refresh");
    assert_eq!(app.post(&refresh, &Value::Null).await.0.as_u16(), 200);
    let (status, answer) =
        app.patch(&format!("/nodes/{id}"), &json!({"props": {"text": "b"}, "score": 1})).await;
    assert_eq!(status.as_u16(), 200, "{answer}");
    assert!(answer["job_id"].is_string(), "{answer}");
    // Calls of operators stay strict, and so do parameters.
    let order = json!({"tenant": "acme"});
    assert_eq!(app.post("/admin/embedding/requeue", &order).await.0.as_u16(), 422);
    assert_eq!(app.post("/admin/refresh", &order).await.0.as_u16(), 422);
    assert_eq!(app.get("/nodes?tenant=acme").await.0.as_u16(), 422);
    assert_eq!(app.settled(DEADLINE).await["ready"], 2);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn host_and_port_are_obeyed_with_compat_only() {
    let dir = tempfile::tempdir().unwrap();
    let port = common::free_port().to_string();
    let other = format!("127.0.0.1:{}", common::free_port());
    let common = [
        ("VECMILL_DATA_DIR", dir.path().to_str().unwrap()),
        ("EMBEDDING_BACKEND", "hash"),
        ("EMBEDDING_ASYNC", "false"),
        ("HOST", "127.0.0.1"),
        ("PORT", port.as_str()),
    ];
    let compat = ("VECMILL_COMPAT", "activekg");
    for (settings, expected) in [
        (vec![compat], format!("http://127.0.0.1:{port}")),
        // As a compose file leaves a variable that is not set.
        (vec![compat, ("VECMILL_BIND", "")], format!("http://127.0.0.1:{port}")),
        (vec![compat, ("VECMILL_BIND", other.as_str())], format!("http://{other}")),
        (vec![("VECMILL_BIND", other.as_str())], format!("http://{other}")),
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vecmill"));
        command.arg("serve");
        let program = Program::run(command, &[&common[..], &settings].concat());
        assert_eq!(program.url().await, expected, "{settings:?}");
    }
}
