//! The queue at depth: what each step costs with a thousand to a million jobs of ten thousand tenants
//! waiting, and what the server's others notice of it.
//!
//!   cargo bench --bench depths [-- DEPTH …]
//!
//! Runs on the server at `REDIS_URL`, which must be empty, or else on a private one. Prints one JSON
//! object as its last line.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use fred::{
    clients::Client,
    interfaces::{ClientLike, KeysInterface, ListInterface, LuaInterface, ServerInterface},
    prelude::Config,
    types::{CustomCommand, InfoKind},
};
use serde_json::{Value, json};
use uuid::Uuid;
use vecmill::{
    config::Settings,
    domain::{Action, Job, TenantId},
    queue::{Admission, Claimed, Counted, Lease, Limits, PrivateRedis, Queue, Structure},
};

const DEPTHS: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
const TENANTS: usize = 10_000;
/// Jobs loaded by one call, so that no call is longer than the server allows.
const LOADED_AT_ONCE: usize = 100_000;
/// Jobs of one claim, claims that are timed, and the pause between two: about as long as a fast model
/// takes.
const CLAIM: usize = 64;
const CLAIMS: usize = 1_000;
const PAUSE: Duration = Duration::from_millis(5);
/// Times that any other step is timed.
const TIMES: usize = 200;
/// Jobs of a tenant that comes late.
const LATE: usize = 50;
const PING_PAUSE: Duration = Duration::from_millis(2);
const LEASE: Duration = Duration::from_secs(600);
const NO_LIMITS: Limits = Limits { max_depth: u64::MAX >> 12, tenant_max_pending: 0 };

#[tokio::main]
async fn main() {
    let asked: Vec<usize> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    let depths = if asked.is_empty() { DEPTHS.to_vec() } else { asked };
    let directory = tempfile::tempdir().unwrap();
    let (url, private) = match std::env::var("REDIS_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let redis = PrivateRedis::start(directory.path()).await.unwrap();
            (redis.url(), Some(redis))
        }
    };
    let config = Settings::with(&[]).unwrap().queue;
    let server = Config::from_url(&url.replace("unix:", "redis+unix:")).unwrap();
    let bench = Bench {
        queue: Queue::connect(&url, &config).await.unwrap(),
        other: client(&server).await,
        server,
    };
    assert_eq!(bench.other.dbsize::<u64>().await.unwrap(), 0, "the Redis of this bench is empty");
    let mut figures = Vec::new();
    for depth in depths {
        eprintln!("depths: {depth}");
        figures.push(bench.at(depth).await);
        let _: () = bench.other.flushall(false).await.unwrap();
    }
    bench.queue.close().await;
    if let Some(redis) = private {
        redis.stop().await;
    }
    println!("{}", Value::Array(figures));
}

async fn client(server: &Config) -> Client {
    let client = Client::new(server.clone(), None, None, None);
    client.init().await.unwrap();
    client
}

struct Bench {
    queue: Queue,
    /// Past the queue, as another program.
    other: Client,
    server: Config,
}

/// What others notice of some work: the time that `PING` takes meanwhile, and the longest command.
struct Notices {
    is_over: Arc<AtomicBool>,
    pings: tokio::task::JoinHandle<Vec<Duration>>,
}

