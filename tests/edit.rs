//! `PATCH /nodes/{id}` and `DELETE /nodes/{id}`: the last text that was written is the one that
//! is embedded, and of a node that is gone nothing is left, wherever their jobs are meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "edit/answers.rs"]
mod answers;
#[path = "edit/deletions.rs"]
mod deletions;
#[path = "edit/inline.rs"]
mod inline;
#[path = "edit/limits.rs"]
mod limits;
#[path = "edit/races.rs"]
mod races;

use std::{
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use common::{
    TestApp, TestPostgres, TestRedis, cosine, faulty_model, ids_of, vector_of, wait_until,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use vecmill::{
    app::Role,
    inference::{EmbedError, Model},
};

const DEADLINE: Duration = Duration::from_secs(30);

/// A Redis and a database of a test's own.
struct Site {
    name: &'static str,
    redis: TestRedis,
    dir: TempDir,
    dsn: String,
}

impl Site {
    fn on_sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dsn = format!("sqlite://{}", dir.path().join("nodes.db").display());
        Self { name: "sqlite", redis: TestRedis::start(), dir, dsn }
    }

    async fn on_postgres() -> Self {
        let dsn = TestPostgres::shared().database().await;
        let dir = tempfile::tempdir().unwrap();
        Self { name: "postgres", redis: TestRedis::start(), dir, dsn }
    }

    async fn of_both_kinds() -> [Self; 2] {
        [Self::on_sqlite(), Self::on_postgres().await]
    }

    /// Nothing mends anything: no lease runs out, and the sweep runs when a worker starts and
    /// then not again. `settings` win.
    async fn start(&self, role: Role, settings: &[(&str, &str)], model: Option<Model>) -> TestApp {
        let url = self.redis.url();
        let mut all = vec![
            ("REDIS_URL", url.as_str()),
            ("ACTIVEKG_DSN", self.dsn.as_str()),
            ("EMBEDDING_SWEEP_INTERVAL_SECONDS", "3600"),
            ("EMBEDDING_LEASE_SECONDS", "3600"),
        ];
        all.retain(|(name, _)| settings.iter().all(|(other, _)| other != name));
        all.extend_from_slice(settings);
        TestApp::start(role, self.dir.path(), &all, model).await
    }

    async fn api(&self, settings: &[(&str, &str)]) -> TestApp {
        self.start(Role::Api, settings, None).await
    }

    async fn worker(&self, settings: &[(&str, &str)], model: Model) -> TestApp {
        self.start(Role::Worker, settings, Some(model)).await
    }

    /// No job is live, and no key or count says that one is.
    fn nothing_is_live(&self) {
        for pattern in ["*pending*", "*inflight*", "*reservations*", "*changed*", "*retry*"] {
            assert_eq!(self.redis.cli(&["KEYS", pattern]), "", "{}", self.name);
        }
        assert_eq!(self.redis.cli(&["LLEN", "embedding:queue"]), "0", "{}", self.name);
    }

    fn dead_letters(&self) -> String {
        self.redis.cli(&["LLEN", "embedding:dlq"])
    }

    fn tenant_count(&self, tenant: &str) -> String {
        self.redis.cli(&["GET", &format!("embedding:tenant:pending:{tenant}")])
    }
}

/// Keeps a model from embedding one text until the test lets it.
#[derive(Clone)]
struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    is_reached: bool,
    is_open: bool,
}

impl Gate {
    fn closed() -> Self {
        Self(Arc::default())
    }

    /// The `hash` model, which waits when it comes to this text, and then ends it as planned.
    fn model(&self, text: &'static str, end: Result<(), &'static str>) -> Model {
        let gate = self.clone();
        faulty_model(move |batch| {
            if batch.iter().all(|encoding| encoding.ids != ids_of(text)) {
                return Ok(());
            }
            let (state, changed) = &*gate.0;
            let mut state = state.lock().unwrap();
            state.is_reached = true;
            while !state.is_open {
                state = changed.wait(state).unwrap();
            }
            end.map_err(|reason| EmbedError::Model(reason.to_owned()))
        })
    }

    async fn reached(&self) {
        wait_until(DEADLINE, async || self.0.0.lock().unwrap().is_reached).await;
    }

    /// Lets the model go on. It is a guard's business: a test that fails must not leave a thread
    /// behind that waits for ever.
    fn open(&self) {
        self.0.0.lock().unwrap().is_open = true;
        self.0.1.notify_all();
    }
}

/// Opens the gate at the end of a test, whatever end that is.
struct OpensAtEnd(Gate);

impl Drop for OpensAtEnd {
    fn drop(&mut self) {
        self.0.open();
    }
}

fn text(text: &str) -> Value {
    json!({"props": {"text": text}})
}

/// Takes in a node of tenant `acme` with this text; its id.
async fn node_with(app: &TestApp, text: &str) -> String {
    app.ingest("acme", &[text.to_owned()]).await.remove(0)
}

/// Changes a node; the answer, which must have this status.
async fn patch(app: &TestApp, id: &str, body: &Value, expected: u16) -> Value {
    let (_, node) = app.get(&format!("/nodes/{id}")).await;
    let owner = node["tenant_id"].as_str().unwrap_or("acme");
    let (status, answer) = app.patch(&format!("/nodes/{id}?tenant_id={owner}"), body).await;
    assert_eq!(status.as_u16(), expected, "{body}: {answer}");
    answer
}

/// The components of the stored vector.
fn stored_vector(node: &Value) -> Vec<f32> {
    serde_json::from_value(node["embedding"].clone()).unwrap_or_else(|_| panic!("{node}"))
}

/// Whether the stored vector is the one of this text.
fn has_vector_of(node: &Value, text: &str) -> bool {
    cosine(&stored_vector(node), &vector_of(text)) > 0.99999
}

/// The node is `ready` with the vector of this text, at the first attempt.
fn assert_ready(node: &Value, text: &str) {
    assert_eq!(node["embedding_status"], "ready", "{node}");
    assert_eq!(node["props"]["text"], text);
    assert_eq!((&node["embedding_attempts"], &node["embedding_error"]), (&json!(1), &Value::Null));
    assert!(has_vector_of(node, text), "the vector is not that of {text}");
}
