//! A queue on a Redis of its own, and the jobs to put into it.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use uuid::Uuid;
use vecmill::{
    config::Settings,
    domain::{Action, Job, TenantId},
    queue::{Admission, Claimed, Enqueued, Lease, Limits, Queue, Reservation},
};

use crate::common::TestRedis;

/// Longer than any test.
pub const LEASE: Duration = Duration::from_secs(600);
/// Room for everything.
pub const NO_LIMITS: Limits = Limits { max_depth: 1_000_000, tenant_max_pending: 0 };
/// For whatever a server does by itself.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A queue with the default key names, and its server.
pub struct TestQueue {
    pub redis: TestRedis,
    pub queue: Queue,
}

impl TestQueue {
    pub async fn start() -> Self {
        Self::on(TestRedis::start(), &[]).await
    }

    pub async fn with(settings: &[(&str, &str)]) -> Self {
        Self::on(TestRedis::start(), settings).await
    }

    pub async fn on(redis: TestRedis, settings: &[(&str, &str)]) -> Self {
        let config = Settings::with(settings).unwrap();
        let queue = Queue::connect(&redis.url(), &config.queue).await.unwrap();
        Self { redis, queue }
    }

    /// Another process on the same server.
    pub async fn queue_on(redis: &TestRedis) -> Queue {
        let config = Settings::with(&[]).unwrap();
        Queue::connect(&redis.url(), &config.queue).await.unwrap()
    }

    /// Enqueues jobs, all of which must be new.
    pub async fn enqueue(&self, jobs: &[Job]) {
        let answers = self.queue.enqueue(jobs, None).await.unwrap();
        assert!(answers.iter().all(|answer| *answer == Enqueued::New), "{answers:?}");
    }

    /// Enqueues one new job of a tenant.
    pub async fn enqueue_one(&self, tenant: &str) -> Job {
        let job = job(tenant);
        self.enqueue(std::slice::from_ref(&job)).await;
        job
    }

    /// Reserves room for jobs of a tenant.
    pub async fn reserved(&self, tenant: &TenantId, jobs: u64) -> Reservation {
        match self.queue.reserve(&BTreeMap::from([(tenant, jobs)]), NO_LIMITS).await.unwrap() {
            Admission::Admitted(reservation) => reservation,
            refused => panic!("{refused:?}"),
        }
    }

    /// Claims without tenant limits.
    pub async fn claim(&self, wanted: usize) -> Vec<Claimed> {
        self.queue.claim(wanted, LEASE, None).await.unwrap()
    }

    /// Claims the one job that is there.
    pub async fn claim_one(&self) -> (Lease, Job) {
        let mut claimed = self.claim(10).await;
        assert_eq!(claimed.len(), 1);
        held(claimed.remove(0))
    }

    /// Puts an entry on the queue as a foreign producer does, and nothing else.
    pub fn push(&self, entry: &str) {
        self.redis.cli(&["LPUSH", "embedding:queue", entry]);
    }

    /// What a command answers, as lines.
    pub fn lines(&self, command: &[&str]) -> Vec<String> {
        self.redis.cli(command).lines().map(str::to_owned).collect()
    }

    /// The pending key of a node: empty if there is none.
    pub fn pending(&self, node: Uuid) -> String {
        self.redis.cli(&["GET", &format!("embedding:pending:{node}")])
    }

    /// The count of a tenant: empty if there is none.
    pub fn count(&self, tenant: &str) -> String {
        self.redis.cli(&["GET", &format!("embedding:tenant:pending:{tenant}")])
    }

    /// Jobs waiting, in flight, waiting for a retry, and dead letters.
    pub async fn depths(&self) -> [u64; 4] {
        let depths = self.queue.depths().await.unwrap();
        let commands =
            [["LLEN", "embedding:queue"], ["ZCARD", "embedding:retry"], ["LLEN", "embedding:dlq"]];
        let seen: [u64; 3] = commands.map(|command| self.redis.cli(&command).parse().unwrap());
        assert_eq!([depths.queue, depths.retry, depths.dlq], seen, "the commands of the runbook");
        [depths.queue, depths.inflight, depths.retry, depths.dlq]
    }

    /// Lets all leases run out now.
    pub fn expire_leases(&self) {
        let leases = self.lines(&["ZRANGE", "embedding:queue:leases", "0", "-1"]);
        assert!(!leases.is_empty());
        for lease in leases {
            self.redis.cli(&["ZADD", "embedding:queue:leases", "XX", "1", &lease]);
        }
    }

    /// Lets all reservations run out now.
    pub fn expire_reservations(&self) {
        let reservations = self.lines(&["ZRANGE", "embedding:queue:reservations", "0", "-1"]);
        assert!(!reservations.is_empty());
        for reservation in reservations {
            self.redis.cli(&["ZADD", "embedding:queue:reservations", "XX", "1", &reservation]);
        }
    }

    /// Returns jobs whose lease has expired, as the sweep does.
    pub async fn reclaim_expired(&self) -> u64 {
        let expired = self.queue.expired().await.unwrap();
        let jobs: Vec<(Lease, Job)> =
            expired.into_iter().map(|found| held(found.claimed)).collect();
        self.queue.reclaim(&jobs).await.unwrap()
    }

    /// Nothing is left but dead letters.
    pub async fn assert_at_rest(&self) {
        assert_eq!(self.depths().await[..3], [0, 0, 0]);
        for pattern in [
            "*pending*",
            "*inflight*",
            "*leases*",
            "*reservations*",
            "*started*",
            "*changed*",
            "*retrying*",
        ] {
            assert_eq!(self.redis.cli(&["KEYS", pattern]), "");
        }
    }
}

pub fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

pub fn job(of_tenant: &str) -> Job {
    Job::new(Uuid::new_v4(), tenant(of_tenant), Action::Embed, 1_795_477_681.46)
}

pub fn jobs(of_tenant: &str, n: usize) -> Vec<Job> {
    (0..n).map(|_| job(of_tenant)).collect()
}

/// Another job for the same node.
pub fn same_node(job: &Job) -> Job {
    Job::new(job.node_id, job.tenant_id.clone(), Action::Embed, job.enqueued_at.unwrap())
}

/// A job with its lease.
pub fn held(claimed: Claimed) -> (Lease, Job) {
    (claimed.lease, claimed.job.unwrap())
}

/// The jobs of a claim.
pub fn jobs_of(claimed: Vec<Claimed>) -> impl Iterator<Item = Job> {
    claimed.into_iter().map(|claimed| held(claimed).1)
}

/// The nodes of each tenant, in order.
pub fn by_tenant(jobs: impl IntoIterator<Item = Job>) -> HashMap<String, Vec<Uuid>> {
    let mut order: HashMap<String, Vec<Uuid>> = HashMap::new();
    for job in jobs {
        order.entry(job.tenant_id.to_string()).or_default().push(job.node_id);
    }
    order
}

pub fn nodes(jobs: &[Job]) -> Vec<Uuid> {
    jobs.iter().map(|job| job.node_id).collect()
}

pub fn claimed_nodes(claimed: &[Claimed]) -> Vec<Uuid> {
    claimed.iter().map(|claimed| claimed.job.as_ref().unwrap().node_id).collect()
}

/// How many of these are jobs of the tenant.
pub fn of_tenant(claimed: &[Claimed], name: &str) -> usize {
    claimed
        .iter()
        .filter(|claimed| claimed.job.as_ref().unwrap().tenant_id.as_str() == name)
        .count()
}
