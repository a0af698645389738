//! What an operator's calls and probes answer, as the OpenAPI document shows it.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use poem_openapi::Object;

use super::cursor;
use crate::{
    domain::TenantScope,
    runtime::{EmbedInfo, EmbeddingStatus, Ended, Refreshed, Requeued, Seen},
};

/// The operator's view.
#[derive(Debug, Clone, Object)]
pub struct StatusAnswer {
    /// The tenant that was asked for; null for all.
    #[oai(nullable)]
    pub tenant_id: Option<String>,
    /// Nodes by status.
    pub status_counts: StatusCounts,
    /// Whether all of them were counted. More than 100000 nodes of one status are estimated.
    pub total_exact: bool,
    /// The queue, of all tenants together.
    pub queue: QueueDepths,
}

/// Nodes by status.
#[derive(Debug, Clone, Object)]
pub struct StatusCounts {
    /// Nodes `queued`.
    pub queued: u64,
    /// Nodes `processing`.
    pub processing: u64,
    /// Nodes `ready`.
    pub ready: u64,
    /// Nodes `failed`.
    pub failed: u64,
    /// Nodes `skipped`.
    pub skipped: u64,
}

/// Depths of the queue's structures.
#[derive(Debug, Clone, Object)]
pub struct QueueDepths {
    /// Jobs waiting to be claimed.
    pub queue: u64,
    /// Jobs waiting for their next attempt.
    pub retry: u64,
    /// Dead letters.
    pub dlq: u64,
    /// Jobs that a worker holds.
    pub inflight: u64,
    /// Age of the oldest waiting job; null when none waits.
    #[oai(nullable)]
    pub oldest_age_seconds: Option<f64>,
}

impl StatusAnswer {
    /// The answer for the tenants that were asked for.
    pub fn new(scope: &TenantScope, status: EmbeddingStatus) -> Self {
        let EmbeddingStatus { status_counts: counts, queue } = status;
        Self {
            tenant_id: scope.tenant().map(ToString::to_string),
            status_counts: StatusCounts {
                queued: counts.queued,
                processing: counts.processing,
                ready: counts.ready,
                failed: counts.failed,
                skipped: counts.skipped,
            },
            total_exact: !counts.is_estimated,
            queue: QueueDepths {
                queue: queue.queue,
                retry: queue.retry,
                dlq: queue.dlq,
                inflight: queue.inflight,
                oldest_age_seconds: queue.oldest_age_seconds,
            },
        }
    }
}

/// What a requeue did.
#[derive(Debug, Clone, Object)]
pub struct RequeueAnswer {
    /// Nodes with a vector that were marked `ready` first.
    pub backfilled: u64,
    /// Nodes that matched, of those that were looked at.
    pub requested: u64,
    /// Nodes for which a job was enqueued; the others have a live job, or met a limit. Without a
    /// queue, nodes that were embedded.
    pub enqueued: u64,
    /// The `cursor` of a requeue of the others; null when there are none.
    #[oai(nullable)]
    pub next_cursor: Option<String>,
    /// How that ended; there without a queue only.
    #[oai(skip_serializing_if_is_none)]
    pub ended: Option<EndedCounts>,
}

impl From<Requeued> for RequeueAnswer {
    fn from(done: Requeued) -> Self {
        let Requeued { backfilled, requested, enqueued, next, ended } = done;
        let next_cursor = next.as_ref().map(cursor::written);
        Self { backfilled, requested, enqueued, next_cursor, ended: ended.map(Into::into) }
    }
}

/// How nodes ended that were embedded before the answer.
#[derive(Debug, Clone, Object)]
pub struct EndedCounts {
    /// Nodes with a vector.
    pub ready: u64,
    /// Nodes whose text the model refused.
    pub failed: u64,
    /// Nodes without a text.
    pub skipped: u64,
}

impl From<Ended> for EndedCounts {
    fn from(Ended { ready, failed, skipped }: Ended) -> Self {
        Self { ready, failed, skipped }
    }
}

