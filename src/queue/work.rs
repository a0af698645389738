//! What a worker does with jobs: claim, extend, note what a model is at, and the four ways to let go.

use std::{
    collections::HashMap,
    sync::atomic::Ordering,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use fred::types::Value;
use serde_json::json;
use uuid::Uuid;

use super::{Queue, QueueError};
use crate::domain::{Job, JobDecodeError, TenantId};

/// The right to end a job; lost when the lease runs out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lease(pub(super) String);

impl From<Uuid> for Lease {
    /// A lease that holds nothing: nobody else has this token.
    fn from(token: Uuid) -> Self {
        Self(token.to_string())
    }
}

/// An entry taken from the queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Claimed {
    /// The right to end it.
    pub lease: Lease,
    /// The bytes of the entry.
    pub entry: Vec<u8>,
    /// What they say.
    pub job: Result<Job, JobDecodeError>,
}

impl Claimed {
    pub(super) fn new(token: &[u8], entry: &[u8]) -> Self {
        Self {
            lease: Lease(String::from_utf8_lossy(token).into_owned()),
            entry: entry.to_vec(),
            job: Job::decode(entry),
        }
    }
}

/// How many jobs of a tenant one claim may take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantLimits {
    /// For a tenant that is not named.
    pub default: usize,
    /// For the tenants named.
    pub of_tenants: HashMap<TenantId, usize>,
}

/// An entry for the dead-letter list.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The right to end the job.
    pub lease: Lease,
    node: String,
    tenant: String,
    letter: String,
}

impl DeadLetter {
    /// The job with `error` and `failed_at` (Unix seconds).
    pub fn of_job(lease: Lease, job: &Job, error: &str, failed_at: f64) -> Self {
        let mut fields = job.to_object();
        fields.insert("error".into(), error.into());
        fields.insert("failed_at".into(), failed_at.into());
        Self {
            lease,
            node: job.node_id.to_string(),
            tenant: job.tenant_id.to_string(),
            letter: serde_json::Value::Object(fields).to_string(),
        }
    }

    /// An entry that is no job, kept byte for byte: as text if it is text, else in base64.
    pub fn of_entry(lease: Lease, entry: &[u8], error: &str, failed_at: f64) -> Self {
        let letter = match std::str::from_utf8(entry) {
            Ok(text) => json!({"raw": text, "error": error, "failed_at": failed_at}),
            Err(_) => json!({
                "raw_base64": BASE64_STANDARD.encode(entry),
                "error": error,
                "failed_at": failed_at,
            }),
        };
        Self { lease, node: String::new(), tenant: String::new(), letter: letter.to_string() }
    }
}

/// Bytes of entries in the answer to one claim, unless a single entry is larger: a foreign
/// producer can push what it likes, and the answer has to arrive in time.
const CLAIM_MAX_BYTES: usize = 8 << 20;
/// New entries that a claim reads by itself.
const CLAIM_READS: u64 = 1000;

/// Steps in which new entries are read before a claim, each about 2 ms of the server's time and 1,000
/// entries: those of a million are all known after four claims.
const READ_STEPS: usize = 256;

