//! What a load balancer and a scraper ask for.

use poem::web::Data;
use poem_openapi::{
    ApiResponse, OpenApi,
    payload::{Json, PlainText},
};

use super::{
    errors::{Fails, Failure, Problem},
    reports::{HealthAnswer, ReadyAnswer},
    server::Tag,
};
use crate::runtime::Runtime;

/// Health and metrics.
pub struct HealthApi;

/// How a readiness check fails.
pub struct ReadyFails;

impl Fails for ReadyFails {
    const STATUSES: &'static [u16] = &[503];
}

/// The answer to a health check.
#[derive(ApiResponse)]
pub enum HealthResponse {
    /// The process lives.
    #[oai(status = 200)]
    Alive(Json<HealthAnswer>),
}

/// The answer to a readiness check.
#[derive(ApiResponse)]
pub enum ReadyResponse {
    /// Every part that work needs is there.
    #[oai(status = 200)]
    Ready(Json<ReadyAnswer>),
}

/// The answer to a scrape.
#[derive(ApiResponse)]
pub enum MetricsResponse {
    /// Metrics in the Prometheus text format.
    #[oai(status = 200, content_type = "text/plain; version=0.0.4; charset=utf-8")]
    Text(PlainText<String>),
}

#[OpenApi]
impl HealthApi {
    /// Whether the process lives
    #[oai(path = "/health", method = "get", operation_id = "health", tag = "Tag::Health")]
    async fn health(&self, Data(runtime): Data<&Runtime>) -> HealthResponse {
        HealthResponse::Alive(Json(HealthAnswer::new(runtime.uptime(), runtime.last_seen())))
    }

    /// Whether database, Redis and model are ready
    #[oai(path = "/readyz", method = "get", operation_id = "ready", tag = "Tag::Health")]
    async fn ready(
        &self,
        Data(runtime): Data<&Runtime>,
    ) -> Result<ReadyResponse, Failure<ReadyFails>> {
        let readiness = runtime.readiness().await;
        if !readiness.is_ready() {
            let missing: Vec<String> = readiness
                .parts
                .iter()
                .filter_map(|(part, state)| Some(format!("{part}: {}", state.as_ref().err()?)))
                .collect();
            let detail = format!("not ready: {}", missing.join("; "));
            return Err(Problem::unavailable(detail).into());
        }
        let ok = |(part, _): &(&str, _)| ((*part).to_owned(), "ok".to_owned());
        Ok(ReadyResponse::Ready(Json(ReadyAnswer {
            status: "ready".to_owned(),
            checks: readiness.parts.iter().map(ok).collect(),
        })))
    }

    /// Metrics
    #[oai(path = "/metrics", method = "get", operation_id = "metrics", tag = "Tag::Health")]
    async fn metrics(&self, Data(runtime): Data<&Runtime>) -> MetricsResponse {
        MetricsResponse::Text(PlainText(runtime.render_metrics().await))
    }

    /// Metrics, under another name
    #[oai(path = "/prometheus", method = "get", operation_id = "prometheus", tag = "Tag::Health")]
    async fn prometheus(&self, Data(runtime): Data<&Runtime>) -> MetricsResponse {
        MetricsResponse::Text(PlainText(runtime.render_metrics().await))
    }
}
