//! What the operators' runbook says of the requeue calls and of the Redis commands.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "runbook/redis_commands.rs"]
mod redis_commands;
#[path = "runbook/requeue.rs"]
mod requeue;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{TestApp, TestRedis, faulty_model};
use sea_orm::{ConnectionTrait, Database};
use serde_json::Value;
use tempfile::TempDir;
use vecmill::{
    app::Role,
    inference::{EmbedError, Model},
};

const DEADLINE: Duration = Duration::from_secs(30);

/// A deployment on SQLite whose HTTP runs, and whose workers run when the test says so.
struct Deployment {
    redis: TestRedis,
    dir: TempDir,
    api: TestApp,
    settings: Vec<(&'static str, String)>,
    /// Whether the model fails on each text.
    is_broken: Arc<AtomicBool>,
    /// Texts that the model has seen.
    texts_seen: Arc<AtomicUsize>,
}

impl Deployment {
    /// Nothing but the operator mends anything: the sweep runs when a worker starts, and then
    /// not again.
    async fn start(settings: &[(&'static str, &str)]) -> Self {
        let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
        let mut all: Vec<(&str, String)> = vec![
            ("REDIS_URL", redis.url()),
            ("EMBEDDING_SWEEP_INTERVAL_SECONDS", "3600".to_owned()),
        ];
        all.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let api = TestApp::start(Role::Api, dir.path(), &as_strs(&all), None).await;
        let (is_broken, texts_seen) = (Arc::default(), Arc::default());
        Self { redis, dir, api, settings: all, is_broken, texts_seen }
    }

    async fn start_worker(&self) -> TestApp {
        let (settings, model) = (as_strs(&self.settings), Some(self.model()));
        TestApp::start(Role::Worker, self.dir.path(), &settings, model).await
    }

    fn model(&self) -> Model {
        let (is_broken, texts_seen) = (Arc::clone(&self.is_broken), Arc::clone(&self.texts_seen));
        faulty_model(move |batch| {
            texts_seen.fetch_add(batch.len(), Ordering::SeqCst);
            if is_broken.load(Ordering::SeqCst) {
                return Err(EmbedError::Model("planned".to_owned()));
            }
            Ok(())
        })
    }

    fn break_model(&self, is_broken: bool) {
        self.is_broken.store(is_broken, Ordering::SeqCst);
    }

    fn texts_seen(&self) -> usize {
        self.texts_seen.load(Ordering::SeqCst)
    }

    /// Changes the database behind Vecmill's back.
    async fn sql(&self, statement: &str) -> u64 {
        sql(self.dir.path(), statement).await
    }

    /// Sends the body of a requeue as the runbook has it; the answer.
    async fn requeue(&self, body: &str) -> Value {
        let body: Value = serde_json::from_str(body).unwrap();
        let (status, answer) = self.api.post("/admin/embedding/requeue", &body).await;
        assert_eq!(status.as_u16(), 200, "{answer}");
        answer
    }

    /// An answer of `redis-cli` that is a number.
    fn redis_number(&self, command: &[&str]) -> u64 {
        self.redis.cli(command).parse().unwrap()
    }

    /// `n` nodes of a tenant with a vector each, and a worker that is gone again.
    async fn ready_nodes(&self, tenant: &str, n: usize) -> Vec<String> {
        let ids = self.api.ingest(tenant, &texts(n)).await;
        let worker = self.start_worker().await;
        self.api.settled(DEADLINE).await;
        worker.stop().await;
        ids
    }

    async fn stop(self) {
        self.api.stop().await;
    }
}

async fn sql(dir: &Path, statement: &str) -> u64 {
    let dsn = format!("sqlite://{}", dir.join("vecmill.db").display());
    let db = Database::connect(dsn).await.unwrap();
    let changed = db.execute_unprepared(statement).await.unwrap().rows_affected();
    db.close().await.unwrap();
    changed
}

fn as_strs<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

fn texts(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("text number {i}")).collect()
}
