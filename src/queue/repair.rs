//! What brings order back: due retries, expired leases, and the lock of the sweep.

use std::time::Duration;

use fred::types::Value;
use uuid::Uuid;

use super::{Claimed, Lease, Queue, QueueError};
use crate::domain::Job;

/// What one process at a time does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Counting anew and enqueueing lost jobs.
    Sweep,
    /// Taking back the jobs of lost workers.
    Reclaim,
}

/// A job whose worker gave no sign of life.
#[derive(Debug, Clone, PartialEq)]
pub struct Expired {
    /// The job and its lease.
    pub claimed: Claimed,
    /// Whether a model had begun on it.
    pub started: bool,
}

/// Jobs moved by one call, so that no call holds the server for long.
const BATCH: usize = 500;

impl Queue {
    /// Moves retries that are due to the queue. Returns how many, and how long it is until the
    /// next one.
    pub async fn promote_due(&self) -> Result<(u64, Option<Duration>), QueueError> {
        let (moved, next): (u64, i64) =
            self.run(&self.scripts.promote, vec![BATCH.to_string().into()]).await?;
        Ok((moved, u64::try_from(next).ok().map(Duration::from_millis)))
    }

    /// Jobs whose lease has expired, at most a batch.
    pub async fn expired(&self) -> Result<Vec<Expired>, QueueError> {
        let flat: Vec<Vec<u8>> =
            self.run(&self.scripts.expired, vec![BATCH.to_string().into()]).await?;
        Ok(flat
            .chunks_exact(3)
            .map(|found| Expired {
                claimed: Claimed::new(&found[0], &found[1]),
                started: found[2] == b"1",
            })
            .collect())
    }

    /// Puts jobs whose lease is still expired back in their place, rewritten as given. Returns how
    /// many leases had expired.
    pub async fn reclaim(&self, jobs: &[(Lease, Job)]) -> Result<u64, QueueError> {
        if jobs.is_empty() {
            return Ok(0);
        }
        let args = jobs.iter().flat_map(|(lease, job)| {
            [Value::from(lease.0.as_str()), job.node_id.to_string().into(), job.encode().into()]
        });
        self.run(&self.scripts.reclaim, args.collect()).await
    }

    /// Takes a lock for `ttl`, if nobody holds it. Returns what gives it back.
    pub async fn lock(&self, lock: Lock, ttl: Duration) -> Result<Option<String>, QueueError> {
        let token = Uuid::new_v4().to_string();
        let args = vec![
            self.lock_key(lock).into(),
            token.as_str().into(),
            ttl.as_millis().to_string().into(),
        ];
        let taken: u64 = self.run(&self.scripts.lock, args).await?;
        Ok((taken == 1).then_some(token))
    }

    /// Holds a lock for `ttl` from now on. Returns whether it was still held.
    pub async fn hold(&self, lock: Lock, token: &str, ttl: Duration) -> Result<bool, QueueError> {
        let args =
            vec![self.lock_key(lock).into(), token.into(), ttl.as_millis().to_string().into()];
        let held: u64 = self.run(&self.scripts.relock, args).await?;
        Ok(held == 1)
    }

    /// Gives a lock back, unless it has run out meanwhile.
    pub async fn unlock(&self, lock: Lock, token: &str) -> Result<(), QueueError> {
        let args = vec![self.lock_key(lock).into(), token.into()];
        self.run(&self.scripts.unlock, args).await
    }

    fn lock_key(&self, lock: Lock) -> &str {
        let [sweep, reclaim] = &self.keys.locks;
        match lock {
            Lock::Sweep => sweep,
            Lock::Reclaim => reclaim,
        }
    }
}
