//! The client side of the HTTP API.

use std::{fmt, time::Duration};

use reqwest::{
    Method, RequestBuilder, Response, StatusCode, Url, header::CONTENT_TYPE, header::RETRY_AFTER,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use url::Position;
use uuid::Uuid;

/// Without a queue the server embeds a whole batch before it answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What a server that is busy or away is given when it does not say how long.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// Why the server did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("{0} is no address of a server; use one like http://127.0.0.1:8000")]
    Address(String),
    /// No answer came.
    #[error("there is no answer from the server at {url}; check that it runs, and --url")]
    Unreachable {
        /// The address that was tried.
        url: String,
        /// What went wrong.
        #[source]
        source: reqwest::Error,
    },
    /// A part of the server is away (503).
    #[error("the server is not ready: {detail}")]
    NotReady {
        /// The server's words.
        detail: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// A limit is reached (429).
    #[error("the server is busy: {detail}")]
    Busy {
        /// The server's words.
        detail: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The server refused the request.
    #[error("the server refused the request with status {status}: {detail}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// The server's words.
        detail: String,
    },
    /// The answer cannot be read: there is another program at the address, or another version.
    #[error("the answer from {url} cannot be read; check that a vecmill of this version is there")]
    Answer {
        /// The address.
        url: String,
        /// What went wrong.
        #[source]
        source: reqwest::Error,
    },
}

impl ClientError {
    /// Whether the server was away rather than the request at fault.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::NotReady { .. })
    }
}

/// What became of a batch.
#[derive(Debug, Deserialize)]
pub struct BatchAnswer {
    /// One entry for each node, in the order of the request.
    pub results: Vec<BatchResult>,
}

/// What became of a node of a batch.
#[derive(Debug, Deserialize)]
pub struct BatchResult {
    /// Why it was refused; `None` if it was taken in.
    pub error: Option<String>,
}

/// Nodes by status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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

impl StatusCounts {
    /// Nodes that are not done.
    pub fn unfinished(&self) -> u64 {
        self.queued + self.processing
    }
}

impl fmt::Display for StatusCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queued, processing, ready, failed, skipped } = self;
        write!(
            f,
            "queued {queued}, processing {processing}, ready {ready}, failed {failed}, \
             skipped {skipped}"
        )
    }
}

/// Depths of the queue's structures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QueueDepths {
    /// Jobs waiting to be claimed.
    pub queue: u64,
    /// Jobs waiting for their next attempt.
    pub retry: u64,
    /// Dead letters.
    pub dlq: u64,
    /// Jobs that a worker holds.
    pub inflight: u64,
    /// Age of the oldest waiting job.
    pub oldest_age_seconds: Option<f64>,
}

/// The operator's view.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The tenant asked for; `None` for all.
    pub tenant_id: Option<String>,
    /// Nodes by status.
    pub status_counts: StatusCounts,
    /// Whether the nodes were counted, rather than estimated.
    #[serde(default = "yes")]
    pub total_exact: bool,
    /// The queue.
    pub queue: QueueDepths,
}

/// A server of an older version counts all.
fn yes() -> bool {
    true
}

/// What to requeue; the fields of `POST /admin/embedding/requeue`.
#[derive(Debug, Serialize)]
pub struct Requeue {
    /// Only nodes of this tenant.
    pub tenant_id: Option<String>,
    /// Only these nodes.
    pub node_ids: Option<Vec<Uuid>>,
    /// Only nodes in this status, or `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Only nodes without a vector.
    pub only_missing_embedding: bool,
    /// Whether nodes with a vector are marked `ready` first.
    pub backfill_ready: bool,
    /// Nodes at most.
    pub limit: u64,
    /// Where to begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// What a requeue did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Requeued {
    /// Nodes with a vector that were marked `ready` first.
    pub backfilled: u64,
    /// Nodes that matched, of those that were looked at.
    pub requested: u64,
    /// Nodes for which a job was enqueued.
    pub enqueued: u64,
    /// Where a requeue of the others begins.
    pub next_cursor: Option<String>,
}

