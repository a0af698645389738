//! The queue alone, without a database: how fast jobs go through it, and what a claim costs.
//!
//!   cargo bench --bench queue [-- JOBS]
//!
//! Runs on the server at `REDIS_URL`, which must be empty, or else on a private one. Prints one
//! JSON object as its last line.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;
use vecmill::{
    config::Settings,
    domain::{Action, Job, TenantId},
    queue::{Admission, Limits, PrivateRedis, Queue},
};

/// Jobs of one round, unless the command line says otherwise.
const JOBS: usize = 50_000;
/// Each rate is the median of so many rounds.
const ROUNDS: usize = 3;
/// Jobs of one request, as `NODE_BATCH_MAX` has it.
const PUBLISHED_AT_ONCE: usize = 200;
/// Requests that are being answered at the same time.
const PRODUCERS: usize = 4;
/// Jobs of one claim and of one acknowledgement.
const CLAIMED_AT_ONCE: usize = 64;
/// Claims that are being worked on at the same time.
const WORKERS: usize = 4;
/// How long a worker waits before it looks again into an empty queue.
const IDLE_PAUSE: Duration = Duration::from_millis(1);

/// Depths at which claims are timed.
const DEPTHS: [usize; 2] = [5_000, 100_000];
/// Claims timed at each depth, and between two of them no pause, or about as long as a model
/// takes for what was claimed: in that time new jobs come in, and the next claim arranges them.
const CLAIM_PACES: [(usize, Duration); 2] =
    [(1_000, Duration::ZERO), (400, Duration::from_millis(25))];
/// Jobs that fill and empty the queue at once, outside of what is timed.
const FILLED_AT_ONCE: usize = 500;

/// Longer than any run.
const LEASE: Duration = Duration::from_secs(600);
const NO_LIMITS: Limits = Limits { max_depth: u64::MAX >> 12, tenant_max_pending: 0 };

#[tokio::main]
async fn main() {
    let jobs = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(JOBS);
    let directory = tempfile::tempdir().unwrap();
    let (url, private) = match std::env::var("REDIS_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let redis = PrivateRedis::start(directory.path()).await.unwrap();
            (redis.url(), Some(redis))
        }
    };
    let config = Settings::with(&[]).unwrap().queue;
    let bench = Bench {
        queue: Arc::new(Queue::connect(&url, &config).await.unwrap()),
        tenants: tenants_of_the_corpus(),
    };
    assert!(bench.is_empty().await, "the Redis of this bench must be empty");
    let figures = bench.figures(jobs).await;
    assert!(bench.is_empty().await, "every job was ended");
    bench.queue.close().await;
    if let Some(redis) = private {
        redis.stop().await;
    }
    println!("{figures}");
}

/// The tenants of the corpus, each as often as it has nodes there.
fn tenants_of_the_corpus() -> Vec<TenantId> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/debian-packages.jsonl");
    let tenant = |line: &str| {
        let node: Value = serde_json::from_str(line).unwrap();
        TenantId::new(node["tenant_id"].as_str().unwrap()).unwrap()
    };
    std::fs::read_to_string(corpus).unwrap().lines().map(tenant).collect()
}

struct Bench {
    queue: Arc<Queue>,
    tenants: Vec<TenantId>,
}

