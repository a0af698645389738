//! `/admin/embedding`: the operator's calls.

use poem::web::Data;
use poem_openapi::{ApiResponse, OpenApi, payload::Json};

use super::{
    body::JsonBody,
    errors::{Fails, Failure},
    params::Query,
    requests::RequeueOrder,
    server::Tag,
    views::{RequeueAnswer, StatusAnswer},
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
    const STATUSES: &'static [u16] = &[400, 408, 409, 413, 415, 422, 429, 500, 503];
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

#[OpenApi(prefix_path = "/admin/embedding", tag = "Tag::Admin")]
impl AdminApi {
    /// Count nodes and jobs
    #[oai(path = "/status", method = "get", operation_id = "embedding_status")]
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
    /// `requested − enqueued`.
    #[oai(path = "/requeue", method = "post", operation_id = "requeue")]
    async fn requeue(
        &self,
        Data(runtime): Data<&Runtime>,
        order: JsonBody<RequeueOrder>,
    ) -> Result<RequeueResponse, Failure<RequeueFails>> {
        let RequeueOrder { filter, backfill_ready } = order.0;
        let done = runtime.requeue(filter, backfill_ready).await?;
        Ok(RequeueResponse::Done(Json(done.into())))
    }
}
