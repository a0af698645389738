//! The variables and flags as given, and what becomes of them.

use std::{path::Path, time::Duration};

use super::{
    Config, ConfigError, HttpOptions, ModelOptions, QueueConfig, TextOptions, WorkerConfig,
    parse::{self, check},
};
use crate::domain::RetryPolicy;

/// Of the memory, what texts may take that are read at once: of an eighth, two claims have a part each,
/// and a text is there up to three times.
const TEXTS_PART: usize = 8 * 2 * 3;

/// Environment variables; each is also a flag. Values stay text here, so that a bad one gets an
/// error of our own that names the variable.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct Settings {
    /// Queue nodes and embed them in the background; false: embed before the answer is sent,
    /// without Redis
    #[arg(long, env = "EMBEDDING_ASYNC", default_value = "true", value_name = "BOOL")]
    embedding_async: String,
    /// redis://, rediss://, redis-sentinel:// or unix:; unset: a private redis-server
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    redis_url: Option<String>,
    /// postgresql://, host=… dbname=… or sqlite://; unset: DATABASE_URL, then SQLite in the data directory
    #[arg(long, env = "ACTIVEKG_DSN", hide_env_values = true, value_name = "DSN")]
    activekg_dsn: Option<String>,
    /// Another name of ACTIVEKG_DSN
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "DSN")]
    database_url: Option<String>,
    /// Directory of the SQLite file and the private Redis
    #[arg(long, env = "VECMILL_DATA_DIR", default_value = "./data", value_name = "DIR")]
    vecmill_data_dir: String,
    #[command(flatten)]
    http: HttpOptions,
    /// Seconds within which a shutdown finishes work in hand or hands it back
    #[arg(long, env = "VECMILL_SHUTDOWN_GRACE", default_value = "30", value_name = "SECONDS")]
    vecmill_shutdown_grace: String,
    /// Seconds for which the start waits for a database or Redis that is away; 0: not at all
    #[arg(long, env = "VECMILL_START_PATIENCE", default_value = "60", value_name = "SECONDS")]
    vecmill_start_patience: String,
    /// Jobs in queue, in flight and waiting for a retry above which ingest answers 429
    #[arg(long, env = "EMBEDDING_QUEUE_MAX_DEPTH", default_value = "5000", value_name = "JOBS")]
    embedding_queue_max_depth: String,
    /// Live jobs of one tenant above which ingest answers 429; 0: no limit
    #[arg(long, env = "EMBEDDING_TENANT_MAX_PENDING", default_value = "2000", value_name = "JOBS")]
    embedding_tenant_max_pending: String,
    /// Jobs of one tenant that a worker process has in hand at once; 0: no limit
    #[arg(long, env = "EMBEDDING_TENANT_MAX_INFLIGHT", default_value = "0", value_name = "JOBS")]
    embedding_tenant_max_inflight: String,
    /// Dead letters kept
    #[arg(long, env = "EMBEDDING_DLQ_MAX", default_value = "10000", value_name = "JOBS")]
    embedding_dlq_max: String,
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    texts: TextOptions,
    /// Embedders in a worker process
    #[arg(long, env = "EMBEDDING_REPLICAS", default_value = "1", value_name = "N")]
    embedding_replicas: String,
    /// Tokens in one batch, padding included
    #[arg(long, env = "EMBEDDING_BATCH_TOKENS", default_value = "4096", value_name = "TOKENS")]
    embedding_batch_tokens: String,
    /// Texts in one batch
    #[arg(long, env = "EMBEDDING_BATCH_TEXTS", default_value = "64", value_name = "TEXTS")]
    embedding_batch_texts: String,
    /// The longest that a model may take for a batch; then its Embedder is replaced
    #[arg(
        long,
        env = "EMBEDDING_BATCH_TIMEOUT_SECONDS",
        default_value = "120",
        value_name = "SECONDS"
    )]
    embedding_batch_timeout_seconds: String,
    /// Take the vectors of texts that were embedded before from the database
    #[arg(long, env = "EMBEDDING_CACHE", default_value = "true", value_name = "BOOL")]
    embedding_cache: String,
    /// Attempts before a job is failed for good
    #[arg(long, env = "EMBEDDING_MAX_ATTEMPTS", default_value = "5", value_name = "N")]
    embedding_max_attempts: String,
    /// Delay after the first failed attempt; doubles with each further one
    #[arg(
        long,
        env = "EMBEDDING_RETRY_BASE_SECONDS",
        default_value = "10",
        value_name = "SECONDS"
    )]
    embedding_retry_base_seconds: String,
    /// The longest delay between attempts
    #[arg(
        long,
        env = "EMBEDDING_RETRY_MAX_SECONDS",
        default_value = "300",
        value_name = "SECONDS"
    )]
    embedding_retry_max_seconds: String,
    /// The longest that an idle worker sleeps before it looks again
    #[arg(
        long,
        env = "EMBEDDING_WORKER_POLL_INTERVAL",
        default_value = "1.0",
        value_name = "SECONDS"
    )]
    embedding_worker_poll_interval: String,
    /// How long a claimed job is safe from other workers without a sign of life
    #[arg(long, env = "EMBEDDING_LEASE_SECONDS", default_value = "30", value_name = "SECONDS")]
    embedding_lease_seconds: String,
    /// Between two sweeps for lost jobs
    #[arg(
        long,
        env = "EMBEDDING_SWEEP_INTERVAL_SECONDS",
        default_value = "30",
        value_name = "SECONDS"
    )]
    embedding_sweep_interval_seconds: String,
    /// How long a foreign consumer may take for a job
    #[arg(long, env = "EMBEDDING_ORPHAN_SECONDS", default_value = "600", value_name = "SECONDS")]
    embedding_orphan_seconds: String,
    /// Name of the main queue
    #[arg(
        long,
        env = "EMBEDDING_QUEUE_KEY",
        default_value = "embedding:queue",
        value_name = "KEY"
    )]
    embedding_queue_key: String,
    /// Name of the retry set
    #[arg(
        long,
        env = "EMBEDDING_RETRY_KEY",
        default_value = "embedding:retry",
        value_name = "KEY"
    )]
    embedding_retry_key: String,
    /// Name of the dead-letter list
    #[arg(long, env = "EMBEDDING_DLQ_KEY", default_value = "embedding:dlq", value_name = "KEY")]
    embedding_dlq_key: String,
    /// Prefix of the keys that mark a node's live job
    #[arg(
        long,
        env = "EMBEDDING_PENDING_PREFIX",
        default_value = "embedding:pending",
        value_name = "PREFIX"
    )]
    embedding_pending_prefix: String,
    /// Prefix of the counts of the tenants' live jobs
    #[arg(
        long,
        env = "EMBEDDING_TENANT_PENDING_PREFIX",
        default_value = "embedding:tenant:pending",
        value_name = "PREFIX"
    )]
    embedding_tenant_pending_prefix: String,
}

