//! Puts the API together and serves it.

use std::{future::Future, io, net::TcpListener, time::Duration};

use poem::{
    Endpoint, EndpointExt, Response, Route, Server,
    endpoint::make_sync,
    get,
    http::{Method, StatusCode, header, uri::Scheme},
    listener::{Acceptor, TcpAcceptor},
    web::{LocalAddr, RemoteAddr},
};
use poem_openapi::{ExtraHeader, LicenseObject, OpenApiService, ServerObject, Tags};
use tokio::net::TcpStream;

use super::{
    access::{Access, Paths},
    admin::AdminApi,
    health::HealthApi,
    limits::HttpConfig,
    nodes::NodesApi,
};
use crate::runtime::Runtime;

/// A connection on which nothing happens for this long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long nothing is accepted after a failure.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The documentation may use what it holds itself, and load nothing from anywhere else.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; \
     style-src 'unsafe-inline'; img-src data:; font-src data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Groups of calls.
#[derive(Tags)]
pub enum Tag {
    /// Take nodes in, show them, change them, embed them again.
    Nodes,
    /// See what the queue does, and mend it.
    Admin,
    /// For load balancers and scrapers.
    Health,
}

type Apis = (NodesApi, AdminApi, HealthApi);

fn service() -> OpenApiService<Apis, ()> {
    let request_id = ExtraHeader::new("x-request-id")
        .description("The id of the request: the client's own if it sent one, else a new one.");
    OpenApiService::new((NodesApi, AdminApi, HealthApi), "Vecmill", env!("CARGO_PKG_VERSION"))
        .description(
            "Turns text into vectors, asynchronously, for many tenants, without losing any. \
             Every error is `{\"detail\": \"<what and what to do>\"}`.",
        )
        .license(LicenseObject::new("Apache-2.0"))
        .server(ServerObject::new("/").description("This server"))
        .extra_response_header::<String, _>(request_id)
}

/// The OpenAPI document as pretty JSON with a newline at its end.
pub fn openapi_document() -> String {
    service().spec() + "\n"
}

/// The whole HTTP API.
pub fn routes(runtime: Runtime, config: HttpConfig) -> impl Endpoint<Output = Response> {
    let service = service();
    let document = openapi_document();
    let docs = service.swagger_ui_html();
    let pages = ["/", "/docs", "/openapi.json"];
    Route::new()
        .at(
            "/docs",
            get(make_sync(move |_| {
                Response::builder()
                    .header(header::CONTENT_SECURITY_POLICY, DOCS_POLICY)
                    .content_type("text/html; charset=utf-8")
                    .body(docs.clone())
            })),
        )
        .at(
            "/openapi.json",
            get(make_sync(move |_| {
                Response::builder().content_type("application/json").body(document.clone())
            })),
        )
        .nest("/", service)
        .around(|api, request| async move {
            let is_root = request.uri().path() == "/" && request.method() == Method::GET;
            if is_root { Ok(to_docs()) } else { api.call(request).await }
        })
        .data(runtime)
        .data(config)
        .with(Access::new(Paths::of::<Apis>(&pages)))
}

/// Sends a browser that was given the bare address to the documentation.
fn to_docs() -> Response {
    Response::builder().status(StatusCode::SEE_OTHER).header(header::LOCATION, "/docs").finish()
}

/// Accepts connections, and pauses after a failure: out of file descriptors, every try fails at
/// once, and the loop around this would take a whole core.
struct PatientAcceptor(TcpAcceptor);

impl Acceptor for PatientAcceptor {
    type Io = TcpStream;

    fn local_addr(&self) -> Vec<LocalAddr> {
        self.0.local_addr()
    }

    async fn accept(&mut self) -> io::Result<(TcpStream, LocalAddr, RemoteAddr, Scheme)> {
        let accepted = self.0.accept().await;
        if let Err(error) = &accepted {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        accepted
    }
}

/// Serves until `shutdown` is ready; then takes no new connections, and returns when the
/// requests in progress have ended, or after `grace`.
///
/// # Errors
/// The listener cannot be used.
pub async fn serve(
    listener: TcpListener,
    endpoint: impl Endpoint + 'static,
    shutdown: impl Future<Output = ()>,
    grace: Duration,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let acceptor = TcpAcceptor::from_std(listener)?;
    Server::new_with_acceptor(PatientAcceptor(acceptor))
        .name("vecmill")
        .idle_timeout(IDLE_TIMEOUT)
        .run_with_graceful_shutdown(endpoint, shutdown, Some(grace))
        .await
}
