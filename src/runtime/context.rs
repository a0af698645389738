//! What all actors of a process share: the parts below them. Holds no state of a job.

use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{absent::Sight, recount::Recounts};
use crate::{config::WorkerConfig, inference::Model, queue::Queue, store::Store};

/// The parts that work is done with.
pub struct Context {
    /// Where jobs come from.
    pub queue: std::sync::Arc<Queue>,
    /// Where vectors go.
    pub store: Store,
    /// What makes them.
    pub model: Model,
    /// How.
    pub config: WorkerConfig,
    /// Whether the device computed when it was last asked to.
    pub device_up: watch::Sender<bool>,
    /// Whether this database is the one that the jobs are about.
    pub sight: Sight,
    /// What was done of the recounts that go step by step.
    pub recounts: Recounts,
}

/// Seconds since 1970.
pub(super) fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Identifies what a vector was made of: text, model and revision (SHA-256, hexadecimal).
pub(super) fn source_hash(model: &Model, text: &str) -> String {
    let mut hasher = Sha256::new();
    for part in [model.name.as_str(), model.revision.as_str(), text] {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
