//! What is broken in a run: processes of ours, and the stores that they work on.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use reqwest::{Client, StatusCode};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    common::{
        Program, TestPostgres, TestRedis, connect, end_private_redis, private_redis_cli, redis_cli,
        wait_until,
    },
    faulty,
};

/// For whatever a healthy site does by itself.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Lines of the log of each process that a failed run shows.
const LINES_SHOWN: usize = 25;
/// The key of ours that stays at rest: dead letters.
const KEPT: &str = "embedding:dlq";

/// The two pairs of stores.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stores {
    /// `serve` with SQLite and a private Redis.
    Private,
    /// `api` and `worker` with Postgres and Redis.
    Shared,
}

impl Stores {
    pub fn name(self) -> &'static str {
        match self {
            Self::Private => "SQLite, private Redis",
            Self::Shared => "Postgres, Redis",
        }
    }
}

/// A directory, the stores, and the processes on them.
pub struct Site {
    pub stores: Stores,
    /// The external Redis; none for `serve` with its own.
    pub redis_server: Option<TestRedis>,
    pub dsn: String,
    dir: TempDir,
    settings: Vec<(String, String)>,
    /// Every process that was started, with what it printed; those that ended too.
    programs: Vec<Program>,
    client: Client,
}

/// A process of a site.
pub type Process = usize;

impl Site {
    /// Stores in good order, and no process yet.
    pub async fn new(stores: Stores, settings: &[(&str, &str)]) -> Self {
        match stores {
            Stores::Private => {
                let dir = tempfile::tempdir().unwrap();
                let dsn = format!("sqlite://{}", dir.path().join("vecmill.db").display());
                Self::on(stores, dir, None, dsn, settings)
            }
            Stores::Shared => {
                let dsn = TestPostgres::shared().database().await;
                let redis = TestRedis::start_persistent();
                Self::on(stores, tempfile::tempdir().unwrap(), Some(redis), dsn, settings)
            }
        }
    }

    /// The same on stores of the caller's own.
    pub fn on(
        stores: Stores,
        dir: TempDir,
        redis_server: Option<TestRedis>,
        dsn: String,
        settings: &[(&str, &str)],
    ) -> Self {
        let mut all = vec![
            ("ACTIVEKG_DSN".to_owned(), dsn.clone()),
            ("EMBEDDING_BATCH_TEXTS".to_owned(), "8".to_owned()),
            ("EMBEDDING_QUEUE_MAX_DEPTH".to_owned(), "100000".to_owned()),
            ("EMBEDDING_TENANT_MAX_PENDING".to_owned(), "0".to_owned()),
            // The checker counts what a model was given.
            ("RUST_LOG".to_owned(), "warn,vecmill=info,vecmill::runtime::finish=debug".to_owned()),
        ];
        if let Some(redis) = &redis_server {
            all.push(("REDIS_URL".to_owned(), redis.url()));
        }
        for (name, value) in settings {
            all.retain(|(known, _)| known != name);
            all.push(((*name).to_owned(), (*value).to_owned()));
        }
        let client = Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
        Self { stores, redis_server, dsn, dir, settings: all, programs: Vec::new(), client }
    }