impl Settings {
    /// Checks every value.
    pub fn check(&self) -> Result<Config, ConfigError> {
        let data_dir = check!(self.vecmill_data_dir, directory);
        let longest_delay = check!(self.embedding_retry_max_seconds, seconds, parse::SECONDS);
        let (dsn_variable, dsn) = self.dsn(&data_dir)?;
        let http = self.http.check()?;
        Ok(Config {
            is_async: check!(self.embedding_async, boolean),
            dsn,
            dsn_variable,
            start_patience: check!(self.vecmill_start_patience, seconds, 0.0..=86_400.0),
            queue: self.queue()?,
            model: self.model.check()?,
            texts: self.texts.check()?,
            worker: WorkerConfig {
                poll_interval: check!(self.embedding_worker_poll_interval, seconds, 0.01..=60.0),
                lease: check!(self.embedding_lease_seconds, seconds, 0.5..=3600.0),
                sweep_interval: check!(
                    self.embedding_sweep_interval_seconds,
                    seconds,
                    0.1..=3600.0
                ),
                orphan_after: check!(self.embedding_orphan_seconds, seconds, parse::SECONDS),
                tenant_max_inflight: check!(
                    self.embedding_tenant_max_inflight,
                    integer,
                    0..=1_000_000
                ) as usize,
                batch_tokens: check!(self.embedding_batch_tokens, integer, 16..=1 << 20) as usize,
                batch_texts: check!(self.embedding_batch_texts, integer, 1..=4096) as usize,
                batch_timeout: check!(
                    self.embedding_batch_timeout_seconds,
                    seconds,
                    0.1..=86_400.0
                ),
                text_bytes: http.memory / TEXTS_PART,
                cache: check!(self.embedding_cache, boolean),
                replicas: check!(self.embedding_replicas, integer, 1..=64) as usize,
                retry: RetryPolicy {
                    max_attempts: check!(self.embedding_max_attempts, integer, 1..=1000) as u32,
                    base: check!(self.embedding_retry_base_seconds, seconds, parse::SECONDS),
                    max: longest_delay,
                },
            },
            http,
            shutdown_grace: check!(self.vecmill_shutdown_grace, seconds, 0.0..=3600.0),
            data_dir,
        })
    }

