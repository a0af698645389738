//! Every Redis command and Lua script of the program.
//!
//! Each change of a job's state is one script, so that list, retry set, pending keys, tenant
//! counts and leases change together or not at all. All methods may fail with
//! [`QueueError::Unavailable`], after which the outcome of a write is unknown: a claim that was
//! not heard of runs out with its lease, anything else is mended by the sweep.

mod admission;
mod connect;
mod private_redis;
mod repair;
mod sample;
mod scripts;
mod work;

use std::time::Duration;

use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::{ClientLike, KeysInterface, ListInterface, LuaInterface},
    types::{FromValue, Key, Value, lists::LMoveDirection},
};

use tracing::debug;

pub use admission::{Admission, Enqueued, Limits, Reservation};
pub use private_redis::{PrivateRedis, PrivateRedisError};
pub use repair::{Expired, Lock, Recount};
pub use work::{Claimed, DeadLetter, Lease, TenantLimits};

use crate::config::QueueConfig;
use scripts::Scripts;

/// The queue: one multiplexed connection for commands, one for waiting.
pub struct Queue {
    client: Client,
    waiter: Client,
    keys: Keys,
    scripts: Scripts,
    dlq_max: u64,
}

/// The names of the keys.
struct Keys {
    queue: String,
    locks: [String; 2],
    pending_prefix: String,
    tenant_prefix: String,
    /// What every script gets as KEYS.
    for_scripts: Vec<Key>,
}

impl Keys {
    fn new(config: &QueueConfig) -> Self {
        let ours = |name: &str| format!("{}:{name}", config.queue_key);
        let names = [
            config.queue_key.clone(),
            config.retry_key.clone(),
            config.dlq_key.clone(),
            ours("inflight"),
            ours("leases"),
            ours("reservations"),
            ours("fair"),
            ours("orphans"),
            ours("started"),
            ours("changed"),
            ours("sweep-lock"),
            ours("reclaim-lock"),
        ];
        Self {
            queue: config.queue_key.clone(),
            locks: [ours("sweep-lock"), ours("reclaim-lock")],
            pending_prefix: config.pending_prefix.clone(),
            tenant_prefix: config.tenant_pending_prefix.clone(),
            for_scripts: names.into_iter().map(Key::from).collect(),
        }
    }
}

/// Depths of the queue's structures.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Depths {
    /// Jobs waiting to be claimed.
    pub queue: u64,
    /// Jobs waiting for their next attempt.
    pub retry: u64,
    /// Dead letters.
    pub dlq: u64,
    /// Jobs under a lease.
    pub inflight: u64,
    /// When the oldest of the jobs next in line was first enqueued, in Unix seconds.
    pub oldest_enqueued_at: Option<f64>,
}