impl Queue {
    /// Reads entries where more are new than a claim reads, so that a tenant with few jobs among
    /// them is found.
    async fn read_new(&self) -> Result<(), QueueError> {
        for _ in 0..READ_STEPS {
            if self.unread.load(Ordering::Relaxed) <= CLAIM_READS {
                break;
            }
            let unread: u64 = self.run(&self.scripts.read, Vec::new()).await?;
            self.unread.store(unread, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Claims up to `wanted` jobs, fairly over tenants. The same entry is never claimed twice
    /// while its lease holds. Jobs of nodes that are gone are ended on the way.
    pub async fn claim(
        &self,
        wanted: usize,
        lease: Duration,
        limits: Option<&TenantLimits>,
    ) -> Result<Vec<Claimed>, QueueError> {
        self.read_new().await?;
        loop {
            let (claimed, ended) = self.claim_once(wanted, lease, limits).await?;
            if !claimed.is_empty() || ended == 0 {
                return Ok(claimed);
            }
        }
    }

    /// Answers also how many jobs of nodes that are gone were ended.
    async fn claim_once(
        &self,
        wanted: usize,
        lease: Duration,
        limits: Option<&TenantLimits>,
    ) -> Result<(Vec<Claimed>, u64), QueueError> {
        // Tokens sort in the order of their claims, so that jobs find back to their places.
        let claimed_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let prefix = format!("{:016}:{}", claimed_at.as_micros(), Uuid::new_v4());
        let mut args: Vec<Value> = vec![
            wanted.to_string().into(),
            lease.as_millis().to_string().into(),
            prefix.into(),
            CLAIM_MAX_BYTES.to_string().into(),
        ];
        args.push(limits.map_or(-1, |limits| limits.default as i64).to_string().into());
        for (tenant, left) in limits.iter().flat_map(|limits| &limits.of_tenants) {
            args.push(tenant.as_str().into());
            args.push(left.to_string().into());
        }
        let flat: Vec<Vec<u8>> = self.run(&self.scripts.claim, args).await?;
        let [unread, ended, claimed @ ..] = flat.as_slice() else { return Ok((Vec::new(), 0)) };
        let number =
            |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        self.unread.store(number(unread).unwrap_or_default(), Ordering::Relaxed);
        let claimed =
            claimed.chunks_exact(2).map(|pair| Claimed::new(&pair[0], &pair[1])).collect();
        Ok((claimed, number(ended).unwrap_or_default()))
    }

    /// Notes that a model begins on these jobs. A worker that is lost afterwards may have been
    /// taken down by them.
    pub async fn start(&self, leases: &[Lease]) -> Result<(), QueueError> {
        let args = leases.iter().map(|lease| Value::from(lease.0.as_str())).collect();
        self.run(&self.scripts.start, args).await
    }

    /// Notes that a model is done with these jobs: a worker that is lost from now on was not taken
    /// down by them.
    pub async fn clear(&self, leases: &[Lease]) -> Result<(), QueueError> {
        let args = leases.iter().map(|lease| Value::from(lease.0.as_str())).collect();
        self.run(&self.scripts.clear, args).await
    }

    /// Prolongs leases; returns those that hold nothing any more.
    pub async fn extend(&self, leases: &[Lease], by: Duration) -> Result<Vec<Lease>, QueueError> {
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let mut args = vec![Value::from(by.as_millis().to_string())];
        args.extend(leases.iter().map(|lease| Value::from(lease.0.as_str())));
        let lost: Vec<String> = self.run(&self.scripts.extend, args).await?;
        Ok(lost.into_iter().map(Lease).collect())
    }

    /// Ends jobs that are done. Returns how many leases held nothing any more.
    pub async fn ack(&self, done: &[(Lease, Job)]) -> Result<u64, QueueError> {
        if done.is_empty() {
            return Ok(0);
        }
        let args = done.iter().flat_map(|(lease, job)| {
            [
                Value::from(lease.0.as_str()),
                job.node_id.to_string().into(),
                job.tenant_id.as_str().into(),
            ]
        });
        self.run(&self.scripts.ack, args.collect()).await
    }

    /// Lets jobs wait for their next attempt. Returns how many leases held nothing any more.
    pub async fn retry(&self, jobs: &[(Lease, Job, Duration)]) -> Result<u64, QueueError> {
        if jobs.is_empty() {
            return Ok(0);
        }
        let args = jobs.iter().flat_map(|(lease, job, delay)| {
            [
                Value::from(lease.0.as_str()),
                job.node_id.to_string().into(),
                delay.as_millis().to_string().into(),
                job.encode().into(),
            ]
        });
        self.run(&self.scripts.retry, args.collect()).await
    }

    /// Ends jobs for good. The oldest dead letters beyond the maximum are evicted. Returns how
    /// many leases held nothing any more, and how many letters were evicted. With
    /// `only_expired`, a lease that still runs is left alone and counts as holding nothing.
    pub async fn dead_letter(
        &self,
        letters: &[DeadLetter],
        only_expired: bool,
    ) -> Result<(u64, u64), QueueError> {
        if letters.is_empty() {
            return Ok((0, 0));
        }
        let mut args = vec![
            Value::from(self.dlq_max.to_string()),
            Value::from(if only_expired { "1" } else { "0" }),
        ];
        for letter in letters {
            args.push(letter.lease.0.as_str().into());
            args.push(letter.node.as_str().into());
            args.push(letter.tenant.as_str().into());
            args.push(letter.letter.as_str().into());
        }
        self.run(&self.scripts.dead_letter, args).await
    }

    /// Puts jobs, each with its node if it is one, back in their places, attempts unchanged; a job
    /// whose text has changed gives way to that of the newer text. Returns how many leases still
    /// held a job.
    pub async fn hand_back(&self, held: &[(Lease, Option<Uuid>)]) -> Result<u64, QueueError> {
        if held.is_empty() {
            return Ok(0);
        }
        let mut in_claim_order: Vec<&(Lease, Option<Uuid>)> = held.iter().collect();
        in_claim_order.sort();
        let args = in_claim_order.iter().flat_map(|(lease, node)| {
            let node = node.map(|node| node.to_string()).unwrap_or_default();
            [Value::from(lease.0.as_str()), node.into()]
        });
        self.run(&self.scripts.hand_back, args.collect()).await
    }
}
