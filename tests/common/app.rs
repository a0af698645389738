//! A Vecmill in the test's own process, on real servers, reached over HTTP.

use std::{path::Path, sync::Arc, time::Duration};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use vecmill::{
    app::{App, Role},
    config::Settings,
    inference::{
        Computation, Description, EmbedError, EmbeddingBackend, Encoding, HashBackend, HashEncoder,
        Kernel, Model,
    },
    runtime::RestartIntensity,
};

use super::wait_until;

/// What a test lets happen to a batch before it is embedded.
type Fault = Box<dyn Fn(&[Encoding]) -> Result<(), EmbedError> + Send + Sync>;

/// The `hash` backend with planned faults.
pub struct FaultyBackend {
    fault: Fault,
}

impl EmbeddingBackend for FaultyBackend {
    fn dimension(&self) -> usize {
        HashBackend.dimension()
    }

    fn embed(&self, batch: &[Encoding]) -> Result<Vec<Vec<f32>>, EmbedError> {
        (self.fault)(batch)?;
        HashBackend.embed(batch)
    }
}

/// The `hash` model.
pub fn hash_model() -> Model {
    Model {
        computation: Computation { kernel: Kernel::Auto, dtype: "f32", threads: 1 },
        description: Description::default(),
        name: "hash".into(),
        revision: "1".into(),
        fingerprint: "1".into(),
        max_tokens: 256,
        encoder: Arc::new(HashEncoder),
        backend: Arc::new(HashBackend),
    }
}

/// The `hash` model with a fault: called with each batch before it is embedded, it may fail,
/// panic or wait.
pub fn faulty_model(
    fault: impl Fn(&[Encoding]) -> Result<(), EmbedError> + Send + Sync + 'static,
) -> Model {
    Model { backend: Arc::new(FaultyBackend { fault: Box::new(fault) }), ..hash_model() }
}

/// The vector that the `hash` model makes of a text.
pub fn vector_of(text: &str) -> Vec<f32> {
    let model = hash_model();
    model.backend.embed(&[model.encoder.encode(text).unwrap()]).unwrap().remove(0)
}

/// The cosine of two vectors of length 1.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The token ids that the `hash` model makes of a word.
pub fn ids_of(word: &str) -> Vec<u32> {
    hash_model().encoder.encode(word).unwrap().ids
}

/// Settings for a Vecmill in `dir` that need not wait long for anything; `settings` win.
pub fn with_short_intervals<'a>(
    dir: &'a Path,
    settings: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let mut all = vec![
        ("VECMILL_BIND", "127.0.0.1:0"),
        ("VECMILL_DATA_DIR", dir.to_str().unwrap()),
        ("EMBEDDING_BACKEND", "hash"),
        ("EMBEDDING_WORKER_POLL_INTERVAL", "0.2"),
        ("EMBEDDING_LEASE_SECONDS", "2"),
        ("EMBEDDING_SWEEP_INTERVAL_SECONDS", "0.5"),
        ("EMBEDDING_RETRY_BASE_SECONDS", "0.1"),
        ("VECMILL_SHUTDOWN_GRACE", "10"),
    ];
    // A flag may be given once only.
    all.retain(|(name, _)| settings.iter().all(|(other, _)| other != name));
    all.extend_from_slice(settings);
    all
}

/// A running Vecmill and a client of it.
pub struct TestApp {
    app: Option<App>,
    base: String,
    client: Client,
}

impl TestApp {
    /// `serve` on SQLite and a private Redis in `dir`, with the `hash` model.
    pub async fn serve(dir: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start(Role::Serve, dir, settings, Some(hash_model())).await
    }

    /// Any role, settings and model. Intervals are short unless `settings` says otherwise.
    pub async fn start(
        role: Role,
        dir: &Path,
        settings: &[(&str, &str)],
        model: Option<Model>,
    ) -> Self {
        Self::start_with(role, dir, settings, model, RestartIntensity::default()).await
    }

