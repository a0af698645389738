//! What an onlooker sees in Redis and in the table at one moment.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::QueryResult;
use serde_json::Value;
use uuid::Uuid;
use vecmill::domain::{Job, NodeStatus};

/// What is in Redis.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Keys {
    /// From left to right.
    pub queue: Vec<Job>,
    pub retry: Vec<Job>,
    /// By token.
    pub inflight: BTreeMap<String, Job>,
    pub leases: BTreeMap<String, String>,
    pub started: BTreeSet<String>,
    pub changed: BTreeMap<String, String>,
    /// The jobs that each reservation counts, by tenant.
    pub reservations: Vec<(String, BTreeMap<String, i64>)>,
    pub letters: Vec<Value>,
    pub pending: BTreeMap<Uuid, String>,
    pub counts: BTreeMap<String, String>,
    pub orphans: Vec<String>,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub tenant: String,
    pub text: Option<String>,
    pub status: NodeStatus,
    pub attempts: u32,
    pub error: Option<String>,
    pub source_hash: Option<String>,
    pub vector: Option<Vec<f32>>,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub keys: Keys,
    pub rows: BTreeMap<Uuid, Row>,
}

impl Seen {
    /// The script that tells all of [`Keys`], in one step.
    pub const KEYS: &str = "
        local function named(prefix)
            local found = {}
            for _, key in ipairs(redis.call('KEYS', prefix .. ':*')) do
                found[#found + 1] = string.sub(key, #prefix + 2)
                found[#found + 1] = redis.call('GET', key)
            end
            return found
        end
        return cjson.encode({
            redis.call('LRANGE', 'embedding:queue', 0, -1),
            redis.call('ZRANGE', 'embedding:retry', 0, -1),
            redis.call('HGETALL', 'embedding:queue:inflight'),
            redis.call('ZRANGE', 'embedding:queue:leases', 0, -1, 'WITHSCORES'),
            redis.call('SMEMBERS', 'embedding:queue:started'),
            redis.call('HGETALL', 'embedding:queue:changed'),
            redis.call('ZRANGE', 'embedding:queue:reservations', 0, -1),
            redis.call('LRANGE', 'embedding:dlq', 0, -1),
            named('embedding:pending'),
            named('embedding:tenant:pending'),
            redis.call('ZRANGE', 'embedding:queue:orphans', 0, -1),
        })";

    /// The query of all rows.
    pub const POSTGRES_ROWS: &str = "
        SELECT id::text AS id, coalesce(tenant_id, 'default') AS tenant, props ->> 'text' AS text,
               embedding_status AS status, embedding_attempts AS attempts, embedding_error AS error,
               embedding_source_hash AS source_hash, embedding::real[] AS vector
        FROM nodes";

    /// The same in SQLite.
    pub const SQLITE_ROWS: &str = "
        SELECT hex(id) AS id, coalesce(tenant_id, 'default') AS tenant, props ->> '$.text' AS text,
               embedding_status AS status, embedding_attempts AS attempts, embedding_error AS error,
               embedding_source_hash AS source_hash, embedding AS vector
        FROM nodes";

    pub fn new(keys: &str, rows: &[QueryResult]) -> Self {
        Self { keys: Keys::new(keys), rows: rows.iter().map(row).collect() }
    }

    /// All live jobs: waiting, in flight, and waiting for their next attempt.
    pub fn live(&self) -> impl Iterator<Item = &Job> {
        self.keys.queue.iter().chain(self.keys.inflight.values()).chain(&self.keys.retry)
    }

    /// The ids of the live jobs.
    pub fn live_ids(&self) -> BTreeSet<&str> {
        self.live().map(|job| job.job_id.as_str()).collect()
    }

    /// Live jobs of each tenant, and those that have room reserved.
    pub fn charged(&self) -> BTreeMap<String, i64> {
        let mut charged = BTreeMap::new();
        for job in self.live() {
            *charged.entry(job.tenant_id.to_string()).or_default() += 1;
        }
        for (tenant, jobs) in self.keys.reservations.iter().flat_map(|(_, tenants)| tenants) {
            *charged.entry(tenant.clone()).or_default() += jobs;
        }
        charged
    }

    /// The node that a number picks, and its row.
    pub fn pick(&self, number: usize) -> Option<(Uuid, &Row)> {
        let (node, row) = self.rows.iter().nth(number.checked_rem(self.rows.len())?)?;
        Some((*node, row))
    }
}

impl Keys {
    fn new(answer: &str) -> Self {
        let answer: Vec<Value> = serde_json::from_str(answer).unwrap();
        // To this JSON an empty list is an empty object.
        let texts = |i: usize| -> Vec<String> {
            let list = answer[i].as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        let pairs = |i: usize| -> Vec<(String, String)> {
            texts(i).chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
        };
        let jobs = |i: usize| -> Vec<Job> { texts(i).iter().map(|entry| job(entry)).collect() };
        Self {
            queue: jobs(0),
            retry: jobs(1),
            inflight: pairs(2).iter().map(|(token, entry)| (token.clone(), job(entry))).collect(),
            leases: pairs(3).into_iter().collect(),
            started: texts(4).into_iter().collect(),
            changed: pairs(5).into_iter().collect(),
            reservations: texts(6)
                .into_iter()
                .map(|text| (text.clone(), reserved(&text)))
                .collect(),
            letters: texts(7).iter().map(|text| serde_json::from_str(text).unwrap()).collect(),
            pending: pairs(8).iter().map(|(id, job)| (id.parse().unwrap(), job.clone())).collect(),
            counts: pairs(9).into_iter().collect(),
            orphans: texts(10),
        }
    }
}

fn job(entry: &str) -> Job {
    Job::decode(entry.as_bytes()).unwrap()
}

fn reserved(reservation: &str) -> BTreeMap<String, i64> {
    let reservation: Value = serde_json::from_str(reservation).unwrap();
    serde_json::from_value(reservation["tenants"].clone()).unwrap()
}

fn row(row: &QueryResult) -> (Uuid, Row) {
    let id: String = row.try_get("", "id").unwrap();
    let status: String = row.try_get("", "status").unwrap();
    let of_blob = |blob: Vec<u8>| {
        blob.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    let vector: Option<Vec<f32>> = match row.try_get::<Option<Vec<u8>>>("", "vector") {
        Ok(blob) => blob.map(of_blob),
        Err(_) => row.try_get("", "vector").unwrap(),
    };
    let row = Row {
        tenant: row.try_get("", "tenant").unwrap(),
        text: row.try_get("", "text").unwrap(),
        status: status.parse().unwrap(),
        attempts: row.try_get("", "attempts").unwrap(),
        error: row.try_get("", "error").unwrap(),
        source_hash: row.try_get("", "source_hash").unwrap(),
        vector,
    };
    (id.parse().unwrap(), row)
}
