//! Puts the API together.

use bytes::Bytes;
use poem::{
    Endpoint, EndpointExt, Response, Route,
    endpoint::make_sync,
    get,
    http::{Method, StatusCode, header},
    middleware::{NormalizePath, TrailingSlash},
};
use poem_openapi::{ExtraHeader, LicenseObject, OpenApiService, ServerObject, Tags};

use super::{
    access::Access, admin::AdminApi, admit::Hosts, calls::Paths, debug::DebugApi,
    health::HealthApi, info::InfoApi, limits::HttpConfig, memory::Memory, nodes::NodesApi, schema,
};
use crate::runtime::Runtime;

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
    /// What one looks at when something is odd.
    Debug,
}

type Apis = (NodesApi, AdminApi, HealthApi, InfoApi, DebugApi);

fn service() -> OpenApiService<Apis, ()> {
    let request_id = ExtraHeader::new("x-request-id")
        .description("The id of the request: the client's own if it sent one, else a new one.");
    OpenApiService::new((NodesApi, AdminApi, HealthApi, InfoApi, DebugApi), "Vecmill", env!("CARGO_PKG_VERSION"))
        .description(
            "Turns text into vectors, asynchronously, for many tenants, without losing any. \
             Every error is `{\"detail\": \"<what and what to do>\"}`. A query parameter that a \
             call does not know is refused with 422. While the server listens on loopback without \
             authentication, a request that is addressed to another name is refused with 421, and a \
             write from a web page of another site with 403.",
        )
        .license(LicenseObject::new("Apache-2.0"))
        .server(ServerObject::new("/").description("This server"))
        .extra_response_header::<String, _>(request_id)
}

/// The OpenAPI document as pretty JSON with a newline at its end.
pub fn openapi_document() -> String {
    schema::finished(&service().spec())
}

/// The pages beside the calls.
const PAGES: [&str; 3] = ["/", "/docs", "/openapi.json"];

/// Around the API: who may come in, what every answer carries. With `hosts`, only requests that are
/// addressed to them are answered.
pub fn admitting(
    api: impl Endpoint<Output = Response> + 'static,
    hosts: Option<Hosts>,
) -> impl Endpoint<Output = Response> + 'static {
    api.with(Access::new(Paths::of::<Apis>(&PAGES), hosts))
        // A path with a slash at its end is the one without.
        .with(NormalizePath::new(TrailingSlash::Trim))
}

/// The API without what is [around it](admitting).
pub fn routes(
    runtime: Runtime,
    config: HttpConfig,
    memory: Memory,
) -> impl Endpoint<Output = Response> {
    let service = service();
    let document = openapi_document();
    let docs = service.swagger_ui_html().replace(&service.spec(), &document);
    // Shared by all answers: a page of more than a megabyte for each stream of a connection is more
    // than a machine has.
    let (docs, document) = (Bytes::from(docs), Bytes::from(document));
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
        .data(memory)
        .after(move |answer| async move { answer.map(|answer| in_their_words(answer, config)) })
}

/// Clients of ActiveKG take 200 alone for a success.
fn in_their_words(mut answer: Response, config: HttpConfig) -> Response {
    if config.activekg && answer.status() == StatusCode::ACCEPTED {
        answer.set_status(StatusCode::OK);
    }
    answer
}

/// Sends a browser that was given the bare address to the documentation.
fn to_docs() -> Response {
    Response::builder().status(StatusCode::SEE_OTHER).header(header::LOCATION, "/docs").finish()
}
