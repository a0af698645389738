//! Without a queue: the new text is embedded before the answer is sent.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use vecmill::{app::Role, inference::EmbedError};

use super::{DEADLINE, Gate, OpensAtEnd, Site, assert_ready, has_vector_of, patch, text};
use crate::common::{TestApp, faulty_model, hash_model};

const INLINE: [(&str, &str); 1] = [("EMBEDDING_ASYNC", "false")];

async fn new_node(app: &TestApp, of_text: &str) -> String {
    let body = json!({"classes": ["Doc"], "props": {"text": of_text}});
    let (status, answer) = app.post("/nodes", &body).await;
    assert_eq!(status.as_u16(), 200, "{answer}");
    answer["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_comes_with_the_vector_of_the_new_text() {
    for site in Site::of_both_kinds().await {
        let app = site.start(Role::Serve, &INLINE, Some(hash_model())).await;
        let id = new_node(&app, "old").await;
        let answer = patch(&app, &id, &text("new"), 200).await;
        assert_eq!(answer, json!({"id": id, "embedding_status": "ready", "job_id": null}));
        let node = app.node(&id).await;
        assert_ready(&node, "new");
        assert!(node["drift_score"].as_f64().unwrap() > 0.1, "{}", site.name);
        assert_eq!(node["version"], 2);

        patch(&app, &id, &json!({"metadata": 1}), 200).await;
        let again = app.node(&id).await;
        assert_eq!(again["embedding_updated_at"], node["embedding_updated_at"]);
        assert_eq!(again["version"], 3);
        let empty = patch(&app, &id, &json!({"props": {"text": null}}), 200).await;
        assert_eq!(empty["embedding_status"], "skipped");
        assert_eq!(
            app.delete(&format!("/nodes/{id}")).await,
            (204.try_into().unwrap(), String::new())
        );
        assert_eq!(app.get(&format!("/nodes/{id}")).await.0.as_u16(), 404);
        assert_eq!(app.delete(&format!("/nodes/{id}")).await.0.as_u16(), 404);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_away_changes_nothing_and_one_that_refuses_the_text_is_recorded() {
    let site = Site::on_sqlite();
    let is_away = Arc::new(AtomicBool::new(false));
    let model = faulty_model({
        let (is_away, bad) = (Arc::clone(&is_away), crate::common::ids_of("bad"));
        move |batch| {
            if is_away.load(Ordering::SeqCst) {
                return Err(EmbedError::Device("planned".into()));
            }
            match batch.iter().any(|text| text.ids == bad) {
                true => Err(EmbedError::Model("planned".to_owned())),
                false => Ok(()),
            }
        }
    });
    let app = site.start(Role::Serve, &INLINE, Some(model)).await;
    let id = new_node(&app, "old").await;
    let before = app.node(&id).await;
    is_away.store(true, Ordering::SeqCst);
    patch(&app, &id, &text("new"), 503).await;
    assert_eq!(app.node(&id).await, before);
    is_away.store(false, Ordering::SeqCst);
    let answer = patch(&app, &id, &text("bad"), 200).await;
    assert_eq!(answer["embedding_status"], "failed");
    let node = app.node(&id).await;
    assert_eq!(
        (&node["embedding_status"], &node["props"]["text"]),
        (&json!("failed"), &json!("bad"))
    );
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_row_was_changed_meanwhile_begins_anew() {
    for site in Site::of_both_kinds().await {
        let gate = Gate::closed();
        let _end = OpensAtEnd(gate.clone());
        let app = site.start(Role::Serve, &INLINE, Some(gate.model("slow", Ok(())))).await;
        let body = json!({"classes": ["Doc"], "props": {"text": "old", "body": "slow"}});
        let id = app.post("/nodes", &body).await.1["id"].as_str().unwrap().to_owned();
        let removal = json!({"props": {"text": null}});
        let (answer, ()) = tokio::join!(patch(&app, &id, &removal, 200), async {
            gate.reached().await;
            // The text is still the other property, so that this does not wait for the model.
            patch(&app, &id, &json!({"props": {"body": "other"}}), 200).await;
            gate.open();
        });
        assert_eq!(
            (&answer["embedding_status"], &answer["job_id"]),
            (&json!("ready"), &Value::Null)
        );
        let node = app.node(&id).await;
        assert_eq!((&node["props"], &node["version"]), (&json!({"body": "other"}), &json!(3)));
        assert!(has_vector_of(&node, "other"), "{}", site.name);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_changes_at_once_the_last_has_its_vector() {
    const CHANGES: usize = 30;
    for site in Site::of_both_kinds().await {
        let app = site.start(Role::Serve, &INLINE, Some(hash_model())).await;
        let id = new_node(&app, "old").await;
        let bodies: Vec<Value> = (0..CHANGES).map(|i| text(&format!("text {i}"))).collect();
        join_all(bodies.iter().map(|body| patch(&app, &id, body, 200))).await;
        let node = app.node(&id).await;
        let last = node["props"]["text"].as_str().unwrap();
        assert_ready(&node, last);
        assert_eq!(node["version"], CHANGES + 1, "{}", site.name);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_that_hung_up_has_asked_for_is_not_embedded() {
    let site = Site::on_sqlite();
    let gate = Gate::closed();
    let _end = OpensAtEnd(gate.clone());
    let gated = gate.model("slow", Ok(()));
    let embedded: Arc<Mutex<Vec<Vec<u32>>>> = Arc::default();
    let model = faulty_model({
        let embedded = Arc::clone(&embedded);
        move |batch| {
            embedded.lock().unwrap().extend(batch.iter().map(|text| text.ids.clone()));
            gated.backend.embed(batch).map(drop)
        }
    });
    let one_by_one = [INLINE[0], ("EMBEDDING_BATCH_TEXTS", "1")];
    let app = site.start(Role::Serve, &one_by_one, Some(model)).await;
    let texts = ["slow", "second", "third", "fourth"];
    let nodes = texts.map(|text| json!({"classes": ["Doc"], "props": {"text": text}}));
    let body = json!({"nodes": nodes}).to_string();
    let head = format!(
        "POST /nodes/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    let mut client = TcpStream::connect(app.url().strip_prefix("http://").unwrap()).await.unwrap();
    client.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    gate.reached().await;
    client.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, client.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));

    let before = embedded.lock().unwrap().len();
    assert_eq!(before, 1, "the others were to come");
    gate.open();
    new_node(&app, "of another client").await;
    let after = embedded.lock().unwrap().split_off(before);
    assert_eq!(after, [crate::common::ids_of("of another client")]);
    assert_eq!(app.get("/nodes").await.1["total"], 1, "nothing was stored");
    app.stop().await;
}
