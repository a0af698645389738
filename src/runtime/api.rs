//! What a request to the runtime can bring back: plain data and one error.

use std::time::Duration;

use uuid::Uuid;

use crate::{
    domain::{NodeStatus, TenantId},
    inference::Description,
    queue::QueueError,
    store::{Cursor, StatusCounts, StoreError},
};

/// A node that was taken in.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// The node.
    pub id: Uuid,
    /// Who owns it.
    pub tenant_id: TenantId,
    /// Its status now.
    pub status: NodeStatus,
    /// The job that will embed it; none when it was embedded at once.
    pub job_id: Option<String>,
}

/// Depths of the queue's structures.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct QueueDepths {
    /// Jobs waiting to be claimed.
    pub queue: u64,
    /// Jobs waiting for their next attempt.
    pub retry: u64,
    /// Dead letters.
    pub dlq: u64,
    /// Jobs under a lease.
    pub inflight: u64,
    /// Age of the oldest waiting job.
    pub oldest_age_seconds: Option<f64>,
}

/// The operator's view.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingStatus {
    /// Nodes by status, of the tenant asked for or of all.
    pub status_counts: StatusCounts,
    /// The queue, of all tenants.
    pub queue: QueueDepths,
}

/// What a requeue did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requeued {
    /// Nodes with a vector that were marked `ready` first.
    pub backfilled: u64,
    /// Nodes that matched, of those that were looked at.
    pub requested: u64,
    /// Nodes for which a job was enqueued; the others have a live job or met a limit. Without a
    /// queue, nodes that were embedded.
    pub enqueued: u64,
    /// Where a requeue of the others begins; none if there are none.
    pub next: Option<Cursor>,
    /// How that ended, without a queue.
    pub ended: Option<Ended>,
}

/// How nodes ended that were embedded while the client waited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// Nodes with a vector.
    pub ready: u64,
    /// Nodes whose text the model refused.
    pub failed: u64,
    /// Nodes without a text.
    pub skipped: u64,
}

impl Ended {
    /// All of them.
    pub fn all(self) -> u64 {
        self.ready + self.failed + self.skipped
    }
}

impl std::ops::AddAssign for Ended {
    fn add_assign(&mut self, other: Self) {
        self.ready += other.ready;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// What a refresh of many nodes did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refreshed {
    /// Nodes that were found, or are due.
    pub requested: u64,
    /// Nodes for which a job was enqueued; the others have a live job or met a limit.
    pub enqueued: u64,
    /// How the nodes ended, without a queue.
    pub ended: Option<Ended>,
}

/// How this process makes vectors. What only a loaded model tells is unknown where none is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbedInfo {
    /// `candle` or `hash`.
    pub backend: &'static str,
    /// The model that the operator configured.
    pub model: String,
    /// Components of each vector.
    pub dimension: usize,
    /// The device that the operator configured.
    pub device: String,
    /// More of it, where the model is loaded.
    pub loaded: Option<LoadedInfo>,
}

/// What a loaded model tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedInfo {
    /// Identifies its vectors together with its name.
    pub revision: String,
    /// Texts are cut to this many tokens.
    pub max_tokens: usize,
    /// The type of the operands of matrix products.
    pub dtype: &'static str,
    /// The code that computes.
    pub kernel: &'static str,
    /// Threads that compute.
    pub threads: usize,
    /// What it says of itself.
    pub description: Description,
}

/// Whether the parts that work needs are there; each `Err` says what is wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Readiness {
    /// The parts by name (`database`, `redis`, `model`), in that order; a part that this
    /// process does not use is absent.
    pub parts: Vec<(&'static str, Result<(), String>)>,
}

impl Readiness {
    /// Whether every part is there.
    pub fn is_ready(&self) -> bool {
        self.parts.iter().all(|(_, state)| state.is_ok())
    }
}

/// Why the runtime did not do as asked. Nothing is left behind in any of these cases.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The queue is as deep as it may be.
    #[error(
        "the queue is at its maximum depth of {limit} jobs (EMBEDDING_QUEUE_MAX_DEPTH); \
         try again later"
    )]
    QueueFull {
        /// The configured depth.
        limit: u64,
        /// When to try again.
        retry_after: Duration,
    },
    /// The tenant has as many live jobs as it may have.
    #[error(
        "tenant {tenant} would have more than {limit} live jobs \
         (EMBEDDING_TENANT_MAX_PENDING); try again later or send fewer nodes"
    )]
    TenantFull {
        /// The tenant.
        tenant: TenantId,
        /// The configured number of jobs.
        limit: u64,
        /// When to try again.
        retry_after: Duration,
    },
    /// There is no such node in the scope of the caller.
    #[error("there is no node {0}; check the id and tenant_id")]
    NotFound(Uuid),
    /// More than one node of the scope has this name.
    #[error("external_id: more than one node has it; name its tenant, or ask for it by its id")]
    Ambiguous,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Redis failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Too many wait for the model.
    #[error("too many texts wait for the model; try again later or send fewer nodes")]
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// The embedder failed while the client waited for the vector.
    #[error("the embedder is not available; try again later")]
    Embedder,
}
