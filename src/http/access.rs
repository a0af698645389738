//! Around every request: its id, one span, one line in the log, and the promise that whatever
//! goes wrong leaves as `{"detail"}`. Bodies, query strings and ids of nodes are never logged.

use std::{panic::AssertUnwindSafe, time::Instant};

use futures::FutureExt;
use poem::{
    Endpoint, IntoResponse, Middleware, Request, Response, Result,
    http::{HeaderValue, Method, StatusCode, header},
};
use poem_openapi::OpenApi;
use tracing::Instrument;
use uuid::Uuid;

use super::errors::Problem;

const REQUEST_ID: &str = "x-request-id";
/// Characters of a client's own request id at most.
const REQUEST_ID_MAX_CHARS: usize = 128;

/// The paths that are served, with their methods.
#[derive(Debug, Clone)]
pub struct Paths(Vec<(String, Vec<Method>)>);

impl Paths {
    /// The paths of `T` and the pages, which are read with GET.
    pub fn of<T: OpenApi>(pages: &[&str]) -> Self {
        let calls = T::meta()
            .into_iter()
            .flat_map(|api| api.paths)
            .map(|path| (path.path, path.operations.into_iter().map(|call| call.method).collect()));
        let pages = pages.iter().map(|page| ((*page).to_owned(), vec![Method::GET]));
        let mut paths: Vec<(String, Vec<Method>)> = Vec::new();
        for (path, methods) in calls.chain(pages) {
            match paths.iter_mut().find(|(known, _)| *known == path) {
                Some((_, known)) => known.extend(methods),
                None => paths.push((path, methods)),
            }
        }
        // A literal path wins over a parameter, as it does in the router.
        paths.sort_by_key(|(path, _)| path.matches('{').count());
        Self(paths)
    }

    /// The template that a path matches, and its methods.
    fn find(&self, path: &str) -> Option<(&str, &[Method])> {
        self.0
            .iter()
            .find(|(template, _)| matches(template, path))
            .map(|(template, methods)| (template.as_str(), methods.as_slice()))
    }
}

fn matches(template: &str, path: &str) -> bool {
    template.split('/').count() == path.split('/').count()
        && template
            .split('/')
            .zip(path.split('/'))
            .all(|(expected, part)| expected.starts_with('{') || expected == part)
}

/// The value of `Allow`; whoever answers GET answers HEAD.
fn allow(methods: &[Method]) -> String {
    let mut names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    if names.contains(&"GET") {
        names.push("HEAD");
    }
    names.sort_unstable();
    names.join(", ")
}

/// The middleware.
pub struct Access {
    paths: Paths,
}

impl Access {
    /// Knows the paths, for the log and for `Allow`.
    pub fn new(paths: Paths) -> Self {
        Self { paths }
    }
}

impl<E: Endpoint> Middleware<E> for Access {
    type Output = AccessEndpoint<E>;

    fn transform(&self, endpoint: E) -> Self::Output {
        AccessEndpoint { endpoint, paths: self.paths.clone() }
    }
}

/// An endpoint inside the middleware.
pub struct AccessEndpoint<E> {
    endpoint: E,
    paths: Paths,
}

impl<E: Endpoint> Endpoint for AccessEndpoint<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        let started = Instant::now();
        let id = request_id(request.header(REQUEST_ID));
        let method = request.method().clone();
        let (path, methods) = self.paths.find(request.uri().path()).unwrap_or(("unknown", &[]));
        let span = tracing::info_span!("request", request_id = %id, %method, path);
        let mut response = async {
            let response = self.answer(request).await;
            let response = as_problem(response, &id, methods).await;
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
    /// Asks the inner endpoint, and survives its panic.
    async fn answer(&self, request: Request) -> Response {
        // The router needs a path, which CONNECT and `OPTIONS *` do not have.
        if request.uri().path_and_query().is_none() || !request.uri().path().starts_with('/') {
            return Problem::new(StatusCode::BAD_REQUEST, "the request has no path")
                .into_response();
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
async fn as_problem(response: Response, id: &str, methods: &[Method]) -> Response {
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
            let allow = allow(methods);
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
    fn paths_are_logged_as_templates_and_know_their_methods() {
        let paths =
            Paths::of::<(super::super::nodes::NodesApi, super::super::admin::AdminApi)>(&["/"]);
        let find = |path| paths.find(path).map(|(template, methods)| (template, allow(methods)));
        assert_eq!(find("/nodes"), Some(("/nodes", "GET, HEAD, POST".into())));
        assert_eq!(find("/nodes/batch"), Some(("/nodes/batch", "POST".into())));
        assert_eq!(find("/nodes/42"), Some(("/nodes/{id}", "DELETE, GET, HEAD, PATCH".into())));
        assert_eq!(find("/nodes/42/refresh"), Some(("/nodes/{id}/refresh", "POST".into())));
        assert_eq!(find("/"), Some(("/", "GET, HEAD".into())));
        assert_eq!(find("/nodes/1/2/3"), None);
    }

    #[test]
    fn a_request_id_that_could_forge_a_log_line_is_replaced() {
        assert_eq!(request_id(Some("01J-abc.7")), "01J-abc.7");
        for bad in ["", "a b", "a\nb", "\u{1b}[31m", &"x".repeat(129)] {
            assert_ne!(request_id(Some(bad)), bad);
        }
    }
}
