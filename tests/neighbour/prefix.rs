//! The text that is embedded: with the prefix of resumes and jobs, and only when it is wanted.

use reqwest::StatusCode;
use serde_json::{Value, json};
use vecmill::app::Role;

use crate::{
    common::{TestApp, cosine, hash_model, vector_of},
    site::{DEADLINE, Site},
};

const WITH_PREFIX: (&str, &str) = ("EMBEDDING_PREFIX_ENABLED", "true");

async fn is_of(app: &TestApp, id: &str, text: &str) -> bool {
    let node = app.node(id).await;
    assert_eq!(node["embedding_status"], "ready", "{node}");
    let stored: Vec<f32> = serde_json::from_value(node["embedding"].clone()).unwrap();
    cosine(&stored, &vector_of(text)) > 0.99999
}

async fn add(app: &TestApp, classes: &[&str], props: Value) -> String {
    let (status, answer) = app.post("/nodes", &json!({"classes": classes, "props": props})).await;
    assert!(status.is_success(), "{answer}");
    answer["id"].as_str().unwrap().to_owned()
}

/// What every way to a vector must make of a node with a prefix.
async fn main_job(app: &TestApp) {
    let props = json!({"text": "Ten years", "current_title": "Miller",
        "primary_skills": ["stone", "Grain"], "years_by_skill": {"grain": 3.5}});
    let resume = add(app, &["Resume"], props.clone()).await;
    let note = add(app, &["Note"], props).await;
    app.settled(DEADLINE).await;
    let prefix = "CURRENT_TITLE: Miller\nYEARS_BY_SKILL: grain=3.5\nEXTRACTED_SKILLS: Grain, stone";
    assert!(is_of(app, &resume, &format!("{prefix}\n\nTen years")).await);
    assert!(is_of(app, &note, "Ten years").await);

    // A change of a field of the prefix is one of the text; a change beside it is none.
    let path = format!("/nodes/{resume}");
    let change = json!({"props": {"current_title": "Master miller"}});
    assert!(app.patch(&path, &change).await.0.is_success());
    app.settled(DEADLINE).await;
    let prefix = prefix.replace("Miller", "Master miller");
    assert!(is_of(app, &resume, &format!("{prefix}\n\nTen years")).await);
    let before = app.node(&resume).await["embedding_updated_at"].clone();
    assert_eq!(app.patch(&path, &json!({"props": {"hobby": "boats"}})).await.0, StatusCode::OK);
    app.settled(DEADLINE).await;
    assert_eq!(app.node(&resume).await["embedding_updated_at"], before);
    // Nor is a refresh one.
    app.post(&format!("/nodes/{resume}/refresh"), &json!({})).await;
    app.settled(DEADLINE).await;
    assert!(is_of(app, &resume, &format!("{prefix}\n\nTen years")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn resumes_and_jobs_have_their_prefix_on_its_table() {
    let site = Site::new().await;
    let app = site.start(Role::Serve, &site.dsn, &[WITH_PREFIX]).await.unwrap();
    main_job(&app).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resumes_and_jobs_have_their_prefix_without_a_queue() {
    let site = Site::new().await;
    let settings = [WITH_PREFIX, ("EMBEDDING_ASYNC", "false")];
    let app = site.start(Role::Serve, &site.dsn, &settings).await.unwrap();
    main_job(&app).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resumes_and_jobs_have_their_prefix_in_sqlite() {
    for is_async in ["true", "false"] {
        let dir = tempfile::tempdir().unwrap();
        let settings = [WITH_PREFIX, ("EMBEDDING_ASYNC", is_async)];
        let app = TestApp::start(Role::Serve, dir.path(), &settings, Some(hash_model())).await;
        main_job(&app).await;
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_no_text_has_a_prefix() {
    let site = Site::new().await;
    let app = site.serve().await;
    let id = add(&app, &["Resume"], json!({"text": "Ten years", "current_title": "Miller"})).await;
    app.settled(DEADLINE).await;
    assert!(is_of(&app, &id, "Ten years").await);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_nodes_are_stored_and_not_embedded_when_that_is_wanted() {
    for is_async in ["true", "false"] {
        let site = Site::new().await;
        let settings = [("AUTO_EMBED_ON_CREATE", "false"), ("EMBEDDING_ASYNC", is_async)];
        let app = site.start(Role::Serve, &site.dsn, &settings).await.unwrap();
        let nodes = json!({"nodes": [{"classes": ["a"], "props": {"text": "x"}},
            {"classes": ["a"], "props": {"text": "y"}}]});
        let (_, answer) = app.post("/nodes/batch", &nodes).await;
        let result = &answer["results"][0];
        assert_eq!(
            (&result["embedding_status"], &result["job_id"]),
            (&json!("skipped"), &Value::Null)
        );
        let id = result["id"].as_str().unwrap();
        assert_eq!(app.node(id).await["embedding_error"], "auto_embed_disabled");
        assert_eq!(site.redis.cli(&["KEYS", "embedding:*"]), "");
        let (status, _) = app.post(&format!("/nodes/{id}/refresh"), &json!({})).await;
        assert!(status.is_success());
        assert_eq!(app.settled(DEADLINE).await["ready"], 1);
        assert!(is_of(&app, id, "x").await);
        app.stop().await;
    }
}