    /// The DSN, and the variable that it comes from.
    fn dsn(&self, data_dir: &Path) -> Result<(&'static str, String), ConfigError> {
        for (variable, dsn) in
            [("ACTIVEKG_DSN", &self.activekg_dsn), ("DATABASE_URL", &self.database_url)]
        {
            if let Some(dsn) = dsn.as_deref().filter(|dsn| !dsn.is_empty()) {
                return Ok((variable, parse::dsn(variable, dsn)?));
            }
        }
        Ok(("VECMILL_DATA_DIR", own_database(data_dir)))
    }

    /// A key that another setting's prefix takes for one of its own would be counted, or removed,
    /// as such.
    fn keys_are_apart(&self) -> Result<(), ConfigError> {
        let names = [
            ("EMBEDDING_QUEUE_KEY", &self.embedding_queue_key),
            ("EMBEDDING_RETRY_KEY", &self.embedding_retry_key),
            ("EMBEDDING_DLQ_KEY", &self.embedding_dlq_key),
            ("EMBEDDING_PENDING_PREFIX", &self.embedding_pending_prefix),
            ("EMBEDDING_TENANT_PENDING_PREFIX", &self.embedding_tenant_pending_prefix),
        ];
        for (i, (variable, name)) in names.iter().enumerate() {
            for (other, other_name) in
                names.iter().enumerate().filter(|&(j, _)| i != j).map(|n| n.1)
            {
                if name == other_name || other_name.starts_with(&format!("{name}:")) {
                    let allowed = format!("{other} must be another key, and not begin with it");
                    return Err(ConfigError::new(variable, name, allowed));
                }
            }
        }
        Ok(())
    }

    fn queue(&self) -> Result<QueueConfig, ConfigError> {
        let redis_url = match self.redis_url.as_deref() {
            None | Some("") => None,
            Some(url) => Some(parse::redis_url("REDIS_URL", url)?),
        };
        self.keys_are_apart()?;
        Ok(QueueConfig {
            redis_url,
            queue_key: check!(self.embedding_queue_key, key),
            retry_key: check!(self.embedding_retry_key, key),
            dlq_key: check!(self.embedding_dlq_key, key),
            pending_prefix: check!(self.embedding_pending_prefix, key),
            tenant_pending_prefix: check!(self.embedding_tenant_pending_prefix, key),
            max_depth: check!(self.embedding_queue_max_depth, integer, 1..=100_000_000),
            tenant_max_pending: check!(self.embedding_tenant_max_pending, integer, 0..=100_000_000),
            dlq_max: check!(self.embedding_dlq_max, integer, 1..=100_000_000),
        })
    }
}

impl Settings {
    /// The settings of an empty environment, with `changes` (variable, value) applied.
    ///
    /// # Errors
    /// The first value that is not allowed.
    pub fn with(changes: &[(&str, &str)]) -> Result<Config, ConfigError> {
        use clap::{Args, FromArgMatches};

        let command = Self::augment_args(clap::Command::new("vecmill")).mut_args(|arg| {
            let without_environment: Option<&'static str> = None;
            arg.env(without_environment)
        });
        let arguments =
            std::iter::once("vecmill".to_owned()).chain(changes.iter().map(|(variable, value)| {
                format!("--{}={value}", variable.to_lowercase().replace('_', "-"))
            }));
        let matches = command
            .try_get_matches_from(arguments)
            .map_err(|error| ConfigError::new("flag", "", error.to_string()))?;
        Self::from_arg_matches(&matches)
            .map_err(|error| ConfigError::new("flag", "", error.to_string()))?
            .check()
    }
}

/// The DSN of the database that is used when no other is named.
fn own_database(data_dir: &Path) -> String {
    // The path becomes part of a URL.
    let path = data_dir.join("vecmill.db").display().to_string();
    format!("sqlite://{}", path.replace('%', "%25").replace('?', "%3F"))
}

