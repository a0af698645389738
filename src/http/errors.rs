//! Every way a request can fail, as status, `{"detail"}` and `Retry-After`.

use std::{marker::PhantomData, time::Duration};

use poem::{IntoResponse, Response, http::StatusCode, http::header::RETRY_AFTER};
use poem_openapi::{
    ApiResponse, Object,
    payload::{Json, Payload},
    registry::{MetaHeader, MetaMediaType, MetaResponse, MetaResponses, Registry},
    types::Type,
};

use super::fields::Invalid;
use crate::{
    queue::QueueError,
    runtime::RuntimeError,
    store::{Fault, Refusal, StoreError},
    telemetry::Chain,
};

/// When a client should try again after a part of us was away, in seconds.
pub const RETRY_AFTER_OUTAGE: u64 = 5;

/// An error.
#[derive(Debug, Clone, Object)]
#[oai(rename = "Error")]
pub struct ErrorBody {
    /// What is wrong, and what to do about it.
    pub detail: String,
}

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The status that fits.
    pub status: StatusCode,
    /// What is wrong, and what to do.
    pub detail: String,
    /// Seconds after which another try makes sense.
    pub retry_after: Option<u64>,
}

impl Problem {
    /// A problem that trying again does not mend.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), retry_after: None }
    }

    /// A part of us is away for the moment.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self {
            retry_after: Some(RETRY_AFTER_OUTAGE),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        }
    }

    /// The same about a part of the request.
    pub fn of(self, part: &str) -> Self {
        Self { detail: format!("{part}: {}", self.detail), ..self }
    }

    /// The runtime answered for fewer nodes than it was given.
    pub fn unanswered() -> Self {
        tracing::error!("the runtime answered for fewer nodes than it was given");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
    }

    /// A limit is reached.
    fn busy(detail: impl Into<String>, after: Duration) -> Self {
        Self {
            retry_after: Some(whole_seconds(after)),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail)
        }
    }
}

/// `Retry-After` knows whole seconds only, and 0 would invite a client to spin.
fn whole_seconds(after: Duration) -> u64 {
    (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1)
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        let status = match invalid.is_too_large {
            true => StatusCode::PAYLOAD_TOO_LARGE,
            false => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, invalid.to_string())
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.fault {
            Fault::Conflict => StatusCode::CONFLICT,
            Fault::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Fault::Content => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, refusal.to_string())
    }
}

