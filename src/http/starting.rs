//! What is answered while the process starts: that it lives, and what it waits for.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use poem::{
    Endpoint, IntoResponse, Request, Response, Result,
    endpoint::{BoxEndpoint, EndpointExt},
    http::{Method, StatusCode},
};
use poem_openapi::types::ToJSON;
use tokio::sync::watch;

use super::{errors::Problem, reports::HealthAnswer};

/// The API, once it is there.
#[derive(Clone, Default)]
pub struct Routes(Arc<OnceLock<BoxEndpoint<'static>>>);

impl Routes {
    /// From now on, requests are answered by this.
    pub fn open(&self, api: impl Endpoint<Output = Response> + 'static) {
        // It is opened once; who would do it again has the same API.
        let _ = self.0.set(api.boxed());
    }
}

/// Answers for the API until it is there.
pub struct Gate {
    routes: Routes,
    awaited: watch::Receiver<String>,
    since: Instant,
}

impl Gate {
    /// `awaited` says what the process waits for, and perhaps why.
    pub fn new(routes: Routes, awaited: watch::Receiver<String>) -> Self {
        Self { routes, awaited, since: Instant::now() }
    }

    fn answer(&self, request: &Request) -> Response {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        if is_read && request.uri().path() == "/health" {
            return Response::builder()
                .status(StatusCode::OK)
                .content_type("application/json; charset=utf-8")
                .body(HealthAnswer::new(self.since.elapsed(), Vec::new()).to_json_string());
        }
        let awaited = self.awaited.borrow();
        Problem::unavailable(format!("not ready: starting; waiting for {}", *awaited))
            .into_response()
    }
}

impl Endpoint for Gate {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        match self.routes.0.get() {
            Some(api) => api.call(request).await,
            None => Ok(self.answer(&request)),
        }
    }
}
