//! Keeps the leases of the jobs in hand alive, whatever the embedders do.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{task::JoinHandle, time::MissedTickBehavior};
use tracing::warn;
use uuid::Uuid;

use crate::{
    queue::{Lease, Queue},
    telemetry::{Chain, metrics},
};

/// Extends all leases given to it three times per lease, from a task of its own. Dropping it
/// ends that; leases not let go by then run out.
pub struct LeaseKeeper {
    held: Arc<Mutex<Leases>>,
    timer: JoinHandle<()>,
}

/// Leases with their nodes; an entry that is no job has none.
type Leases = HashMap<Lease, Option<Uuid>>;

impl LeaseKeeper {
    /// Starts the timer.
    pub fn start(queue: Arc<Queue>, lease: Duration) -> Self {
        let held = Arc::new(Mutex::new(Leases::new()));
        let timer = tokio::spawn(keep(queue, lease, Arc::clone(&held)));
        Self { held, timer }
    }

    /// Takes care of these leases.
    pub fn hold(&self, leases: impl IntoIterator<Item = (Lease, Option<Uuid>)>) {
        lock(&self.held).extend(leases);
    }

    /// Takes no more care of any lease; answers those that it had.
    pub fn release_all(&self) -> Vec<(Lease, Option<Uuid>)> {
        lock(&self.held).drain().collect()
    }

    /// Takes no more care of these leases.
    pub fn release<'a>(&self, leases: impl IntoIterator<Item = &'a Lease>) {
        let mut held = lock(&self.held);
        for lease in leases {
            held.remove(lease);
        }
    }
}

impl Drop for LeaseKeeper {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

fn lock(held: &Mutex<Leases>) -> MutexGuard<'_, Leases> {
    // Every change is one call, so that a panic cannot leave half of it.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn keep(queue: Arc<Queue>, lease: Duration, held: Arc<Mutex<Leases>>) {
    let mut ticks = tokio::time::interval(lease / 3);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let leases: Vec<Lease> = lock(&held).keys().cloned().collect();
        match queue.extend(&leases, lease).await {
            Ok(lost) if lost.is_empty() => {}
            Ok(lost) => {
                // Those that ended between the copy and the answer are not lost.
                let mut held = lock(&held);
                let lost = lost.iter().filter(|lease| held.remove(lease).is_some()).count();
                if lost > 0 {
                    metrics::leases_lost(lost);
                    warn!(lost, "leases were lost; other workers have these jobs now");
                }
            }
            // The next tick tries again; two of three may fail.
            Err(error) => warn!(error = %Chain(&error), "cannot extend leases"),
        }
    }
}
