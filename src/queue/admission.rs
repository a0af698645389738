//! How jobs come in: admission, publication, enqueueing of nodes that have a row already; and what
//! becomes of them when their node changes or goes.

use std::{collections::BTreeMap, time::Duration};

use fred::types::Value;
use uuid::Uuid;

use super::{Queue, QueueError};
use crate::domain::{Job, TenantId};

/// How many jobs may be live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Queue, in flight and retry together.
    pub max_depth: u64,
    /// Live jobs of one tenant; 0: no limit.
    pub tenant_max_pending: u64,
}

/// Room for the jobs of one request, counted but not yet used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation(String);

/// Whether a request may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It may: publish its jobs with this, or cancel it.
    Admitted(Reservation),
    /// The queue has no room for it.
    QueueFull,
    /// This tenant has no room for it.
    TenantFull(TenantId),
}

/// What became of a node that was to be enqueued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enqueued {
    /// Its job is in the queue.
    New,
    /// The job of this id is live already.
    Live(String),
    /// The queue has no room for it.
    QueueFull,
    /// Its tenant has no room for it.
    TenantFull,
}

/// A reservation whose process died gives its room back after this time.
const RESERVATION_TTL: Duration = Duration::from_secs(60);
/// Jobs in one call of a script, so that no call holds the server for long.
const JOBS_PER_CALL: usize = 500;
/// Entries among which the job of a node that is gone is looked for (about 1 ms of the server's time);
/// a deeper one is ended when it is claimed.
const SEARCH_MAX_ENTRIES: usize = 1_000;

impl Queue {
    /// Decides on a request and counts its jobs, in one step: a hundred requests at once cannot
    /// pass a limit together.
    pub async fn reserve(
        &self,
        jobs: &BTreeMap<&TenantId, u64>,
        limits: Limits,
    ) -> Result<Admission, QueueError> {
        let reservation = serde_json::json!({
            "id": Uuid::new_v4(),
            "tenants": jobs
                .iter()
                .map(|(tenant, jobs)| (tenant.as_str(), jobs))
                .collect::<BTreeMap<_, _>>(),
        })
        .to_string();
        let answer: Vec<String> = self
            .run(
                &self.scripts.reserve,
                vec![
                    limits.max_depth.to_string().into(),
                    limits.tenant_max_pending.to_string().into(),
                    RESERVATION_TTL.as_millis().to_string().into(),
                    reservation.as_str().into(),
                ],
            )
            .await?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["ok"] => Ok(Admission::Admitted(Reservation(reservation))),
            ["tenant", name] => Ok(Admission::TenantFull(TenantId::new(*name).unwrap_or_default())),
            _ => Ok(Admission::QueueFull),
        }
    }

    /// Puts the jobs of a reservation on the queue; a node that has a live job by now is passed
    /// over. Returns how many were put.
    pub async fn publish(
        &self,
        reservation: &Reservation,
        jobs: &[Job],
    ) -> Result<u64, QueueError> {
        let mut args = vec![Value::from(reservation.0.as_str())];
        args.extend(jobs.iter().flat_map(job_arguments));
        self.run(&self.scripts.publish, args).await
    }

    /// Makes sure that the text of the node of `job`, which has just changed, gets a job: `job`, at
    /// once or in the place of the live one. Uses the reservation. Returns the id of the job.
    pub async fn change(&self, reservation: &Reservation, job: &Job) -> Result<String, QueueError> {
        let mut args = vec![Value::from(reservation.0.as_str())];
        args.extend(job_arguments(job));
        self.run(&self.scripts.change, args).await
    }

    /// Ends the jobs of a node that is gone, as far as no worker holds them. Returns how many.
    pub async fn forget(&self, node: Uuid, tenant: &TenantId) -> Result<u64, QueueError> {
        let args = vec![
            node.to_string().into(),
            tenant.as_str().into(),
            SEARCH_MAX_ENTRIES.to_string().into(),
        ];
        self.run(&self.scripts.forget, args).await
    }

    /// Gives a reservation back.
    pub async fn cancel(&self, reservation: &Reservation) -> Result<(), QueueError> {
        self.run(&self.scripts.cancel, vec![reservation.0.as_str().into()]).await
    }

    /// Enqueues nodes that have no live job, within the limits if there are any. One answer a
    /// job, in order.
    pub async fn enqueue(
        &self,
        jobs: &[Job],
        limits: Option<Limits>,
    ) -> Result<Vec<Enqueued>, QueueError> {
        let (depth, tenant) = limits
            .map_or((-1, -1), |limits| (limits.max_depth as i64, limits.tenant_max_pending as i64));
        let mut answers = Vec::with_capacity(jobs.len());
        for jobs in jobs.chunks(JOBS_PER_CALL) {
            let mut args = vec![Value::from(depth.to_string()), Value::from(tenant.to_string())];
            args.extend(jobs.iter().flat_map(job_arguments));
            let chunk: Vec<String> = self.run(&self.scripts.enqueue, args).await?;
            answers.extend(chunk.into_iter().map(|answer| match answer.as_str() {
                "new" => Enqueued::New,
                "full" => Enqueued::QueueFull,
                "tenant" => Enqueued::TenantFull,
                live => Enqueued::Live(live.strip_prefix("live:").unwrap_or(live).to_owned()),
            }));
        }
        Ok(answers)
    }
}

fn job_arguments(job: &Job) -> [Value; 4] {
    [
        job.node_id.to_string().into(),
        job.tenant_id.as_str().into(),
        job.job_id.as_str().into(),
        job.encode().into(),
    ]
}