/// A server.
pub struct Client {
    http: reqwest::Client,
    base: Url,
}

impl Client {
    /// A client of the server at `url`; nothing is sent yet.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        // What cannot be taken apart may hold a password.
        let shown = if url.contains(['@', '?']) { "--url".to_owned() } else { format!("{url:?}") };
        let base = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let mut base = base.ok_or(ClientError::Address(shown))?;
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let mut http =
            reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT);
        // A proxy cannot reach what this machine alone can.
        if matches!(base.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")) {
            http = http.no_proxy();
        }
        let http = http
            .build()
            .map_err(|source| ClientError::Unreachable { url: in_messages(&base), source })?;
        Ok(Self { http, base })
    }

    /// Sends a batch; `body` is the JSON of it.
    pub async fn create_nodes(&self, body: String) -> Result<BatchAnswer, ClientError> {
        let request = self.request(Method::POST, self.address("nodes/batch"));
        self.send(request.header(CONTENT_TYPE, "application/json").body(body)).await
    }

    /// Counts nodes and jobs, of one tenant or of all.
    pub async fn status(&self, tenant: Option<&str>) -> Result<Status, ClientError> {
        let mut address = self.address("admin/embedding/status");
        if let Some(tenant) = tenant {
            address.query_pairs_mut().append_pair("tenant_id", tenant);
        }
        self.send(self.request(Method::GET, address)).await
    }

    /// Puts nodes into the queue.
    pub async fn requeue(&self, order: &Requeue) -> Result<Requeued, ClientError> {
        let request = self.request(Method::POST, self.address("admin/embedding/requeue"));
        self.send(request.json(order)).await
    }

    fn address(&self, path: &str) -> Url {
        let mut address = self.base.clone();
        address.set_path(&format!("{}{path}", self.base.path()));
        address
    }

    fn request(&self, method: Method, address: Url) -> RequestBuilder {
        self.http.request(method, address)
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let url = in_messages(&self.base);
        let response = match request.send().await {
            Ok(response) => response,
            Err(source) => {
                return Err(ClientError::Unreachable { url, source: source.without_url() });
            }
        };
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        response
            .json()
            .await
            .map_err(|source| ClientError::Answer { url, source: source.without_url() })
    }
}

/// An address without the password that a proxy in front of the server may ask for.
fn in_messages(url: &Url) -> String {
    url[..Position::BeforeUsername].to_owned() + &url[Position::BeforeHost..Position::AfterPath]
}

/// What an answer that is no success says.
async fn refusal(response: Response) -> ClientError {
    let status = response.status();
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map_or(RETRY_AFTER_DEFAULT, Duration::from_secs)
        .max(RETRY_AFTER_DEFAULT);
    let body = response.json::<Value>().await.unwrap_or_default();
    let detail = body.get("detail").and_then(Value::as_str).unwrap_or("(no detail)").to_owned();
    match status {
        StatusCode::TOO_MANY_REQUESTS => ClientError::Busy { detail, retry_after },
        StatusCode::SERVICE_UNAVAILABLE => ClientError::NotReady { detail, retry_after },
        _ => ClientError::Refused { status, detail },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_address_keeps_its_path_and_must_be_one() {
        let client = Client::new("http://host:1/prefix").unwrap();
        assert_eq!(client.address("nodes/batch").as_str(), "http://host:1/prefix/nodes/batch");
        for bad in ["", "host:8000", "ftp://host", "/nodes"] {
            assert!(matches!(Client::new(bad), Err(ClientError::Address(_))), "{bad}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_never_shown() {
        let shown = |url| in_messages(&Url::parse(url).unwrap());
        assert_eq!(shown("https://me:secret@host:1/a/?token=secret"), "https://host:1/a/");
        assert_eq!(shown("http://host"), "http://host/");
        let refused = Client::new("htp://me:secret@host").err().unwrap().to_string();
        assert!(!refused.contains("secret"), "{refused}");
    }
}