impl Bench {
    async fn figures(&self, jobs: usize) -> Value {
        let (mut publish, mut work, mut both) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            eprintln!("queue: round {round} of {ROUNDS}");
            publish.push(self.publish(self.jobs(jobs)).await);
            work.push(self.work(jobs).await);
            both.push(self.publish_and_work(jobs).await);
        }
        let mut claims = Vec::new();
        for depth in DEPTHS {
            eprintln!("queue: claims at depth {depth}");
            self.enqueue(depth).await;
            for (count, pause) in CLAIM_PACES {
                let times = self.claim_times(count, pause).await;
                claims.push(json!({
                    "depth": depth,
                    "claims": count,
                    "pause_ms": pause.as_millis() as u64,
                    "p50_ms": milliseconds(times[count / 2]),
                    "p99_ms": milliseconds(times[count * 99 / 100]),
                    "max_ms": milliseconds(times[count - 1]),
                }));
            }
            self.drain().await;
        }
        json!({
            "jobs": jobs,
            "publish_jobs_per_s": rate(jobs, publish),
            "work_jobs_per_s": rate(jobs, work),
            "end_to_end_jobs_per_s": rate(jobs, both),
            "claims": claims,
        })
    }

    /// New jobs, over all tenants in the proportions of the corpus.
    fn jobs(&self, count: usize) -> Vec<Job> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let tenants = self.tenants.iter().cycle().take(count);
        tenants.map(|tenant| Job::new(Uuid::new_v4(), tenant.clone(), Action::Embed, now)).collect()
    }

    /// Takes jobs in as HTTP does, by a reservation and a publication for each request.
    async fn publish(&self, jobs: Vec<Job>) -> Duration {
        let mut requests: Vec<Vec<Vec<Job>>> = vec![Vec::new(); PRODUCERS];
        for (number, request) in jobs.chunks(PUBLISHED_AT_ONCE).enumerate() {
            requests[number % PRODUCERS].push(request.to_vec());
        }
        let start = Instant::now();
        let producers = requests.into_iter().map(|requests| {
            let queue = Arc::clone(&self.queue);
            tokio::spawn(async move {
                for request in requests {
                    publish_request(&queue, &request).await;
                }
            })
        });
        for producer in join_all(producers).await {
            producer.unwrap();
        }
        start.elapsed()
    }

    /// Claims and acknowledges until so many jobs are done.
    async fn work(&self, jobs: usize) -> Duration {
        let done = Arc::new(AtomicUsize::new(0));
        let start = Instant::now();
        let workers = (0..WORKERS).map(|_| {
            let (queue, done) = (Arc::clone(&self.queue), Arc::clone(&done));
            tokio::spawn(async move {
                while done.load(Ordering::Relaxed) < jobs {
                    let acked = claim_and_ack(&queue, CLAIMED_AT_ONCE).await;
                    if done.fetch_add(acked, Ordering::Relaxed) + acked < jobs && acked == 0 {
                        tokio::time::sleep(IDLE_PAUSE).await;
                    }
                }
            })
        });
        for worker in join_all(workers).await {
            worker.unwrap();
        }
        start.elapsed()
    }

    /// Both at once: from the first publication to the last acknowledgement.
    async fn publish_and_work(&self, count: usize) -> Duration {
        let jobs = self.jobs(count);
        let start = Instant::now();
        tokio::join!(self.publish(jobs), self.work(count));
        start.elapsed()
    }

    /// How long claims take while as many jobs come in as are claimed; in ascending order.
    async fn claim_times(&self, count: usize, pause: Duration) -> Vec<Duration> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            let claimed = self.queue.claim(CLAIMED_AT_ONCE, LEASE, None).await.unwrap();
            times.push(start.elapsed());
            assert_eq!(claimed.len(), CLAIMED_AT_ONCE);
            let held: Vec<_> =
                claimed.into_iter().map(|claimed| (claimed.lease, claimed.job.unwrap())).collect();
            self.queue.ack(&held).await.unwrap();
            self.enqueue(CLAIMED_AT_ONCE).await;
            if pause > Duration::ZERO {
                tokio::time::sleep(pause).await;
            }
        }
        times.sort();
        times
    }

    async fn enqueue(&self, count: usize) {
        for jobs in self.jobs(count).chunks(FILLED_AT_ONCE) {
            self.queue.enqueue(jobs, None).await.unwrap();
        }
    }

    async fn drain(&self) {
        while claim_and_ack(&self.queue, FILLED_AT_ONCE).await > 0 {}
    }

    async fn is_empty(&self) -> bool {
        let depths = self.queue.depths().await.unwrap();
        depths.queue + depths.retry + depths.inflight + depths.dlq == 0
    }
}

async fn publish_request(queue: &Queue, jobs: &[Job]) {
    let mut of_tenants = BTreeMap::new();
    for job in jobs {
        *of_tenants.entry(&job.tenant_id).or_insert(0) += 1;
    }
    let Admission::Admitted(reservation) = queue.reserve(&of_tenants, NO_LIMITS).await.unwrap()
    else {
        panic!("there is no limit");
    };
    assert_eq!(queue.publish(&reservation, jobs).await.unwrap(), jobs.len() as u64);
}

/// Returns how many jobs there were, at most `wanted`.
async fn claim_and_ack(queue: &Queue, wanted: usize) -> usize {
    let claimed = queue.claim(wanted, LEASE, None).await.unwrap();
    let held: Vec<_> =
        claimed.into_iter().map(|claimed| (claimed.lease, claimed.job.unwrap())).collect();
    assert_eq!(queue.ack(&held).await.unwrap(), 0, "no lease ran out");
    held.len()
}

/// Jobs a second in the median round.
fn rate(jobs: usize, mut rounds: Vec<Duration>) -> u64 {
    rounds.sort();
    (jobs as f64 / rounds[rounds.len() / 2].as_secs_f64()).round() as u64
}

fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
