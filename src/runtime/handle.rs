//! The typed handle: all that HTTP and the command line see of the runtime.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use uuid::Uuid;

use super::{
    api::{EmbedInfo, EmbeddingStatus, QueueDepths, Readiness, RuntimeError},
    burden::Burden,
    context::unix_now,
    health::LastSeen,
    inline::InlineEmbedder,
};
use crate::{
    domain::TenantScope,
    heavy::Weight,
    queue::{Limits, Queue},
    store::{NodeDetail, NodeFilter, NodeList, Store},
    telemetry::{Chain, metrics},
};

/// How nodes get their vectors in this process.
pub enum Mode {
    /// They are queued for workers, here or elsewhere.
    Queued {
        /// The queue.
        queue: Arc<Queue>,
        /// How much may be in it.
        limits: Limits,
        /// Whether the workers of this process are ready; none when it has no workers.
        workers: Option<WorkersReady>,
    },
    /// They are embedded while the client waits.
    Inline(Box<InlineEmbedder>),
}

/// What the workers of a process need to be ready.
pub struct WorkersReady {
    /// Whether every Embedder is up.
    pub embedders: watch::Receiver<bool>,
    /// Whether the device computed when it was last asked to.
    pub device: watch::Receiver<bool>,
}

impl WorkersReady {
    fn state(&self) -> Result<(), String> {
        if !*self.embedders.borrow() {
            return Err("an embedder is being restarted".to_owned());
        }
        if !*self.device.borrow() {
            return Err("the device does not compute".to_owned());
        }
        Ok(())
    }
}

/// A cheap handle to a running Vecmill.
#[derive(Clone)]
pub struct Runtime {
    pub(super) parts: Arc<Parts>,
}

pub(super) struct Parts {
    pub(super) store: Store,
    pub(super) mode: Mode,
    pub(super) retry_after: Duration,
    pub(super) auto_embed: bool,
    pub(super) embed_info: EmbedInfo,
    pub(super) last_seen: LastSeen,
}

/// A part that takes longer to answer is not ready.
const READINESS_TIMEOUT: Duration = Duration::from_secs(2);

impl Runtime {
    /// A handle to these parts. `retry_after` is what clients are told when a limit is met.
    /// Without `auto_embed`, new nodes are stored and not embedded.
    pub fn new(
        store: Store,
        mode: Mode,
        retry_after: Duration,
        embed_info: EmbedInfo,
        auto_embed: bool,
    ) -> Self {
        let last_seen = LastSeen::new();
        Self {
            parts: Arc::new(Parts { store, mode, retry_after, embed_info, last_seen, auto_embed }),
        }
    }

    /// Whether nodes are queued, rather than embedded while the client waits.
    pub fn is_async(&self) -> bool {
        matches!(self.parts.mode, Mode::Queued { .. })
    }

    /// A page of nodes, and how many there are in all.
    pub async fn list(&self, filter: NodeFilter) -> Result<NodeList, RuntimeError> {
        Ok(self.parts.store.list(&filter).await?)
    }

    /// One node. `weight` is what the caller knows of its size.
    pub async fn node(
        &self,
        scope: TenantScope,
        id: Uuid,
        include_embedding: bool,
        weight: Weight,
    ) -> Result<NodeDetail, RuntimeError> {
        let node = self.parts.store.get(&scope, id, include_embedding, weight).await?;
        node.ok_or(RuntimeError::NotFound(id))
    }

    /// Counts of nodes and jobs.
    pub async fn status(&self, scope: TenantScope) -> Result<EmbeddingStatus, RuntimeError> {
        let status_counts = self.parts.store.status_counts(&scope).await?;
        let queue = match &self.parts.mode {
            Mode::Inline(_) => QueueDepths::default(),
            Mode::Queued { queue, .. } => {
                let depths = queue.depths().await?;
                let age = |enqueued_at: f64| (unix_now() - enqueued_at).max(0.0);
                QueueDepths {
                    queue: depths.queue,
                    retry: depths.retry,
                    dlq: depths.dlq,
                    inflight: depths.inflight,
                    oldest_age_seconds: depths.oldest_enqueued_at.map(age),
                }
            }
        };
        Ok(EmbeddingStatus { status_counts, queue })
    }

    /// Which of the parts that this process uses are ready.
    pub async fn readiness(&self) -> Readiness {
        let database = answer_in_time("database", self.database_state()).await;
        let mut parts = vec![("database", database)];
        match &self.parts.mode {
            Mode::Inline(_) => parts.push(("model", Ok(()))),
            Mode::Queued { queue, workers, .. } => {
                parts.push(("redis", answer_in_time("redis", redis_state(queue)).await));
                if let Some(workers) = workers {
                    parts.push(("model", workers.state()));
                }
            }
        }
        let readiness = Readiness { parts };
        self.parts.last_seen.note(&readiness);
        readiness
    }

    /// Whether the database would take a write.
    async fn database_state(&self) -> Result<(), String> {
        let writable = self.parts.store.check_writable().await;
        writable.map_err(|error| error.for_operators())
    }

    /// All metrics in the Prometheus text format.
    pub async fn render_metrics(&self) -> String {
        if let Mode::Queued { queue, .. } = &self.parts.mode {
            // Without Redis the depths stay as they were last seen.
            if let Ok(depths) = queue.depths().await {
                for (structure, jobs) in [
                    ("queue", depths.queue),
                    ("retry", depths.retry),
                    ("dlq", depths.dlq),
                    ("inflight", depths.inflight),
                ] {
                    metrics::queue_depth(structure, jobs);
                }
            }
        }
        metrics::render()
    }
}

/// Does the work of a request in a task of its own, which keeps the room of its values: a client that hangs
/// up must not stop it half-way. Errors are as [`blamed`] has them.
pub(super) async fn to_the_end<T: Send + 'static>(
    store: &Store,
    burden: Option<Burden>,
    work: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
) -> Result<T, RuntimeError> {
    let with_burden = async move {
        let outcome = work.await;
        drop(burden);
        outcome
    };
    match tokio::spawn(with_burden).await {
        Ok(outcome) => blamed(store, outcome).await,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only the end of the process cancels it.
            Err(_) => Err(RuntimeError::Embedder),
        },
    }
}

/// What the database refuses because it takes no writes at all is an outage.
pub(super) async fn blamed<T>(
    store: &Store,
    outcome: Result<T, RuntimeError>,
) -> Result<T, RuntimeError> {
    match outcome {
        Err(RuntimeError::Store(error)) => Err(store.blame(error).await.into()),
        outcome => outcome,
    }
}

async fn redis_state(queue: &Queue) -> Result<(), String> {
    queue.check_writes().await.map_err(|error| Chain(&error).to_string())
}

async fn answer_in_time(
    part: &str,
    state: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    match tokio::time::timeout(READINESS_TIMEOUT, state).await {
        Ok(state) => state,
        Err(_) => Err(format!("{part} did not answer within {READINESS_TIMEOUT:?}")),
    }
}