impl From<RuntimeError> for Problem {
    /// Outages and defects are logged here, and nowhere else.
    fn from(error: RuntimeError) -> Self {
        let detail = error.to_string();
        match error {
            RuntimeError::QueueFull { retry_after, .. }
            | RuntimeError::TenantFull { retry_after, .. } => Self::busy(detail, retry_after),
            RuntimeError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, detail),
            RuntimeError::Ambiguous | RuntimeError::Store(StoreError::Cursor) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
            }
            RuntimeError::Store(StoreError::Unavailable(_))
            | RuntimeError::Queue(QueueError::Unavailable(_)) => {
                tracing::warn!(error = %Chain(&error), "a request met an outage");
                Self::unavailable(format!("{detail}; try again later"))
            }
            RuntimeError::Queue(QueueError::WrongType(_)) => {
                tracing::error!(error = detail, "a request met a key that is not ours");
                Self::unavailable(detail)
            }
            RuntimeError::Overloaded { retry_after } => {
                Self { retry_after: Some(whole_seconds(retry_after)), ..Self::unavailable(detail) }
            }
            RuntimeError::Embedder => {
                tracing::warn!(error = detail, "a request met an outage");
                Self::unavailable(detail)
            }
            RuntimeError::Store(StoreError::Row(refusal)) => refusal.into(),
            RuntimeError::Queue(QueueError::Refused(_)) => {
                tracing::error!(error = %Chain(&error), "Redis does not let this user work");
                Self::unavailable(format!("{detail}; see /readyz"))
            }
            RuntimeError::Store(_) | RuntimeError::Queue(_) => {
                tracing::error!(error = %Chain(&error), "a request failed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Json(ErrorBody { detail: self.detail }).into_response();
        response.set_status(self.status);
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<Problem> for poem::Error {
    fn from(problem: Problem) -> Self {
        Self::from_response(problem.into_response())
    }
}

/// Says with which statuses a call can fail.
pub trait Fails: Send + Sync + 'static {
    /// The statuses, in ascending order.
    const STATUSES: &'static [u16];
}

/// The failure of a call, with what the OpenAPI document says of it.
pub struct Failure<F>(Problem, PhantomData<F>);

impl<F, E: Into<Problem>> From<E> for Failure<F> {
    fn from(error: E) -> Self {
        Self(error.into(), PhantomData)
    }
}

impl<F> From<Failure<F>> for poem::Error {
    fn from(failure: Failure<F>) -> Self {
        failure.0.into()
    }
}

impl<F: Fails> ApiResponse for Failure<F> {
    fn meta() -> MetaResponses {
        MetaResponses { responses: F::STATUSES.iter().map(|status| describe(*status)).collect() }
    }

    fn register(registry: &mut Registry) {
        ErrorBody::register(registry);
    }
}

/// What a status means, for the OpenAPI document.
pub fn meaning(status: u16) -> &'static str {
    match status {
        400 => "The request is malformed: it has no Host, or its body is not JSON.",
        403 => "A web page of another site may not write here.",
        404 => "There is no such node, or the tenant named in the request does not own it.",
        408 => "The body did not arrive in time.",
        409 => "Another node has what must be unique.",
        413 => "The body is too large, or the node would be.",
        415 => "The Content-Type is not application/json, or the Content-Encoding not gzip.",
        421 => "The Host of the request is not a name of this server.",
        422 => "The request is well-formed but invalid; the detail names the field.",
        429 => "The queue or the tenant is at its limit; nothing was created or changed.",
        503 => "A part that is needed is away, or the server is starting; the detail names it.",
        _ => "A defect; the detail holds the id under which it is in the server's log.",
    }
}

/// What `Retry-After` means, for the OpenAPI document.
pub const RETRY_AFTER_MEANS: &str = "Seconds after which to try again; at least 1.";

/// Whether a failure says when to try again.
pub fn may_be_tried_again(status: u16) -> bool {
    matches!(status, 429 | 503)
}

fn describe(status: u16) -> MetaResponse {
    let headers = if may_be_tried_again(status) {
        vec![MetaHeader {
            name: "Retry-After".to_owned(),
            description: Some(RETRY_AFTER_MEANS.to_owned()),
            required: true,
            deprecated: false,
            schema: u64::schema_ref(),
        }]
    } else {
        Vec::new()
    };
    MetaResponse {
        description: meaning(status),
        status: Some(status),
        status_range: None,
        content: vec![MetaMediaType {
            content_type: Json::<ErrorBody>::CONTENT_TYPE,
            schema: ErrorBody::schema_ref(),
        }],
        headers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_never_told_to_return_at_once() {
        assert_eq!(whole_seconds(Duration::ZERO), 1);
        assert_eq!(whole_seconds(Duration::from_millis(1001)), 2);
        assert_eq!(whole_seconds(Duration::from_secs(7)), 7);
    }

    #[test]
    fn outages_are_503_and_defects_keep_their_cause_to_the_log() {
        let outage = StoreError::Unavailable(sea_orm::DbErr::Custom("host db-7".to_owned()));
        let problem = Problem::from(RuntimeError::from(outage));
        assert_eq!(problem.status, 503);
        assert_eq!(problem.retry_after, Some(RETRY_AFTER_OUTAGE));
        assert!(!problem.detail.contains("db-7"), "{}", problem.detail);

        let defect = StoreError::Refused(sea_orm::DbErr::Custom("column x".to_owned()));
        let problem = Problem::from(RuntimeError::from(defect));
        assert_eq!((problem.status.as_u16(), problem.detail.as_str()), (500, "internal error"));
    }
}