impl Bench {
    async fn at(&self, depth: usize) -> Value {
        let mut steps = serde_json::Map::new();
        self.load(depth).await;

        // The first claims find everything new.
        let notices = self.notice().await;
        let began = Instant::now();
        let mut claims = Vec::new();
        while claims.is_empty() || self.is_anything_new().await {
            claims.push(self.claim(CLAIM).await.0);
        }
        let read = began.elapsed();
        steps.insert("first claims".into(), self.figures(claims, notices).await);

        let notices = self.notice().await;
        let mut claims = Vec::new();
        for number in 0..CLAIMS.min(depth / (2 * CLAIM)) {
            let (took, claimed) = self.claim(CLAIM).await;
            claims.push(took);
            self.end(claimed).await;
            // As many come as go.
            self.enqueue(&jobs(&format!("t{}", number % TENANTS), CLAIM)).await;
            tokio::time::sleep(PAUSE).await;
        }
        steps.insert(format!("claim {CLAIM}"), self.figures(claims, notices).await);

        let notices = self.notice().await;
        self.enqueue(&jobs("late", LATE)).await;
        let (mut claimed, mut first, mut served, mut times) = (0, None, 0, Vec::new());
        while claimed < depth.min(60_000) && served < LATE {
            let (took, new) = self.claim(CLAIM).await;
            if new.is_empty() {
                break;
            }
            times.push(took);
            claimed += new.len();
            served += new.iter().filter(|claimed| is_of(claimed, "late")).count();
            if served > 0 {
                first.get_or_insert(claimed);
            }
            self.end(new).await;
            tokio::time::sleep(PAUSE).await;
        }
        let mut late = self.figures(times, notices).await;
        late["first_served_after"] = json!(first);
        late["served"] = json!(served);
        late["of_claimed"] = json!(claimed);
        steps.insert("a late tenant".into(), late);
        self.fill(depth).await;

        let some = self.some_nodes().await;
        let notices = self.notice().await;
        let mut times = Vec::new();
        for job in some.iter().take(TIMES) {
            let reservation = self.reserve(&job.tenant_id).await;
            let began = Instant::now();
            self.queue.change(&reservation, job).await.unwrap();
            times.push(began.elapsed());
        }
        steps.insert("PATCH".into(), self.figures(times, notices).await);

        let notices = self.notice().await;
        let mut times = Vec::new();
        for job in some.iter().rev().take(TIMES) {
            let began = Instant::now();
            self.queue.forget(job.node_id, &job.tenant_id).await.unwrap();
            times.push(began.elapsed());
        }
        steps.insert("DELETE".into(), self.figures(times, notices).await);

        let notices = self.notice().await;
        let (mut times, began) = (Vec::new(), Instant::now());
        let mut cursor: Option<String> = None;
        loop {
            let began = Instant::now();
            let passed = self.queue.pass(Structure::Queue, cursor.as_deref()).await.unwrap();
            times.push(began.elapsed());
            cursor = passed.next;
            if cursor.is_none() {
                break;
            }
        }
        let mut pass = self.figures(times, notices).await;
        pass["whole_s"] = json!(began.elapsed().as_secs_f64());
        steps.insert("recount, a step".into(), pass);

        let notices = self.notice().await;
        let mut times = Vec::new();
        let names: Vec<(String, u64)> = (0..1_000).map(|n| (format!("t{n}"), 0)).collect();
        let mut are_known = true;
        for _ in 0..TIMES {
            let began = Instant::now();
            are_known &= self.queue.recount_tenants(&names).await.unwrap() != Counted::Unknown;
            times.push(began.elapsed());
        }
        let mut counts = self.figures(times, notices).await;
        counts["are_known"] = json!(are_known);
        steps.insert("recount, 1,000 tenants".into(), counts);

        let notices = self.notice().await;
        let mut times = Vec::new();
        for _ in 0..TIMES {
            let began = Instant::now();
            self.queue.depths().await.unwrap();
            times.push(began.elapsed());
        }
        steps.insert("status".into(), self.figures(times, notices).await);

        let memory: String = self.other.info(Some(InfoKind::Memory)).await.unwrap();
        json!({
            "depth": depth,
            "all_read_s": read.as_secs_f64(),
            "redis_peak_mb": field(&memory, "used_memory_peak:") / 1e6,
            "own_peak_mb": own_peak_mb(),
            "steps": steps,
        })
    }

    /// Puts so many jobs there as a foreign producer does, but for the keys and counts.
    async fn load(&self, depth: usize) {
        for first in (0..depth).step_by(LOADED_AT_ONCE) {
            let many = LOADED_AT_ONCE.min(depth - first).to_string();
            let script = include_str!("../tests/queue/load.lua");
            let args = vec![many, "t".into(), TENANTS.to_string(), (first + 1).to_string()];
            let _: u64 = self.other.eval(script, "embedding:queue", args).await.unwrap();
        }
    }

    /// Puts so many jobs there that it is as deep as before.
    async fn fill(&self, depth: usize) {
        let length: usize = self.other.llen("embedding:queue").await.unwrap();
        for number in 0..depth.saturating_sub(length).div_ceil(500) {
            self.enqueue(&jobs(&format!("t{number}"), 500)).await;
        }
        self.claim(1).await;
    }

    async fn is_anything_new(&self) -> bool {
        let length: u64 = self.other.llen("embedding:queue").await.unwrap();
        let script = "return redis.call('HGET', KEYS[1], 'arranged') or '0'";
        let read: String =
            self.other.eval(script, "embedding:queue:fair", Vec::<String>::new()).await.unwrap();
        length > read.parse::<u64>().unwrap() + 1_000
    }