    /// What the site stands on, for the table.
    pub fn name(&self) -> &'static str {
        match (self.stores, self.dsn.starts_with("sqlite:")) {
            (Stores::Shared, true) => "SQLite, Redis",
            (stores, _) => stores.name(),
        }
    }

    /// Replaces a part of the settings' values, for processes started from now on.
    pub fn change_settings(&mut self, from: &str, to: &str) {
        for (_, value) in &mut self.settings {
            *value = value.replace(from, to);
        }
    }

    /// Starts the program as it is, with the `hash` model.
    pub fn start(&mut self, role: &str) -> Process {
        self.start_with(role, &[])
    }

    /// The same with further settings.
    pub fn start_with(&mut self, role: &str, more: &[(&str, &str)]) -> Process {
        let mut settings = self.settings(more);
        settings.push(("EMBEDDING_BACKEND", "hash"));
        let program = Program::start(role, self.dir.path(), &settings);
        self.programs.push(program);
        self.programs.len() - 1
    }

    /// Starts `serve` or `worker` with the faulty model, each batch of which takes `batch_time`.
    pub fn start_faulty(
        &mut self,
        role: &str,
        batch_time: Duration,
        more: &[(&str, &str)],
    ) -> Process {
        let program = faulty::start(role, batch_time, self.dir.path(), &self.settings(more));
        self.programs.push(program);
        self.programs.len() - 1
    }

    fn settings<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let own = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let own = own.filter(|(name, _)| more.iter().all(|(other, _)| other != name));
        own.chain(more.iter().copied()).collect()
    }

    /// Starts the process that works, and for [`Stores::Shared`] first one that takes nodes in.
    /// Answers the process that works and the URL.
    pub async fn start_all(&mut self, batch_time: Duration) -> (Process, String) {
        match self.stores {
            Stores::Private => {
                let serve = self.start_faulty("serve", batch_time, &[]);
                (serve, self.url(serve).await)
            }
            Stores::Shared => {
                let api = self.start("api");
                let url = self.url(api).await;
                (self.start_faulty("worker", batch_time, &[]), url)
            }
        }
    }

    /// Starts another process of the kind that works.
    pub fn start_worker(&mut self, batch_time: Duration) -> Process {
        let role = match self.stores {
            Stores::Private => "serve",
            Stores::Shared => "worker",
        };
        self.start_faulty(role, batch_time, &[])
    }

    pub fn program(&mut self, process: Process) -> &mut Program {
        &mut self.programs[process]
    }

    /// Where a process listens, once it does.
    pub async fn url(&self, process: Process) -> String {
        self.programs[process].url().await
    }

    /// Sends a command, given as words, to the Redis of the site; see [`TestRedis::cli`].
    pub fn redis(&self, command: &str) -> String {
        self.try_redis(command).expect("Redis answers")
    }

    fn try_redis(&self, command: &str) -> std::io::Result<String> {
        let words: Vec<&str> = command.split(' ').collect();
        match &self.redis_server {
            Some(redis) => redis_cli(TcpStream::connect(("127.0.0.1", redis.port()))?, &words),
            None => private_redis_cli(self.dir.path(), &words),
        }
    }

    /// Whether the Redis of the site answers.
    pub fn redis_answers(&self) -> bool {
        self.try_redis("PING").is_ok_and(|answer| answer == "PONG")
    }

    /// The keys of ours that no site at rest has.
    pub fn redis_keys(&self) -> Vec<String> {
        let keys = self.redis("KEYS embedding:*");
        keys.lines().filter(|&key| key != KEPT).map(str::to_owned).collect()
    }

    /// Texts that models gave vectors for, by the logs of all processes.
    pub fn embedded(&self) -> usize {
        let logs = self.programs.iter().map(Program::stderr);
        logs.map(|log| {
            log.lines()
                .filter_map(|line| line.split_once("a batch was embedded texts="))
                .map(|(_, rest)| rest.split(' ').next().unwrap().parse::<usize>().unwrap())
                .sum::<usize>()
        })
        .sum()
    }

    /// Whether the log of a process has these words by now.
    pub fn has_logged(&self, process: Process, words: &str) -> bool {
        self.programs[process].stderr().contains(words)
    }

    /// POSTs nodes with these texts; their ids, or why there are none.
    pub async fn try_ingest(&self, url: &str, texts: &[String]) -> Result<Vec<String>, String> {
        let nodes: Vec<Value> = texts
            .iter()
            .enumerate()
            .map(|(i, text)| {
                json!({"classes": ["Test"], "props": {"text": text},
                       "tenant_id": format!("tenant-{}", i % 5)})
            })
            .collect();
        let request = self.client.post(format!("{url}/nodes/batch")).json(&json!({"nodes": nodes}));
        let response = request.send().await.map_err(|error| error.to_string())?;
        let status = response.status();
        let answer: Value = response.json().await.map_err(|error| error.to_string())?;
        if status != StatusCode::ACCEPTED {
            return Err(format!("{status}: {answer}"));
        }
        let results = answer["results"].as_array().unwrap();
        Ok(results.iter().map(|result| result["id"].as_str().unwrap().to_owned()).collect())
    }

    /// POSTs nodes with these texts, as many in a request as is allowed; their ids.
    pub async fn ingest(&self, url: &str, texts: &[String]) -> Vec<String> {
        let mut ids = Vec::with_capacity(texts.len());
        for texts in texts.chunks(200) {
            ids.extend(self.try_ingest(url, texts).await.unwrap());
        }
        ids
    }

    /// A client for the other calls.
    pub fn http(&self) -> &Client {
        &self.client
    }

    /// A connection of the tests' own to the database of the site.
    pub async fn database(&self) -> DatabaseConnection {
        connect(&self.dsn, 1).await.unwrap()
    }

    /// A view of how many rows are `ready`.
    pub async fn progress(&self) -> Progress {
        Progress { db: self.database().await }
    }
}

impl Drop for Site {
    /// Ends all processes, also the Redis of a `serve` that was killed; shows what those of a
    /// failed run said last.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        self.programs.clear();
        if self.stores == Stores::Private {
            end_private_redis(self.dir.path());
        }
    }
}

impl Site {
    fn show_logs(&self) {
        for (process, program) in self.programs.iter().enumerate() {
            let log = program.stderr();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
            println!("process {process} said last:\n{}", last.join("\n"));
        }
    }
}

/// How far the work has come, by the database itself.
pub struct Progress {
    db: DatabaseConnection,
}

impl Progress {
    /// Rows that are `ready`, and rows in all; none while the database does not answer.
    async fn counts(&self) -> Option<(u64, u64)> {
        let query =
            "SELECT count(*) FILTER (WHERE embedding_status = 'ready'), count(*) FROM nodes";
        let statement = Statement::from_string(self.db.get_database_backend(), query);
        let row = self.db.query_one_raw(statement).await.ok()??;
        let count = |column| row.try_get_by_index::<i64>(column).unwrap() as u64;
        Some((count(0), count(1)))
    }

    /// Rows that are `ready`; none while the database does not answer.
    pub async fn ready(&self) -> Option<u64> {
        self.counts().await.map(|(ready, _)| ready)
    }

    /// Waits until so many rows are `ready`.
    pub async fn reach(&self, nodes: u64) {
        wait_until(DEADLINE, async || self.ready().await.is_some_and(|ready| ready >= nodes)).await;
    }

    /// Waits for the next row to become `ready`; how long that took since `fault_gone`, or `None`
    /// if all rows are.
    pub async fn recovery(&self, fault_gone: Instant) -> Option<Duration> {
        let mut counts = None;
        wait_until(DEADLINE, async || {
            counts = self.counts().await;
            counts.is_some()
        })
        .await;
        let (ready, all) = counts.unwrap();
        if ready == all {
            return None;
        }
        self.reach(ready + 1).await;
        Some(fault_gone.elapsed())
    }
}

/// Texts of one to seven words, so that batches are not in the order of the queue. No two are
/// equal.
pub fn texts(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("text{i}{}", " word".repeat(i % 7))).collect()
}
