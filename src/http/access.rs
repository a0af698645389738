//! Around every request: its id, one span, one line in the log, and the promise that whatever
//! goes wrong leaves as `{"detail"}`. Bodies, query strings and ids of nodes are never logged.

use std::{panic::AssertUnwindSafe, time::Instant};

use futures::FutureExt;
use poem::{
    Endpoint, IntoResponse, Middleware, Request, Response,
    http::{HeaderValue, StatusCode, header},
};
use tracing::Instrument;
use uuid::Uuid;

use super::{
    admit::{self, Hosts},
    calls::{Call, Path, Paths},
    errors::Problem,
};

const REQUEST_ID: &str = "x-request-id";
/// Characters of a client's own request id at most.
const REQUEST_ID_MAX_CHARS: usize = 128;

/// The middleware.
#[derive(Clone)]
pub struct Access {
    paths: Paths,
    hosts: Option<Hosts>,
}

impl Access {
    /// Knows the paths, for the log, for `Allow` and for what a call may be asked. Requests are
    /// answered whomever they are addressed to unless there are `hosts`.
    pub fn new(paths: Paths, hosts: Option<Hosts>) -> Self {
        Self { paths, hosts }
    }
}

impl<E: Endpoint> Middleware<E> for Access {
    type Output = AccessEndpoint<E>;

    fn transform(&self, endpoint: E) -> Self::Output {
        AccessEndpoint { endpoint, access: self.clone() }
    }
}

/// An endpoint inside the middleware.
pub struct AccessEndpoint<E> {
    endpoint: E,
    access: Access,
}

impl<E: Endpoint> Endpoint for AccessEndpoint<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let started = Instant::now();
        let id = request_id(request.header(REQUEST_ID));
        let method = request.method().clone();
        let known = self.access.paths.find(request.uri().path());
        let path = known.map_or("unknown", |path| path.template.as_str());
        let span = tracing::info_span!("request", request_id = %id, %method, path);
        let mut response = async {
            let call = known.and_then(|path| path.call(&method));
            let response = self.answer(request, call).await;
            let response = as_problem(response, &id, known).await;
            let status = response.status().as_u16();
            let milliseconds = started.elapsed().as_secs_f64() * 1e3;
            if is_probe(path) {
                tracing::debug!(status, milliseconds, "answered");
            } else {
                tracing::info!(status, milliseconds, "answered");
            }
            response
        }
        .instrument(span)
        .await;
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        Ok(response)
    }
}

impl<E: Endpoint> AccessEndpoint<E> {
    /// Asks the inner endpoint, if the request may come that far, and survives its panic.
    async fn answer(&self, request: Request, call: Option<&Call>) -> Response {
        if let Err(problem) = self.admit(&request, call) {
            return problem.into_response();
        }
        match AssertUnwindSafe(self.endpoint.call(request)).catch_unwind().await {
            Ok(Ok(response)) => response.into_response(),
            Ok(Err(error)) => error.into_response(),
            Err(_) => {
                tracing::error!("a request handler panicked");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }

    fn admit(&self, request: &Request, call: Option<&Call>) -> Result<(), Problem> {
        // The router needs a path, which CONNECT and `OPTIONS *` do not have.
        if request.uri().path_and_query().is_none() || !request.uri().path().starts_with('/') {
            return Err(Problem::new(StatusCode::BAD_REQUEST, "the request has no path"));
        }
        let hosts = self.access.hosts.as_ref();
        if let Some(hosts) = hosts {
            hosts.check(request)?;
        }
        call.map_or(Ok(()), |call| admit::check(request, call, hosts))
    }
}

/// The client's id if it is harmless in a log, else a new one.
fn request_id(given: Option<&str>) -> String {
    let harmless = |id: &&str| {
        (1..=REQUEST_ID_MAX_CHARS).contains(&id.len())
            && id.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:/+=@".contains(c))
    };
    given.filter(harmless).map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// What is asked for every few seconds, and would fill the log.
fn is_probe(path: &str) -> bool {
    matches!(path, "/health" | "/readyz" | "/metrics" | "/prometheus")
}

/// Gives the errors that the framework made itself, and those that must name the request, the
/// form of all others.
async fn as_problem(response: Response, id: &str, path: Option<&Path>) -> Response {
    let status = response.status();
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        let detail = format!("internal error; see the server log, request id {id}");
        return Problem::new(status, detail).into_response();
    }
    let is_error = status.is_client_error() || status.is_server_error();
    let is_ours = response.content_type().is_some_and(|kind| kind.starts_with("application/json"));
    if !is_error || is_ours {
        return response;
    }
    match status {
        StatusCode::NOT_FOUND => {
            Problem::new(status, "there is nothing at this path; see /docs").into_response()
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            let allow = path.map(Path::allow).unwrap_or_default();
            let detail = format!("this path does not know the method; use {allow}");
            let mut response = Problem::new(status, detail).into_response();
            if let Ok(allow) = HeaderValue::from_str(&allow) {
                response.headers_mut().insert(header::ALLOW, allow);
            }
            response
        }
        _ => {
            let detail = response.into_body().into_string().await.unwrap_or_default();
            Problem::new(status, detail).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_that_could_forge_a_log_line_is_replaced() {
        assert_eq!(request_id(Some("01J-abc.7")), "01J-abc.7");
        for bad in ["", "a b", "a\nb", "\u{1b}[31m", &"x".repeat(129)] {
            assert_ne!(request_id(Some(bad)), bad);
        }
    }
}
