//! Requests that are refused, and an API whose stores are looked at.

use std::collections::BTreeMap;

use reqwest::{Client, Method, header::CONTENT_TYPE};
use serde_json::Value;
use vecmill::app::Role;

use crate::common::{TestApp, TestPostgres, TestRedis};

/// Stands in every refused body; no answer may repeat it.
pub const TEXT: &str = "a text that is nobody else's business";

/// A request that is refused.
pub struct Case {
    /// The method of the call.
    pub method: Method,
    /// The path, with its query.
    pub path: String,
    /// The content type; none is sent if it is empty.
    pub content_type: &'static str,
    /// The bytes of the body.
    pub body: Vec<u8>,
    /// The status of the answer.
    pub status: u16,
    /// What the detail must say; of a 422 it begins with the field.
    pub detail: &'static str,
}

impl Case {
    /// A call such as `POST /nodes` with a body that says it is JSON.
    pub fn new(call: &str, body: impl Into<Vec<u8>>, status: u16, detail: &'static str) -> Self {
        let (method, path) = call.split_once(' ').unwrap();
        Self {
            method: method.parse().unwrap(),
            path: path.to_owned(),
            content_type: "application/json",
            body: body.into(),
            status,
            detail,
        }
    }

    /// The same with a body that is JSON.
    pub fn json(call: &str, body: &Value, status: u16, detail: &'static str) -> Self {
        Self::new(call, body.to_string(), status, detail)
    }
}

/// The API on stores of its own, so that what a request leaves behind is seen.
pub struct Api {
    /// The API, without a worker.
    pub app: TestApp,
    redis: TestRedis,
    /// A client of it.
    pub client: Client,
    _dir: tempfile::TempDir,
}

impl Api {
    /// On the database of this DSN, or on SQLite.
    pub async fn on(dsn: Option<String>) -> Self {
        let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
        let url = redis.url();
        let mut settings = vec![("REDIS_URL", url.as_str())];
        settings.extend(dsn.as_deref().map(|dsn| ("ACTIVEKG_DSN", dsn)));
        let app = TestApp::start(Role::Api, dir.path(), &settings, None).await;
        // Neither store is empty, so that a request that deletes or changes is seen as well.
        app.ingest("acme", &["first".to_owned(), "second".to_owned()]).await;
        Self { app, redis, client: Client::new(), _dir: dir }
    }

    /// One on SQLite, one on Postgres.
    pub async fn on_each_database() -> [Self; 2] {
        let dsn = TestPostgres::shared().database().await;
        [Self::on(None).await, Self::on(Some(dsn)).await]
    }

    /// All rows, all keys, and all values that count or hold jobs.
    pub async fn contents(&self) -> (Value, BTreeMap<String, String>) {
        let rows = self.app.get("/nodes?limit=1000").await.1;
        let mut keys = BTreeMap::new();
        for key in self.redis.cli(&["KEYS", "*"]).lines() {
            let value = match self.redis.cli(&["TYPE", key]).as_str() {
                "string" => self.redis.cli(&["GET", key]),
                "list" => self.redis.cli(&["LRANGE", key, "0", "-1"]),
                other => other.to_owned(),
            };
            keys.insert(key.to_owned(), value);
        }
        (rows, keys)
    }

    /// Sends each request; each is refused as it says, and changes nothing.
    pub async fn refuses(&self, cases: Vec<Case>) {
        let before = self.contents().await;
        for case in cases {
            let Case { method, path, content_type, body, status, detail } = case;
            let shown: String = String::from_utf8_lossy(&body).chars().take(200).collect();
            let at = format!("{method} {path} {shown}");
            let mut request = self.client.request(method, format!("{}{path}", self.app.url()));
            if !content_type.is_empty() {
                request = request.header(CONTENT_TYPE, content_type);
            }
            let response = request.body(body).send().await.unwrap();
            let answered = response.status().as_u16();
            let text = response.text().await.unwrap();
            assert_eq!(answered, status, "{at}: {text}");
            assert!(!text.contains(TEXT), "{at}: {text}");
            let answer: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(answer.as_object().unwrap().len(), 1, "{at}: {text}");
            let said = answer["detail"].as_str().unwrap();
            let is_right =
                if status == 422 { said.starts_with(detail) } else { said.contains(detail) };
            assert!(is_right, "{at}: {said:?} does not say {detail:?}");
            assert_eq!(self.contents().await, before, "{at}");
        }
    }
}