/// Kept here beside the defaults it speaks of.
impl Config {
    /// Whether the database is the file in the data directory.
    pub fn has_own_database(&self) -> bool {
        self.dsn == own_database(&self.data_dir)
    }

    /// How long a client should wait after a 429 or 503.
    pub fn retry_after(&self) -> Duration {
        self.worker.poll_interval.max(Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = Settings::with(&[]).unwrap();
        assert!(config.is_async);
        assert_eq!(config.queue.redis_url, None);
        assert_eq!(config.dsn, "sqlite://./data/vecmill.db");
        assert_eq!(config.http.bind.to_string(), "127.0.0.1:8000");
        assert_eq!(config.queue.max_depth, 5000);
        assert_eq!(config.queue.tenant_max_pending, 2000);
        assert_eq!(config.http.batch_max, 200);
        assert_eq!(config.model.model, "all-MiniLM-L6-v2");
        assert_eq!(config.worker.retry.max_attempts, 5);
        assert_eq!(config.worker.retry.base, Duration::from_secs(10));
        assert_eq!(config.worker.retry.max, Duration::from_secs(300));
        assert_eq!(config.worker.poll_interval, Duration::from_secs(1));
        assert_eq!(config.queue.queue_key, "embedding:queue");
        assert_eq!(config.queue.tenant_pending_prefix, "embedding:tenant:pending");
    }

    #[test]
    fn a_bad_value_is_named_in_one_line() {
        for (variable, value) in [
            ("EMBEDDING_ASYNC", "maybe"),
            ("EMBEDDING_QUEUE_MAX_DEPTH", "-1"),
            ("NODE_BATCH_MAX", "0"),
            ("EMBEDDING_CACHE", "redis"),
            ("EMBEDDING_BACKEND", "onnx"),
            ("EMBEDDING_DEVICE", "tpu"),
            ("EMBEDDING_DTYPE", "f16"),
            ("EMBEDDING_KERNEL", "sse9"),
            ("EMBEDDING_THREADS", "-1"),
            ("EMBEDDING_MAX_ATTEMPTS", "1e9"),
            ("EMBEDDING_RETRY_BASE_SECONDS", "NaN"),
            ("VECMILL_BIND", "localhost"),
            ("EMBEDDING_QUEUE_KEY", ""),
            ("EMBEDDING_RETRY_KEY", " embedding:retry"),
            ("EMBEDDING_PENDING_PREFIX", "embedding"),
            ("EMBEDDING_DLQ_KEY", "embedding:queue"),
        ] {
            let error = Settings::with(&[(variable, value)]).err().unwrap().to_string();
            assert!(error.contains(variable) && error.contains(value), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_key_with_a_line_break_is_another_key_and_refused() {
        for value in ["embedding:queue\n", "embedding:queue\r", "q\u{7f}", "embedding:queue "] {
            let error = Settings::with(&[("EMBEDDING_QUEUE_KEY", value)]).err().unwrap();
            let error = error.to_string();
            assert!(error.contains("EMBEDDING_QUEUE_KEY") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_backend_has_two_names_for_candle() {
        for (name, is_hash) in [("candle", false), ("sentence-transformers", false), ("hash", true)]
        {
            let config = Settings::with(&[("EMBEDDING_BACKEND", name)]).unwrap();
            assert_eq!(config.model.hash_backend, is_hash, "{name}");
        }
    }

    #[test]
    fn secrets_are_not_repeated() {
        for (variable, value) in
            [("REDIS_URL", "http://:hunter2@host"), ("ACTIVEKG_DSN", "mysql://u:hunter2@host/db")]
        {
            let error = Settings::with(&[(variable, value)]).err().unwrap().to_string();
            assert!(error.contains(variable) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn both_names_of_the_database_work() {
        let dsn = |changes: &[_]| Settings::with(changes).unwrap().dsn;
        assert_eq!(dsn(&[("DATABASE_URL", "postgresql://h/b")]), "postgresql://h/b");
        for other in ["postgres+psycopg2://u:p@h/b", "host=h dbname=b", "host = h dbname=b"] {
            assert_eq!(dsn(&[("DATABASE_URL", other)]), other);
        }
        assert_eq!(
            dsn(&[("DATABASE_URL", "postgresql://h/b"), ("ACTIVEKG_DSN", "sqlite://a.db")]),
            "sqlite://a.db"
        );
    }
}