    /// Jobs for newer texts of nodes that have a job, from all over the queue.
    async fn some_nodes(&self) -> Vec<Job> {
        let length: usize = self.other.llen("embedding:queue").await.unwrap();
        let mut found = Vec::new();
        for place in (0..length).step_by((length / (2 * TIMES)).max(1)) {
            let entry: Vec<u8> = self.other.lindex("embedding:queue", place as i64).await.unwrap();
            let job = Job::decode(&entry).unwrap();
            let key = format!("embedding:pending:{}", job.node_id);
            let _: () = self.other.set(key, job.job_id.as_str(), None, None, false).await.unwrap();
            found.push(Job::new(job.node_id, job.tenant_id, Action::Embed, now()));
        }
        found
    }

    async fn claim(&self, wanted: usize) -> (Duration, Vec<Claimed>) {
        let began = Instant::now();
        let claimed = self.queue.claim(wanted, LEASE, None).await.unwrap();
        (began.elapsed(), claimed)
    }

    async fn end(&self, claimed: Vec<Claimed>) {
        let done: Vec<(Lease, Job)> =
            claimed.into_iter().map(|claimed| (claimed.lease, claimed.job.unwrap())).collect();
        self.queue.ack(&done).await.unwrap();
    }

    async fn enqueue(&self, jobs: &[Job]) {
        self.queue.enqueue(jobs, None).await.unwrap();
    }

    async fn reserve(&self, tenant: &TenantId) -> vecmill::queue::Reservation {
        match self.queue.reserve(&BTreeMap::from([(tenant, 1)]), NO_LIMITS).await.unwrap() {
            Admission::Admitted(reservation) => reservation,
            refused => panic!("{refused:?}"),
        }
    }

    async fn notice(&self) -> Notices {
        self.order("CONFIG", &["SET", "slowlog-log-slower-than", "300"]).await;
        self.order("CONFIG", &["SET", "slowlog-max-len", "100000"]).await;
        self.order("SLOWLOG", &["RESET"]).await;
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, client) = (Arc::clone(&is_over), client(&self.server).await);
        let pings = tokio::spawn(async move {
            let mut times = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                let _: () = client.ping(None).await.unwrap();
                times.push(began.elapsed());
                tokio::time::sleep(PING_PAUSE).await;
            }
            times
        });
        Notices { is_over, pings }
    }

    async fn order(&self, command: &'static str, words: &[&'static str]) -> fred::types::Value {
        let command = CustomCommand::new_static(command, None, false);
        self.other.custom(command, words.to_vec()).await.unwrap()
    }

    async fn figures(&self, times: Vec<Duration>, notices: Notices) -> Value {
        notices.is_over.store(true, Ordering::Relaxed);
        let pings = notices.pings.await.unwrap();
        let slow = self.order("SLOWLOG", &["GET", "100000"]).await.into_array();
        let longest = slow.into_iter().map(script_time).max().unwrap_or(0);
        let [p50, p99, max] = of(times);
        let [_, ping_p99, ping_max] = of(pings);
        json!({
            "p50_ms": p50, "p99_ms": p99, "max_ms": max,
            "script_max_ms": longest as f64 / 1e3,
            "ping_p99_ms": ping_p99, "ping_max_ms": ping_max,
        })
    }
}

/// Microseconds of an entry of the slow log, if that is a script.
fn script_time(entry: fred::types::Value) -> u64 {
    let mut entry = entry.into_array().into_iter().skip(2);
    let time = entry.next().and_then(|time| time.as_u64()).unwrap();
    let command = entry.next().unwrap().into_array().into_iter().next().unwrap();
    let is_script = command.as_str().is_some_and(|name| name.to_ascii_lowercase() == "evalsha");
    if is_script { time } else { 0 }
}

fn is_of(claimed: &Claimed, tenant: &str) -> bool {
    claimed.job.as_ref().is_ok_and(|job| job.tenant_id.as_str() == tenant)
}

fn jobs(tenant: &str, count: usize) -> Vec<Job> {
    let tenant = TenantId::new(tenant).unwrap();
    (0..count).map(|_| Job::new(Uuid::new_v4(), tenant.clone(), Action::Embed, now())).collect()
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Median, 99th percentile and maximum, in ms.
fn of(mut times: Vec<Duration>) -> [Option<f64>; 3] {
    times.sort();
    let last = times.len().saturating_sub(1);
    [times.len() / 2, times.len() * 99 / 100, last]
        .map(|place| times.get(place.min(last)).map(|time| time.as_secs_f64() * 1e3))
}

fn field(info: &str, name: &str) -> f64 {
    info.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap()
}

fn own_peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0 / 1e6
}