/// Why the queue did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Redis cannot be reached or does not answer; the same call may succeed later.
    #[error("Redis is not available")]
    Unavailable(#[source] Error),
    /// One of our keys holds another type than it must; work that needs it goes on when that is
    /// mended.
    #[error("the Redis key {0}: rename or delete that key")]
    WrongType(String),
    /// Redis refused a command.
    #[error("Redis refused a command")]
    Refused(#[source] Error),
    /// The configuration or the server cannot be used.
    #[error("{0}")]
    Setup(String),
}

impl From<Error> for QueueError {
    fn from(error: Error) -> Self {
        // A server that is loading, failing over, busy or full answers with an error line, and
        // will do better later. Redis 6.2 wraps the errors of commands in a script.
        const PASSING: [&str; 8] = [
            "LOADING",
            "READONLY",
            "MASTERDOWN",
            "CLUSTERDOWN",
            "BUSY",
            "OOM",
            "MISCONF",
            "NOREPLICAS",
        ];
        // So the client answers commands that wait for a connection when that is made anew.
        const NOT_SENT: [&str; 3] =
            ["Failed to route", "Too many failed write attempts", "channel closed"];
        let details = error.details();
        // A wrapped error of a script of ours, or of one that a server of 6.2 wraps.
        if let Some((_, misuse)) = details.split_once("WRONGTYPE ")
            && misuse.contains("must hold")
        {
            return Self::WrongType(misuse.to_owned());
        }
        let passing = PASSING
            .iter()
            .any(|code| details.starts_with(code) || details.contains(&format!("-{code} ")))
            || NOT_SENT.iter().any(|words| details.contains(words));
        match error.kind() {
            ErrorKind::IO
            | ErrorKind::Timeout
            | ErrorKind::Canceled
            | ErrorKind::Backpressure
            | ErrorKind::Sentinel
            | ErrorKind::Routing => Self::Unavailable(error),
            _ if passing => Self::Unavailable(error),
            _ => Self::Refused(error),
        }
    }
}

/// How much longer than it should a wait for a job may take.
const WAITER_PATIENCE: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How many of the jobs next in line are looked at for their age.
const AGE_SAMPLE: u64 = 16;

impl Queue {
    /// Runs a script with the common keys and arguments before its own.
    async fn run<R: FromValue>(
        &self,
        script: &fred::types::scripts::Script,
        args: Vec<Value>,
    ) -> Result<R, QueueError> {
        let mut all = Vec::with_capacity(args.len() + 2);
        all.push(Value::from(self.keys.pending_prefix.as_str()));
        all.push(Value::from(self.keys.tenant_prefix.as_str()));
        all.extend(args);
        Ok(script.evalsha_with_reload(&self.client, self.keys.for_scripts.clone(), all).await?)
    }

    /// Whether Redis answers.
    pub async fn ping(&self) -> Result<(), QueueError> {
        Ok(self.client.ping::<()>(None).await?)
    }

    /// Waits until a job is in the queue, at most for `timeout`. Takes nothing.
    pub async fn wait_for_job(&self, timeout: Duration) -> Result<(), QueueError> {
        // Moving the rightmost entry to where it is changes nothing, and blocks while there is
        // none: a wake-up that works for foreign producers too. Zero would block for ever.
        let seconds = timeout.as_secs_f64().max(0.01);
        let queue = self.keys.queue.as_str();
        let blmove = self.waiter.blmove::<Value, _, _>(
            queue,
            queue,
            LMoveDirection::Right,
            LMoveDirection::Right,
            seconds,
        );
        match tokio::time::timeout(timeout + WAITER_PATIENCE, blmove).await {
            // So the client reports the end of the wait; it has no time-out of its own.
            Ok(Err(error)) if *error.kind() == ErrorKind::Timeout => Ok(()),
            Ok(waited) => Ok(waited.map(drop)?),
            // Without a connection the client holds the command back, and has no time-out for it.
            Err(_) => Err(QueueError::Unavailable(Error::new(ErrorKind::Timeout, "no connection"))),
        }
    }

    /// How many jobs are where.
    pub async fn depths(&self) -> Result<Depths, QueueError> {
        let args = vec![AGE_SAMPLE.to_string().into()];
        let (queue, retry, dlq, inflight, oldest): (u64, u64, u64, u64, String) =
            self.run(&self.scripts.depths, args).await?;
        Ok(Depths { queue, retry, dlq, inflight, oldest_enqueued_at: oldest.parse().ok() })
    }

    /// Whether each of our keys holds what it must.
    ///
    /// # Errors
    /// [`QueueError::WrongType`] names all that do not.
    pub async fn check_keys(&self) -> Result<(), QueueError> {
        let misused: Vec<String> = self.run(&self.scripts.misused, Vec::new()).await?;
        if misused.is_empty() {
            return Ok(());
        }
        Err(QueueError::WrongType(misused.join("; ")))
    }

    /// Of these nodes, those that have no live job.
    pub async fn without_job(&self, nodes: &[uuid::Uuid]) -> Result<Vec<uuid::Uuid>, QueueError> {
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<String> =
            nodes.iter().map(|node| format!("{}:{node}", self.keys.pending_prefix)).collect();
        let pending: Vec<Option<String>> = self.client.mget(keys).await?;
        Ok(nodes
            .iter()
            .zip(pending)
            .filter_map(|(node, pending)| pending.is_none().then_some(*node))
            .collect())
    }

    /// Closes both connections, as far as that is possible in a second. Nothing is lost when a
    /// connection does not close in good order.
    pub async fn close(&self) {
        let quit = async { tokio::join!(self.client.quit(), self.waiter.quit()) };
        if tokio::time::timeout(CLOSE_TIMEOUT, quit).await.is_err() {
            debug!("the connections to Redis end with the process");
        }
    }
}

/// Loads all scripts, so that the first jobs do not wait for it.
async fn load(client: &Client, scripts: &Scripts) -> Result<(), QueueError> {
    for script in scripts.all() {
        let source = script.lua().cloned().unwrap_or_default();
        client.script_load::<(), _>(source).await?;
    }
    Ok(())
}
