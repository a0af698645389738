//! Configuration: environment variables and flags, checked once at the start.

mod foreign;
mod http;
mod memory;
mod model;
mod parse;
mod settings;
mod texts;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

pub use foreign::not_honoured;
pub use http::HttpOptions;
pub use model::{ModelOptions, ModelSettings};
pub use parse::ConfigError;
pub use settings::Settings;
pub use texts::{TextOptions, TextSettings};

use crate::domain::RetryPolicy;

/// Everything that an operator can set, checked.
#[derive(Clone)]
pub struct Config {
    /// Whether nodes are queued (true) or embedded before the answer is sent.
    pub is_async: bool,
    /// The SQLite file and the private Redis live here.
    pub data_dir: PathBuf,
    /// Of Postgres or SQLite; holds a password, never log it.
    pub dsn: String,
    /// The variable that the DSN comes from.
    pub dsn_variable: &'static str,
    /// How long the start waits for stores that are away.
    pub start_patience: Duration,
    /// Redis.
    pub queue: QueueConfig,
    /// The HTTP server.
    pub http: HttpConfig,
    /// The model.
    pub model: ModelSettings,
    /// What is embedded of a node.
    pub texts: TextSettings,
    /// The workers.
    pub worker: WorkerConfig,
    /// Within which time a shutdown finishes work in hand or hands it back.
    pub shutdown_grace: Duration,
}

/// How to reach the queue, what its keys are called and how much it holds.
#[derive(Clone)]
pub struct QueueConfig {
    /// Unset: a private server. Holds a password, never log it.
    pub redis_url: Option<String>,
    /// The main list.
    pub queue_key: String,
    /// Delayed retries.
    pub retry_key: String,
    /// Dead letters.
    pub dlq_key: String,
    /// Prefix of the keys that mark a node's live job.
    pub pending_prefix: String,
    /// Prefix of the tenants' counts.
    pub tenant_pending_prefix: String,
    /// Live jobs above which ingest answers 429.
    pub max_depth: u64,
    /// Live jobs of one tenant above which ingest answers 429; 0: no limit.
    pub tenant_max_pending: u64,
    /// Dead letters kept.
    pub dlq_max: u64,
}

/// The HTTP server.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Where it listens.
    pub bind: SocketAddr,
    /// The variable that says so.
    pub bind_variable: &'static str,
    /// Names, in lower case, by which it may be called besides its address and localhost.
    pub allowed_hosts: Vec<String>,
    /// Whether others may reach it although there is no authentication.
    pub insecure: bool,
    /// Whether it answers as clients of ActiveKG expect.
    pub activekg: bool,
    /// Bytes of a request body at most.
    pub body_limit: usize,
    /// Bytes of the JSON of a stored node at most.
    pub node_bytes: usize,
    /// Nodes in one batch request at most.
    pub batch_max: usize,
    /// Connections at most.
    pub connections_max: usize,
    /// Bytes that the bodies of requests may take together.
    pub memory: usize,
}

/// How workers take and do their work.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The longest that an idle worker sleeps before it looks again.
    pub poll_interval: Duration,
    /// How long a claim holds without being extended.
    pub lease: Duration,
    /// Between two sweeps.
    pub sweep_interval: Duration,
    /// A pending key without a job may be a foreign consumer's for this long.
    pub orphan_after: Duration,
    /// Jobs of one tenant that a process works on at once; 0: no limit.
    pub tenant_max_inflight: usize,
    /// Tokens in one batch, padding included.
    pub batch_tokens: usize,
    /// Texts in one batch.
    pub batch_texts: usize,
    /// The longest that a model may take for a batch, before it is given up.
    pub batch_timeout: Duration,
    /// Bytes of texts that are read from the database at once.
    pub text_bytes: usize,
    /// Whether texts that were embedded before take their vector from the database.
    pub cache: bool,
    /// Embedders.
    pub replicas: usize,
    /// When failed jobs are tried again.
    pub retry: RetryPolicy,
}