/// What a refresh of many nodes did.
#[derive(Debug, Clone, Object)]
pub struct RefreshManyAnswer {
    /// `queued`, or `completed` without a queue.
    pub status: String,
    /// `specific_nodes` or `all_due_nodes`.
    pub mode: String,
    /// Nodes named, or due; 2000 of these at most, or `NODE_BATCH_MAX` without a queue.
    pub requested: u64,
    /// Nodes for which a job was enqueued; the others are not there, have a live job, or met a limit.
    pub enqueued: u64,
    /// Nodes that have their vector already: without a queue only.
    pub refreshed: u64,
    /// How the nodes ended; there without a queue only.
    #[oai(skip_serializing_if_is_none)]
    pub ended: Option<EndedCounts>,
}

impl RefreshManyAnswer {
    /// `named` is how many nodes were named; none if all that are due were meant.
    pub fn new(named: Option<u64>, done: Refreshed) -> Self {
        let Refreshed { requested, enqueued, ended } = done;
        let status = if ended.is_some() { "completed" } else { "queued" };
        let mode = if named.is_some() { "specific_nodes" } else { "all_due_nodes" };
        Self {
            status: status.to_owned(),
            mode: mode.to_owned(),
            requested: named.unwrap_or(requested),
            enqueued,
            refreshed: ended.map_or(0, |ended| ended.ready),
            ended: ended.map(Into::into),
        }
    }
}

/// How vectors are made. What only a loaded model tells is null where this process has none.
#[derive(Debug, Clone, Object)]
pub struct EmbedInfoAnswer {
    /// `candle` or `hash`.
    pub embedding_backend: String,
    /// As it is configured.
    pub embedding_model: String,
    /// Components of each vector.
    pub dimension: u64,
    /// As it is configured.
    pub device: String,
    /// Identifies the vectors, together with the model's name.
    #[oai(nullable)]
    pub model_revision: Option<String>,
    /// Texts are cut to this many tokens.
    #[oai(nullable)]
    pub max_tokens: Option<u64>,
    /// The type of the operands of matrix products.
    #[oai(nullable)]
    pub dtype: Option<String>,
    /// The code that computes.
    #[oai(nullable)]
    pub kernel: Option<String>,
    /// Threads that compute.
    #[oai(nullable)]
    pub threads: Option<u64>,
}

impl From<EmbedInfo> for EmbedInfoAnswer {
    fn from(info: EmbedInfo) -> Self {
        let loaded = info.loaded.as_ref();
        Self {
            embedding_backend: info.backend.to_owned(),
            embedding_model: info.model,
            dimension: info.dimension as u64,
            device: info.device,
            model_revision: loaded.map(|model| model.revision.clone()),
            max_tokens: loaded.map(|model| model.max_tokens as u64),
            dtype: loaded.map(|model| model.dtype.to_owned()),
            kernel: loaded.map(|model| model.kernel.to_owned()),
            threads: loaded.map(|model| model.threads as u64),
        }
    }
}

/// The process lives.
#[derive(Debug, Clone, Object)]
pub struct HealthAnswer {
    /// `ok`.
    pub status: String,
    /// The time of this answer.
    pub timestamp: DateTime<Utc>,
    /// The version of the program.
    pub version: String,
    /// How long it has been there.
    pub uptime_seconds: f64,
    /// Its parts, each as it was when `/readyz` was last asked for.
    pub components: BTreeMap<String, Component>,
}

/// A part of the process.
#[derive(Debug, Clone, Object)]
pub struct Component {
    /// `ok`, `unavailable` or `unknown`.
    pub status: String,
}

impl HealthAnswer {
    /// The answer of a process that is `uptime` old.
    pub fn new(uptime: Duration, parts: Vec<(&'static str, Seen)>) -> Self {
        let component = |(name, seen): (&str, Seen)| {
            let status = match seen {
                Seen::Ok => "ok",
                Seen::Unavailable => "unavailable",
                Seen::Unknown => "unknown",
            };
            (name.to_owned(), Component { status: status.to_owned() })
        };
        Self {
            status: "ok".to_owned(),
            timestamp: Utc::now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: uptime.as_secs_f64(),
            components: parts.into_iter().map(component).collect(),
        }
    }
}

/// Every part that work needs is there.
#[derive(Debug, Clone, Object)]
pub struct ReadyAnswer {
    /// `ready`.
    pub status: String,
    /// The parts, each `ok`.
    pub checks: BTreeMap<String, String>,
}
