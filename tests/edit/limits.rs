//! Limits and outages: a change that is refused leaves the node as it was.

use futures::future::join_all;
use serde_json::{Value, json};
use vecmill::app::Role;

use super::{DEADLINE, Site, assert_ready, node_with, patch, text};
use crate::common::{hash_model, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn at_a_limit_only_the_same_text_is_let_in() {
    for site in Site::of_both_kinds().await {
        for (limit, reason) in [
            (("EMBEDDING_TENANT_MAX_PENDING", "1"), "tenant acme"),
            (("EMBEDDING_QUEUE_MAX_DEPTH", "1"), "the queue"),
        ] {
            let app = site.api(&[limit]).await;
            let id = node_with(&app, "old").await;
            let before = app.node(&id).await;
            let answer = patch(&app, &id, &text("new"), 429).await;
            assert!(answer["detail"].as_str().unwrap().contains(reason), "{answer}");
            assert_eq!(app.node(&id).await, before, "{}", site.name);
            assert_eq!(site.tenant_count("acme"), "1");
            assert_eq!(site.redis.cli(&["EXISTS", "embedding:queue:reservations"]), "0");
            patch(&app, &id, &json!({"metadata": "costs nothing"}), 200).await;
            assert_eq!(app.delete(&format!("/nodes/{id}?tenant_id=acme")).await.0.as_u16(), 204);
            site.nothing_is_live();
            app.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_away_leaves_the_node_as_it_was() {
    // Each call waits for a while for Redis to come back.
    let sites = Site::of_both_kinds().await.map(async |mut site: Site| {
        let app = site.api(&[]).await;
        let (id, other) = (node_with(&app, "old").await, node_with(&app, "other").await);
        let before = app.node(&id).await;
        site.redis.kill();
        let answer = patch(&app, &id, &text("new"), 503).await;
        assert!(answer["detail"].as_str().unwrap().contains("Redis"), "{answer}");
        assert_eq!(app.node(&id).await, before, "{}", site.name);
        patch(&app, &id, &json!({"metadata": "needs no Redis"}), 200).await;
        assert_eq!(app.delete(&format!("/nodes/{other}?tenant_id=acme")).await.0.as_u16(), 204);
        assert_eq!(app.get(&format!("/nodes/{other}")).await.0.as_u16(), 404);
        site.redis.restart();
        wait_until(DEADLINE, async || {
            app.patch(&format!("/nodes/{id}?tenant_id=acme"), &text("new")).await.0.as_u16() == 202
        })
        .await;
        app.stop().await;
    });
    join_all(sites).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_text_that_could_not_be_enqueued_is_found_by_the_sweep() {
    for site in Site::of_both_kinds().await {
        let app = site.api(&[]).await;
        let worker = site.worker(&[], hash_model()).await;
        let id = node_with(&app, "old").await;
        app.settled(DEADLINE).await;
        worker.stop().await;
        // Room can be reserved, but nothing can be enqueued.
        site.redis.cli(&["SET", "embedding:retry", "of another program"]);
        let answer = patch(&app, &id, &text("new"), 202).await;
        assert_eq!(answer["embedding_status"], "queued");
        assert_eq!(site.redis.cli(&["EXISTS", &format!("embedding:pending:{id}")]), "0");
        site.redis.cli(&["DEL", "embedding:retry"]);
        let sweeping = [("EMBEDDING_SWEEP_INTERVAL_SECONDS", "0.3")];
        let worker = site.worker(&sweeping, hash_model()).await;
        app.settled(DEADLINE).await;
        assert_ready(&app.node(&id).await, "new");
        worker.stop().await;
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_leaves_nothing_in_redis() {
    let mut postgres = crate::common::TestPostgres::start();
    let site = Site { dsn: postgres.database().await, ..Site::on_sqlite() };
    let app = site.start(Role::Api, &[], None).await;
    let id = node_with(&app, "old").await;
    postgres.stop();
    let answer = patch(&app, &id, &text("new"), 503).await;
    assert_ne!(answer["detail"], Value::Null);
    assert_eq!(app.delete(&format!("/nodes/{id}?tenant_id=acme")).await.0.as_u16(), 503);
    assert_eq!(
        (site.tenant_count("acme"), site.redis.cli(&["LLEN", "embedding:queue"])),
        ("1".into(), "1".into())
    );
    assert_eq!(site.redis.cli(&["EXISTS", "embedding:queue:reservations"]), "0");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_grows_to_its_limit_and_no_further() {
    for site in Site::of_both_kinds().await {
        let app = site.api(&[("VECMILL_NODE_BYTES", "20000")]).await;
        let node = |bytes: usize| json!({"classes": ["Note"], "props": {"a": "x".repeat(bytes)}});
        let (status, answer) = app.post("/nodes", &node(20_000)).await;
        assert_eq!(status.as_u16(), 413, "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains("VECMILL_NODE_BYTES"), "{answer}");
        let batch = json!({"nodes": [node(20_000), node(10)]});
        let (status, answer) = app.post("/nodes/batch", &batch).await;
        assert_eq!((status.as_u16(), &answer["created"]), (202, &json!(1)), "{answer}");

        let id = node_with(&app, "text").await;
        let part = |n: usize| json!({"props": {format!("part {n}"): "x".repeat(6_000)}});
        for n in 0..3 {
            patch(&app, &id, &part(n), 200).await;
        }
        let before = app.node(&id).await;
        for n in 3..20 {
            let answer = patch(&app, &id, &part(n), 413).await;
            assert!(answer["detail"].as_str().unwrap().contains("VECMILL_NODE_BYTES"), "{answer}");
        }
        assert_eq!(app.node(&id).await, before, "{}", site.name);
        let smaller = json!({"props": {"part 0": null}});
        patch(&app, &id, &smaller, 200).await;
        patch(&app, &id, &part(3), 200).await;
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_node_is_changed_by_whoever_comes_though_memory_is_short() {
    let site = Site::of_both_kinds().await.into_iter().next().unwrap();
    let app = site.api(&[("VECMILL_MEMORY_MB", "256")]).await;
    // Many values: parsed, it takes a good part of the memory.
    let values: Vec<u8> = vec![1; 100_000];
    let props = json!({"n": values, "external_id": "of another"});
    let node = json!({"classes": ["Note"], "tenant_id": "acme", "props": props});
    let (status, answer) = app.post("/nodes", &node).await;
    assert_eq!(status.as_u16(), 202, "{answer}");
    let id = answer["id"].as_str().unwrap();
    let path = format!("/nodes/{id}?tenant_id=acme");
    let body = json!({"props": {"m": values}});
    let changes = (0..6).map(|_| app.patch(&path, &body));
    for (status, answer) in join_all(changes).await {
        assert!([200, 503].contains(&status.as_u16()), "{answer}");
    }
    assert_eq!(app.patch(&path, &json!({"props": {"x": 1}})).await.0.as_u16(), 200);
    let shown = app.get(&format!("/nodes/{id}")).await.1;
    assert_eq!(shown["props"]["m"].as_array().unwrap().len(), values.len());
    let path = "/nodes/by-external-id?external_id=of%20another";
    let by_external_id = join_all((0..6).map(|_| app.get(path))).await;
    let answered = by_external_id.iter().filter(|(status, _)| status.as_u16() == 200);
    assert!(answered.clone().count() >= 1 && answered.clone().all(|(_, node)| *node == shown));
    app.stop().await;
}
