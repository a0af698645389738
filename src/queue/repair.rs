//! What brings order back: due retries, expired leases, recounts, and the lock of the sweep.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use fred::{clients::Client, interfaces::KeysInterface, types::Value};
use uuid::Uuid;

use super::{Claimed, Lease, Queue, QueueError};
use crate::domain::Job;

/// What a recount found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recount {
    /// There are too many jobs to look at all of them at once; nothing was done.
    TooDeep,
    /// These nodes have a pending key but no job: call again with the tenant of each.
    Ask(Vec<String>),
    /// Done; how many of each kind were mended.
    Done {
        /// Tenant counts that were wrong.
        tenant_counts: u64,
        /// Live jobs without a pending key.
        pending_keys: u64,
        /// Jobs in flight without a lease.
        leases: u64,
        /// Pending keys without a job that were too old to be a foreign consumer's.
        given_up: u64,
        /// Tenants whose count held another type than a string, and was made anew.
        mistyped: Vec<String>,
    },
}

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

/// Jobs above which a recount would hold the server for too long (about 50 ms).
const RECOUNT_MAX_JOBS: u64 = 20_000;
/// Keys looked at by one step of a scan.
const SCAN_PAGE: u32 = 1000;
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

    /// Compares keys and counts with the jobs that are there, and mends them. `tenants` names
    /// the tenant of nodes asked for by an earlier call; an empty name if there is no such node.
    pub async fn recount(
        &self,
        give_up_after: Duration,
        tenants: &HashMap<String, String>,
    ) -> Result<Recount, QueueError> {
        let nodes = self.suffixes(&self.keys.pending_prefix).await?;
        let mut args: Vec<Value> = vec![
            RECOUNT_MAX_JOBS.to_string().into(),
            give_up_after.as_millis().to_string().into(),
            nodes.len().to_string().into(),
        ];
        for node in nodes {
            args.push(node.as_str().into());
            args.push(tenants.get(&node).map_or("?", String::as_str).into());
        }
        let counted = self.suffixes(&self.keys.tenant_prefix).await?;
        args.extend(counted.into_iter().map(Value::from));
        let answer: Vec<String> = self.run(&self.scripts.recount, args).await?;
        let number = |i: usize| answer.get(i).and_then(|n| n.parse().ok()).unwrap_or(0);
        Ok(match answer.first().map(String::as_str) {
            Some("deep") => Recount::TooDeep,
            Some("ask") => Recount::Ask(answer[1..].to_vec()),
            _ => Recount::Done {
                tenant_counts: number(1),
                pending_keys: number(2),
                leases: number(3),
                given_up: number(4),
                mistyped: answer.get(5..).unwrap_or_default().to_vec(),
            },
        })
    }

    /// What follows the prefix and a colon in the names of the keys that have it, whatever they
    /// hold.
    async fn suffixes(&self, prefix: &str) -> Result<HashSet<String>, QueueError> {
        let mut pattern = String::new();
        for c in prefix.chars() {
            if "*?[]\\".contains(c) {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        pattern.push_str(":*");
        let mut found = HashSet::new();
        let mut cursor = "0".to_owned();
        loop {
            let pattern = pattern.as_str();
            let page = async |client: Client| {
                client.scan_page(cursor, pattern, Some(SCAN_PAGE), None).await
            };
            let (next, keys): (String, Vec<String>) = self.commands.call(page).await?;
            found.extend(keys.iter().map(|key| key[prefix.len() + 1..].to_owned()));
            if next == "0" {
                return Ok(found);
            }
            cursor = next;
        }
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
