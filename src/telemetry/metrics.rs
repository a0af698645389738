//! Every metric of the program: names, units, and the functions that record them.

use std::{sync::OnceLock, time::Duration};

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

const NODES_INGESTED: &str = "vecmill_nodes_ingested_total";
const NODES_REJECTED: &str = "vecmill_nodes_rejected_total";
const JOBS_CLAIMED: &str = "vecmill_jobs_claimed_total";
const JOBS_ENDED: &str = "vecmill_jobs_ended_total";
const STALE_LEASES: &str = "vecmill_stale_leases_total";
const STALE_VECTORS: &str = "vecmill_stale_vectors_total";
const LEASES_LOST: &str = "vecmill_leases_lost_total";
const DEAD_LETTERS_EVICTED: &str = "vecmill_dead_letters_evicted_total";
const RETRIES_PROMOTED: &str = "vecmill_retries_promoted_total";
const REPAIRS: &str = "vecmill_repairs_total";
const RESTARTS: &str = "vecmill_actor_restarts_total";
const TOKENS: &str = "vecmill_tokens_embedded_total";
const CACHE: &str = "vecmill_embedding_cache_total";
const BATCH_TEXTS: &str = "vecmill_batch_texts";
const BATCH_SECONDS: &str = "vecmill_batch_seconds";
const JOB_SECONDS: &str = "vecmill_job_seconds";
const QUEUE_DEPTH: &str = "vecmill_queue_depth";

/// How often the values that histograms were given are put together.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

static EXPORTER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the exporter; later calls change nothing.
pub fn init() {
    EXPORTER.get_or_init(|| {
        let handle = PrometheusBuilder::new().install_recorder().ok()?;
        let upkeep = handle.clone();
        // A thread, because the exporter outlives every runtime, and work goes on where nobody
        // renders: without this, each value of a histogram would be kept for ever.
        let keep_up = move || {
            loop {
                std::thread::sleep(UPKEEP_EVERY);
                upkeep.run_upkeep();
            }
        };
        std::thread::Builder::new().name("metrics".to_owned()).spawn(keep_up).ok()?;
        describe_counter!(NODES_INGESTED, "Nodes taken in");
        describe_counter!(NODES_REJECTED, "Nodes refused, by limit");
        describe_counter!(JOBS_CLAIMED, "Jobs taken from the queue");
        describe_counter!(JOBS_ENDED, "Jobs let go, by outcome");
        describe_counter!(STALE_LEASES, "Ends of jobs refused because the lease was lost");
        describe_counter!(
            STALE_VECTORS,
            "Vectors refused because the text had changed or the node was gone"
        );
        describe_counter!(LEASES_LOST, "Leases that ran out while their job was in hand");
        describe_counter!(DEAD_LETTERS_EVICTED, "Dead letters dropped from a full list");
        describe_counter!(RETRIES_PROMOTED, "Retries that became due");
        describe_counter!(REPAIRS, "Things found wrong and mended, by kind");
        describe_counter!(RESTARTS, "Actors restarted, by actor");
        describe_counter!(TOKENS, "Tokens embedded");
        describe_counter!(CACHE, "Texts looked for among those embedded before, by result");
        describe_histogram!(BATCH_TEXTS, "Texts in a batch");
        describe_histogram!(BATCH_SECONDS, "Seconds a batch spends in the model");
        describe_histogram!(JOB_SECONDS, "Seconds from enqueue to stored vector");
        describe_gauge!(QUEUE_DEPTH, "Jobs, by structure");
        Some(handle)
    });
}

/// All metrics in the Prometheus text format.
pub fn render() -> String {
    EXPORTER.get().and_then(Option::as_ref).map(PrometheusHandle::render).unwrap_or_default()
}

/// Nodes were taken in.
pub fn nodes_ingested(nodes: usize) {
    counter!(NODES_INGESTED).increment(nodes as u64);
}

/// Nodes were refused: `limit` is `queue` or `tenant`.
pub fn nodes_rejected(limit: &'static str, nodes: usize) {
    counter!(NODES_REJECTED, "limit" => limit).increment(nodes as u64);
}

/// Jobs were claimed.
pub fn jobs_claimed(jobs: usize) {
    counter!(JOBS_CLAIMED).increment(jobs as u64);
}

/// Jobs were let go: `outcome` is `ready`, `unchanged`, `gone`, `skipped`, `retry`, `failed`,
/// `undecodable`, `poison` or `handed_back`.
pub fn jobs_ended(outcome: &'static str, jobs: usize) {
    counter!(JOBS_ENDED, "outcome" => outcome).increment(jobs as u64);
}

/// Leases had been lost when their jobs were to be ended.
pub fn stale_leases(leases: u64) {
    counter!(STALE_LEASES).increment(leases);
}

/// Vectors were not stored, because the text of their node had changed or the node was gone.
pub fn stale_vectors(vectors: usize) {
    counter!(STALE_VECTORS).increment(vectors as u64);
}

/// Leases ran out while their jobs were in hand: others may have these jobs now.
pub fn leases_lost(leases: usize) {
    counter!(LEASES_LOST).increment(leases as u64);
}

/// Dead letters were dropped from a full list.
pub fn dead_letters_evicted(letters: u64) {
    counter!(DEAD_LETTERS_EVICTED).increment(letters);
}

/// Retries became due.
pub fn retries_promoted(jobs: u64) {
    counter!(RETRIES_PROMOTED).increment(jobs);
}

/// Something was mended: `kind` is `expired_lease`, `lost_job`, `overwritten`, `tenant_count`,
/// `pending_key`, `lease` or `orphan`.
pub fn repairs(kind: &'static str, count: u64) {
    counter!(REPAIRS, "kind" => kind).increment(count);
}

/// An actor was restarted.
pub fn actor_restarted(actor: &'static str) {
    counter!(RESTARTS, "actor" => actor).increment(1);
}

/// A batch came back from the model.
pub fn batch_embedded(texts: usize, tokens: usize, took: Duration) {
    counter!(TOKENS).increment(tokens as u64);
    histogram!(BATCH_TEXTS).record(texts as f64);
    histogram!(BATCH_SECONDS).record(took);
}

/// Vectors were looked for by what the model would see: so many were there, so many were not.
pub fn cache_looked_up(hits: usize, misses: usize) {
    counter!(CACHE, "result" => "hit").increment(hits as u64);
    counter!(CACHE, "result" => "miss").increment(misses as u64);
}

/// Texts of a batch took the vector of another one in it.
pub fn duplicates_in_batch(texts: usize) {
    counter!(CACHE, "result" => "duplicate").increment(texts as u64);
}

/// A vector was stored this long after its job was first enqueued.
pub fn job_stored(seconds: f64) {
    histogram!(JOB_SECONDS).record(seconds.max(0.0));
}

/// Depth of a structure: `queue`, `retry`, `dlq` or `inflight`.
pub fn queue_depth(structure: &'static str, jobs: u64) {
    gauge!(QUEUE_DEPTH, "structure" => structure).set(jobs as f64);
}
