//! What a change does to a node, and what it answers.

use reqwest::Client;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{DEADLINE, Site, assert_ready, has_vector_of, node_with, patch, text};
use crate::common::{TestApp, hash_model};

/// The node without what every change touches.
async fn without_version(app: &TestApp, id: &str) -> Value {
    let mut node = app.node(id).await;
    let fields = node.as_object_mut().unwrap();
    fields.remove("version").unwrap();
    fields.remove("updated_at").unwrap();
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_merged_replaced_and_removed() {
    for site in Site::of_both_kinds().await {
        let app = site.api(&[]).await;
        let new = json!({
            "classes": ["Doc"],
            "props": {"text": "t", "n": {"a": 1, "b": [1, 2]}, "list": [{"a": 1}]},
            "metadata": {"by": "me", "tags": {"x": 1}},
            "refresh_policy": {"every": "1h"},
        });
        let id = app.post("/nodes", &new).await.1["id"].as_str().unwrap().to_owned();
        let change = json!({
            "props": {"n": {"a": null, "c": {"d": null, "e": "ö"}}, "list": [2]},
            "metadata": {"by": null, "tags": {"y": 2}},
            "extract": "ignored",
        });
        let answer = patch(&app, &id, &change, 200).await;
        assert_eq!(answer, json!({"id": id, "embedding_status": "queued", "job_id": null}));
        let node = app.node(&id).await;
        let props = json!({"text": "t", "n": {"b": [1, 2], "c": {"e": "ö"}}, "list": [2]});
        assert_eq!(node["props"], props, "{}", site.name);
        assert_eq!(node["metadata"], json!({"tags": {"x": 1, "y": 2}}));
        assert_eq!(node["refresh_policy"], json!({"every": "1h"}));
        assert_eq!((&node["classes"], &node["version"]), (&json!(["Doc"]), &json!(2)));

        patch(&app, &id, &json!({"metadata": null}), 200).await;
        let bare = app.node(&id).await;
        assert_eq!((&bare["metadata"], &bare["version"]), (&json!({}), &json!(3)));
        for nothing in [json!({"metadata": null}), json!({"props": {}, "payload_ref": null})] {
            patch(&app, &id, &nothing, 200).await;
            assert_eq!(app.node(&id).await, bare, "nothing was changed");
        }
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_same_text_a_node_keeps_its_embedding_and_gets_no_job() {
    for site in Site::of_both_kinds().await {
        let app = site.api(&[]).await;
        let worker = site.worker(&[], hash_model()).await;
        let id = node_with(&app, "the text").await;
        app.settled(DEADLINE).await;
        let before = without_version(&app, &id).await;
        let others = json!({
            "props": {"text": "the text", "body": "not the text"},
            "metadata": {"k": 1},
        });
        let answer = patch(&app, &id, &others, 200).await;
        assert_eq!(answer, json!({"id": id, "embedding_status": "ready", "job_id": null}));
        let mut expected = before;
        expected["props"]["body"] = json!("not the text");
        expected["metadata"] = json!({"k": 1});
        assert_eq!(without_version(&app, &id).await, expected, "{}", site.name);
        site.nothing_is_live();
        worker.stop().await;
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_text_gets_another_vector() {
    for site in Site::of_both_kinds().await {
        let app = site.api(&[]).await;
        let worker = site.worker(&[], hash_model()).await;
        let id = node_with(&app, "the old text").await;
        app.settled(DEADLINE).await;
        worker.stop().await;

        let answer = patch(&app, &id, &text("the new text"), 202).await;
        assert_eq!(answer["embedding_status"], "queued");
        let job = answer["job_id"].as_str().unwrap();
        assert_eq!(site.redis.cli(&["GET", &format!("embedding:pending:{id}")]), job);
        let queued = app.node(&id).await;
        assert_eq!(
            (&queued["embedding_status"], &queued["version"]),
            (&json!("queued"), &json!(2))
        );
        assert!(has_vector_of(&queued, "the old text"), "until the new one is there");

        let worker = site.worker(&[], hash_model()).await;
        app.settled(DEADLINE).await;
        let node = app.node(&id).await;
        assert_ready(&node, "the new text");
        assert!(node["drift_score"].as_f64().unwrap() > 0.1, "{}", node["drift_score"]);
        assert_eq!(node["version"], 2);
        site.nothing_is_live();
        worker.stop().await;
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_may_lose_its_text_and_get_one_again() {
    let site = Site::on_sqlite();
    let app = site.api(&[]).await;
    let worker = site.worker(&[], hash_model()).await;
    let id = node_with(&app, "the text").await;
    app.settled(DEADLINE).await;
    for removal in [json!({"props": {"text": null}}), json!({"props": {"text": ""}})] {
        let answer = patch(&app, &id, &removal, 202).await;
        assert_eq!(answer["embedding_status"], "queued");
        app.settled(DEADLINE).await;
        let node = app.node(&id).await;
        assert_eq!(node["embedding_status"], "skipped");
        assert!(node["embedding_error"].as_str().unwrap().contains("no text"), "{node}");
        patch(&app, &id, &json!({"props": {"title": "still no text"}}), 200).await;
        assert_eq!(app.node(&id).await["embedding_status"], "skipped");
        patch(&app, &id, &text("the text again"), 202).await;
        app.settled(DEADLINE).await;
        assert_ready(&app.node(&id).await, "the text again");
    }
    let elsewhere = json!({"payload_ref": "file:///etc/passwd"});
    patch(&app, &id, &elsewhere, 202).await;
    assert_eq!(app.node(&id).await["payload_ref"], "file:///etc/passwd");
    patch(&app, &id, &elsewhere, 200).await;
    patch(&app, &id, &json!({"payload_ref": ""}), 202).await;
    assert_eq!(app.node(&id).await["payload_ref"], Value::Null);
    app.settled(DEADLINE).await;
    assert_ready(&app.node(&id).await, "the text again");
    site.nothing_is_live();
    worker.stop().await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tenant_changes_or_deletes_the_nodes_of_another() {
    for site in Site::of_both_kinds().await {
        let app = site.api(&[]).await;
        let id = node_with(&app, "acme's text").await;
        let keys = || site.redis.cli(&["DBSIZE"]);
        let (before, keys_before) = (app.node(&id).await, keys());
        for path in [format!("/nodes/{id}?tenant_id=other"), format!("/nodes/{}", Uuid::new_v4())] {
            let (status, answer) = app.patch(&path, &text("other")).await;
            assert_eq!(status.as_u16(), 404, "{answer}");
            assert!(answer["detail"].as_str().unwrap().contains("tenant_id"), "{answer}");
            assert_eq!(app.delete(&path).await.0.as_u16(), 404);
        }
        assert_eq!((app.node(&id).await, keys()), (before, keys_before), "{}", site.name);
        assert_eq!(site.tenant_count("acme"), "1");
        let own = format!("/nodes/{id}?tenant_id=acme");
        assert_eq!(app.patch(&own, &text("new")).await.0.as_u16(), 202);
        assert_eq!(app.delete(&own).await.0.as_u16(), 204);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_invalid_changes_nothing() {
    let site = Site::on_sqlite();
    let app = site.api(&[]).await;
    let id = node_with(&app, "the text").await;
    let before = app.node(&id).await;
    for (body, field) in [
        (json!({}), "body: "),
        (json!({"text": "unknown fields are refused"}), "text: "),
        (json!({"props": {}, "classes": ["a"]}), "classes: "),
        (json!([]), "body: "),
        (json!({"props": null, "metadata": {}}), "props: "),
        (json!({"props": {"text": "a\0b"}}), "props.text: "),
        (json!({"payload_ref": 7}), "payload_ref: "),
    ] {
        let answer = patch(&app, &id, &body, 422).await;
        assert!(answer["detail"].as_str().unwrap().starts_with(field), "{answer}");
    }
    let url = format!("{}/nodes/{id}?tenant_id=acme", app.url());
    let send = async |content_type: &str, body: &'static str| {
        let request = Client::new().patch(&url).header("Content-Type", content_type).body(body);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(send("application/json", "{").await, 400);
    assert_eq!(send("text/plain", "{}").await, 415);
    assert_eq!(app.node(&id).await, before);
    let merge_patch = r#"{"metadata": {"a": 1}}"#;
    assert_eq!(send("application/merge-patch+json", merge_patch).await, 200);
    assert_eq!(app.node(&id).await["metadata"], json!({"a": 1}));
    app.stop().await;
}
