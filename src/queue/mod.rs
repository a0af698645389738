//! Every Redis command and Lua script of the program.
//!
//! Each change of a job's state is one script, so that list, retry set, pending keys, tenant
//! counts and leases change together or not at all. All methods may fail with
//! [`QueueError::Unavailable`], after which the outcome of a write is unknown: a claim that was
//! not heard of runs out with its lease, anything else is mended by the sweep.

mod address;
mod admission;
mod connect;
mod error;
mod link;
mod private_redis;
mod recount;
mod repair;
mod sample;
mod scripts;
mod work;

use std::{sync::atomic::AtomicU64, time::Duration};

use fred::{
    error::{Error, ErrorKind},
    interfaces::{ClientLike, KeysInterface, ListInterface},
    types::{FromValue, Key, Value, lists::LMoveDirection, scripts::Script},
};
use tokio::{sync::OnceCell, time::Instant};

pub use admission::{Admission, Enqueued, Limits, Reservation};
pub use error::{QueueError, Reason};
pub use private_redis::{PrivateRedis, PrivateRedisError};
pub use recount::{Counted, Recount, Structure};
pub use repair::{Expired, Lock};
pub use work::{Claimed, DeadLetter, Lease, TenantLimits};

use crate::config::QueueConfig;
use link::{Link, Recipe};
use scripts::Scripts;

/// The queue: one multiplexed connection for commands, one for waiting.
pub struct Queue {
    commands: Link,
    /// Made when somebody waits for the first time: who only takes nodes in never does.
    waiter: OnceCell<Link>,
    waiter_recipe: Recipe,
    keys: Keys,
    scripts: Scripts,
    dlq_max: u64,
    /// Entries that no claim has looked at yet, as the last one saw it.
    unread: AtomicU64,
}

/// The names of the keys.
struct Keys {
    queue: String,
    locks: [String; 2],
    /// Written and removed in one step, to see whether the server writes.
    probe: String,
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
            ours("clock"),
            ours("behind"),
            ours("retrying"),
        ];
        Self {
            queue: config.queue_key.clone(),
            locks: [ours("sweep-lock"), ours("reclaim-lock")],
            probe: ours("probe"),
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

/// How much longer than it should a wait for a job may take.
const WAITER_PATIENCE: Duration = Duration::from_secs(5);
/// The longest that the server is asked to hold an answer back: a connection on which nothing is
/// heard for longer than that, and then some, is replaced.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Between two looks at the length of the queue.
const LENGTH_PAUSE: Duration = Duration::from_millis(50);
/// How many of the jobs next in line are looked at for their age.
const AGE_SAMPLE: u64 = 16;

impl Queue {
    /// Runs a script with the common keys and arguments before its own.
    async fn run<R: FromValue>(&self, script: &Script, args: Vec<Value>) -> Result<R, QueueError> {
        let mut all = Vec::with_capacity(args.len() + 2);
        all.push(Value::from(self.keys.pending_prefix.as_str()));
        all.push(Value::from(self.keys.tenant_prefix.as_str()));
        all.extend(args);
        let keys = self.keys.for_scripts.clone();
        let run = async |client| script.evalsha_with_reload(&client, keys, all).await;
        self.commands.call(run).await
    }

    /// Whether Redis answers.
    pub async fn ping(&self) -> Result<(), QueueError> {
        self.commands.call(async |client| client.ping(None).await).await
    }

    /// Waits until a job is in the queue, at most for `timeout`. Takes nothing.
    pub async fn wait_for_job(&self, timeout: Duration) -> Result<(), QueueError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.wait_a_little(left.min(LONGEST_WAIT)).await? || left <= LONGEST_WAIT {
                return Ok(());
            }
        }
    }

    /// Whether a job is in the queue within this time.
    async fn wait_a_little(&self, timeout: Duration) -> Result<bool, QueueError> {
        // Moving the rightmost entry to where it is changes nothing, and blocks while there is
        // none: a wake-up that works for foreign producers too. Zero would block for ever.
        let seconds = timeout.as_secs_f64().max(0.01);
        let queue = self.keys.queue.as_str();
        let (from, to) = (LMoveDirection::Right, LMoveDirection::Right);
        // A blocking command delays all others on its connection.
        let connect = || Link::connect(self.waiter_recipe.clone());
        let waiter = self.waiter.get_or_try_init(connect).await?;
        let wait = waiter.call(async |client| {
            match client.blmove::<Value, _, _>(queue, queue, from, to, seconds).await {
                // So the client reports the end of the wait; it has no time-out of its own.
                Err(error) if *error.kind() == ErrorKind::Timeout => Ok(false),
                moved => moved.map(|moved| !moved.is_null()),
            }
        });
        match tokio::time::timeout(timeout + WAITER_PATIENCE, wait).await {
            Ok(waited) => waited,
            Err(_) => {
                waiter.is_silent();
                Err(Error::new(ErrorKind::Timeout, "no answer").into())
            }
        }
    }

    /// Waits until more jobs are in the queue than now, at most for `timeout`.
    pub async fn wait_for_more(&self, timeout: Duration) -> Result<(), QueueError> {
        let (queue, began) = (self.keys.queue.as_str(), Instant::now());
        let mut least: Option<u64> = None;
        loop {
            let length: u64 = self.commands.call(async |client| client.llen(queue).await).await?;
            if least.is_some_and(|least| length > least) || began.elapsed() >= timeout {
                return Ok(());
            }
            least = Some(least.unwrap_or(length).min(length));
            tokio::time::sleep(LENGTH_PAUSE.min(timeout)).await;
        }
    }

    /// How many jobs are where.
    pub async fn depths(&self) -> Result<Depths, QueueError> {
        let args = vec![AGE_SAMPLE.to_string().into()];
        let (queue, retry, dlq, inflight, oldest): (u64, u64, u64, u64, String) =
            self.run(&self.scripts.depths, args).await?;
        Ok(Depths { queue, retry, dlq, inflight, oldest_enqueued_at: oldest.parse().ok() })
    }

    /// Whether a write would succeed now, this user may do all that is needed, and each of our keys
    /// holds what it must. Writes, and leaves nothing.
    ///
    /// # Errors
    /// What a write would fail with.
    pub async fn check_writes(&self) -> Result<(), QueueError> {
        let (script, key) = (&self.scripts.write, self.keys.probe.as_str());
        let none = Vec::<String>::new();
        let write = async |client| script.evalsha_with_reload(&client, none, vec![key]).await;
        self.commands.call::<(), _>(write).await?;
        self.check_scripts_permissions().await?;
        self.check_keys().await
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
        let pending: Vec<Option<String>> =
            self.commands.call(async |client| client.mget(keys).await).await?;
        Ok(nodes
            .iter()
            .zip(pending)
            .filter_map(|(node, pending)| pending.is_none().then_some(*node))
            .collect())
    }

    /// Closes both connections. Nothing is lost when commands are under way.
    pub async fn close(&self) {
        self.commands.close();
        if let Some(waiter) = self.waiter.get() {
            waiter.close();
        }
    }
}