    /// The same with a limit on restarts.
    pub async fn start_with(
        role: Role,
        dir: &Path,
        settings: &[(&str, &str)],
        model: Option<Model>,
        intensity: RestartIntensity,
    ) -> Self {
        let config = Settings::with(&with_short_intervals(dir, settings)).unwrap();
        Self::of(App::start_with(role, config, model, intensity).await.unwrap())
    }

    /// One that is running.
    pub fn of(app: App) -> Self {
        let base = app.address().map(|address| format!("http://{address}")).unwrap_or_default();
        Self { app: Some(app), base, client: Client::new() }
    }

    /// A client of a Vecmill in another process; [`Self::stop`] and [`Self::failed`] are not
    /// for it.
    pub fn client_of(url: &str) -> Self {
        Self { app: None, base: url.to_owned(), client: Client::new() }
    }

    /// Where it listens, such as `http://127.0.0.1:40001`.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// Stops it in good order.
    pub async fn stop(mut self) {
        self.app.take().unwrap().stop().await;
    }

    /// Ends with the reason when it gives up.
    pub async fn failed(&mut self) -> String {
        self.app.as_mut().unwrap().failed().await
    }

    /// GETs a path; the status and the JSON answer.
    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        let response = self.client.get(format!("{}{path}", self.base)).send().await.unwrap();
        let status = response.status();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    /// POSTs JSON to a path; the status and the JSON answer.
    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let request = self.client.post(format!("{}{path}", self.base)).json(body);
        let response = request.send().await.unwrap();
        let status = response.status();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    /// PATCHes JSON to a path; the status and the JSON answer.
    pub async fn patch(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let request = self.client.patch(format!("{}{path}", self.base)).json(body);
        let response = request.send().await.unwrap();
        let status = response.status();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    /// DELETEs a path; the status and the body of the answer.
    pub async fn delete(&self, path: &str) -> (StatusCode, String) {
        let response = self.client.delete(format!("{}{path}", self.base)).send().await.unwrap();
        let status = response.status();
        (status, response.text().await.unwrap())
    }

    /// Sends nodes with these texts for one tenant; their ids.
    pub async fn ingest(&self, tenant: &str, texts: &[String]) -> Vec<String> {
        let nodes: Vec<Value> = texts
            .iter()
            .map(|text| json!({"classes": ["Test"], "props": {"text": text}}))
            .collect();
        let body = json!({"nodes": nodes, "tenant_id": tenant});
        let (status, answer) = self.post("/nodes/batch", &body).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
        let results = answer["results"].as_array().unwrap();
        results.iter().map(|result| result["id"].as_str().unwrap().to_owned()).collect()
    }

    /// The node with its vector.
    pub async fn node(&self, id: &str) -> Value {
        self.get(&format!("/nodes/{id}?include_embedding=true")).await.1
    }

    /// `GET /admin/embedding/status`.
    pub async fn status(&self) -> Value {
        self.get("/admin/embedding/status").await.1
    }

    /// The nodes in a status, as `GET /nodes` lists them; at most 500.
    pub async fn nodes_in(&self, status: &str) -> Vec<Value> {
        let (_, page) = self.get(&format!("/nodes?limit=500&status={status}")).await;
        page["nodes"].as_array().unwrap_or_else(|| panic!("{page}")).clone()
    }

    /// How many nodes are in a status; 0 while the server cannot say.
    pub async fn count(&self, status: &str) -> u64 {
        self.status().await["status_counts"][status].as_u64().unwrap_or(0)
    }

    /// Waits until no node is queued or processing and no job is live; the counts by status.
    pub async fn settled(&self, deadline: Duration) -> Value {
        wait_until(deadline, async || {
            let status = self.status().await;
            let none = |part: &str, names: &[&str]| names.iter().all(|n| status[part][n] == 0);
            none("status_counts", &["queued", "processing"])
                && none("queue", &["queue", "retry", "inflight"])
        })
        .await;
        self.status().await["status_counts"].clone()
    }
}
