//! `/admin`: the operator's calls.

use poem::web::Data;
use poem_openapi::{ApiResponse, OpenApi, payload::Json};

use super::{
    body::{JsonBody, OptionalJsonBody},
    errors::{Fails, Failure},
    fields::Invalid,
    limits::{HttpConfig, REQUEUE_MAX},
    orders::{RefreshOrder, RequeueOrder},
    params::Query,
    reports::{RefreshManyAnswer, RequeueAnswer, StatusAnswer},
    server::Tag,
};
use crate::{
    domain::{TenantId, TenantScope},
    runtime::Runtime,
};

/// The operator's calls.
pub struct AdminApi;

/// How a status call fails.
pub struct StatusFails;

impl Fails for StatusFails {
    const STATUSES: &'static [u16] = &[422, 500, 503];
}

/// How a requeue fails.
pub struct RequeueFails;

impl Fails for RequeueFails {
    const STATUSES: &'static [u16] = &[400, 408, 413, 415, 422, 429, 500, 503];
}

/// The answer to a status call.
#[derive(ApiResponse)]
pub enum StatusResponse {
    /// Nodes by status, and the depths of the queue.
    #[oai(status = 200)]
    Status(Json<StatusAnswer>),
}

/// The answer to a requeue.
#[derive(ApiResponse)]
pub enum RequeueResponse {
    /// What was done.
    #[oai(status = 200)]
    Done(Json<RequeueAnswer>),
}

/// The answer to a refresh of many nodes.
#[derive(ApiResponse)]
pub enum RefreshManyResponse {
    /// What was done.
    #[oai(status = 200)]
    Done(Json<RefreshManyAnswer>),
}

#[OpenApi(prefix_path = "/admin", tag = "Tag::Admin")]
impl AdminApi {
    /// Count nodes and jobs
    #[oai(path = "/embedding/status", method = "get", operation_id = "embedding_status")]
    async fn status(
        &self,
        Data(runtime): Data<&Runtime>,
        /// Only nodes of this tenant; of every tenant when absent.
        tenant_id: Query<TenantId>,
    ) -> Result<StatusResponse, Failure<StatusFails>> {
        let scope = TenantScope::from_optional(tenant_id.0);
        let status = runtime.status(scope.clone()).await?;
        Ok(StatusResponse::Status(Json(StatusAnswer::new(&scope, status))))
    }

    /// Put nodes into the queue
    ///
    /// A node that has a live job is never enqueued twice. What could not be enqueued is
    /// `requested − enqueued`. One call looks at 10000 nodes at most, the oldest first, and enqueues
    /// `limit` at most; the next goes on at `next_cursor`, until that is null. Without a cursor it
    /// begins with the oldest, and passes over those that have a live job.
    #[oai(path = "/embedding/requeue", method = "post", operation_id = "requeue")]
    async fn requeue(
        &self,
        Data(runtime): Data<&Runtime>,
        Data(config): Data<&HttpConfig>,
        order: JsonBody<RequeueOrder>,
    ) -> Result<RequeueResponse, Failure<RequeueFails>> {
        let RequeueOrder { mut filter, backfill_ready } = order.value;
        filter.limit = filter.limit.min(nodes_at_once(runtime, config));
        let done = runtime.requeue(filter, backfill_ready).await?;
        Ok(RequeueResponse::Done(Json(done.into())))
    }

    /// Embed nodes again although their vectors are there
    ///
    /// These nodes, or with an empty list or no body all that are due by their `refresh_policy`:
    /// `{"cron": "*/5 * * * *"}` in UTC, or `{"interval": "5m"}` in m, h or d, since
    /// `last_refreshed`.
    #[oai(path = "/refresh", method = "post", operation_id = "refresh_nodes")]
    async fn refresh(
        &self,
        Data(runtime): Data<&Runtime>,
        Data(config): Data<&HttpConfig>,
        /// Only nodes of this tenant; of every tenant when absent.
        tenant_id: Query<TenantId>,
        order: OptionalJsonBody<RefreshOrder>,
    ) -> Result<RefreshManyResponse, Failure<RequeueFails>> {
        let RefreshOrder { tenant_id: in_body, node_ids } = order.value;
        let tenant = match (tenant_id.0, in_body) {
            (Some(one), Some(other)) if one != other => {
                return Err(Invalid::new("tenant_id", "is another one in the query").into());
            }
            (one, other) => one.or(other),
        };
        let scope = TenantScope::from_optional(tenant);
        let named = node_ids.as_ref().map(|ids| ids.len() as u64);
        let done = runtime.refresh_many(scope, node_ids, nodes_at_once(runtime, config)).await?;
        Ok(RefreshManyResponse::Done(Json(RefreshManyAnswer::new(named, done))))
    }
}

/// Nodes that one call takes at most. Without a queue the client waits for all of them.
fn nodes_at_once(runtime: &Runtime, config: &HttpConfig) -> u64 {
    match runtime.is_async() {
        true => REQUEUE_MAX,
        false => REQUEUE_MAX.min(config.batch_max as u64),
    }
}
