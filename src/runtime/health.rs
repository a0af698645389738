//! What is known of a running Vecmill without asking its parts.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    api::{EmbedInfo, Readiness},
    handle::{Mode, Runtime},
};

/// How a part was when it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Nobody has looked yet.
    Unknown,
    /// It was there.
    Ok,
    /// It was not.
    Unavailable,
}

/// When this process began, and how its parts were when somebody last asked for them.
pub(super) struct LastSeen {
    started: Instant,
    readiness: Mutex<Option<Readiness>>,
}

impl LastSeen {
    /// Nothing was looked at yet.
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), readiness: Mutex::new(None) }
    }

    /// Keeps what was seen.
    pub(super) fn note(&self, readiness: &Readiness) {
        // What is guarded is only ever replaced as a whole.
        let mut last = self.readiness.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(readiness.clone());
    }

    fn of(&self, part: &str) -> Seen {
        let last = self.readiness.lock().unwrap_or_else(PoisonError::into_inner);
        let state =
            last.as_ref().and_then(|seen| seen.parts.iter().find(|(name, _)| *name == part));
        match state {
            None => Seen::Unknown,
            Some((_, Ok(()))) => Seen::Ok,
            Some((_, Err(_))) => Seen::Unavailable,
        }
    }
}

impl Runtime {
    /// The parts that this process uses, each as it was when readiness was last asked for. Asks
    /// nobody, so that it answers at once whatever is away.
    pub fn last_seen(&self) -> Vec<(&'static str, Seen)> {
        let names: &[&str] = match &self.parts.mode {
            Mode::Inline(_) => &["database", "model"],
            Mode::Queued { workers: None, .. } => &["database", "redis"],
            Mode::Queued { .. } => &["database", "redis", "model"],
        };
        names.iter().map(|name| (*name, self.parts.last_seen.of(name))).collect()
    }

    /// How long this process has been there.
    pub fn uptime(&self) -> Duration {
        self.parts.last_seen.started.elapsed()
    }

    /// How this process makes vectors.
    pub fn embed_info(&self) -> &EmbedInfo {
        &self.parts.embed_info
    }
}
