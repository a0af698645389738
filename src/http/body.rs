//! Reads a JSON body: within the size limit, with or without a `Content-Length`, and telling
//! malformed (400) from invalid (422).

use poem::{Body, Request, RequestBody, Result, http::StatusCode, http::header::CONTENT_LENGTH};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaMediaType, MetaRequest, Registry},
    types::Type,
};
use serde_json::Value;
use tokio::io::AsyncReadExt;

use super::{
    errors::Problem,
    fields::Invalid,
    limits::{BODY_TIMEOUT, HttpConfig},
};

/// How many times the limit is read and thrown away, so that a client that sends before it
/// listens gets its 413 instead of a closed connection.
const DISCARD_FACTOR: usize = 4;

/// What a JSON body can be read as.
pub trait FromBody: Sized + Send {
    /// What the OpenAPI document shows of it.
    type Schema: Type;

    /// The content types that the OpenAPI document shows.
    const CONTENT_TYPES: &'static [&'static str] = &["application/json"];

    /// Reads the parsed body.
    fn from_body(body: Value, config: &HttpConfig) -> Result<Self, Invalid>;
}

/// A JSON request body.
pub struct JsonBody<T>(pub T);

impl<'a, T: FromBody> ApiExtractor<'a> for JsonBody<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];

    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::Schema::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: None,
            content: T::CONTENT_TYPES
                .iter()
                .map(|content_type| MetaMediaType { content_type, schema: T::Schema::schema_ref() })
                .collect(),
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> Result<Self> {
        if !request.content_type().is_some_and(is_json) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "send the body as JSON, with the header Content-Type: application/json",
            )
            .into());
        }
        let config = request.data::<HttpConfig>().copied().unwrap_or_default();
        let announced = request
            .header(CONTENT_LENGTH)
            .and_then(|length| length.parse::<usize>().ok())
            .unwrap_or(0);
        let bytes = tokio::time::timeout(
            BODY_TIMEOUT,
            read_limited(body.take()?, announced, config.body_limit),
        )
        .await
        .unwrap_or_else(|_| {
            let seconds = BODY_TIMEOUT.as_secs();
            Err(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("the body did not arrive within {seconds} seconds; send it faster"),
            ))
        })?;
        let value = parse(&bytes)?;
        Ok(Self(T::from_body(value, &config).map_err(Problem::from)?))
    }
}

/// Whether a `Content-Type` says JSON: `application/json` or `application/<x>+json`.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence
        .strip_prefix("application/")
        .is_some_and(|kind| kind == "json" || kind.ends_with("+json"))
}

/// Reads a body of at most `limit` bytes.
async fn read_limited(body: Body, announced: usize, limit: usize) -> Result<Vec<u8>, Problem> {
    let too_large = || {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {limit} bytes; send fewer nodes at once"),
        )
    };
    let discard_limit = limit.saturating_mul(DISCARD_FACTOR);
    if announced > discard_limit {
        return Err(too_large());
    }
    let mut reader = body.into_async_read();
    let mut kept = Vec::with_capacity(announced.min(limit));
    let mut chunk = vec![0; 16 * 1024];
    let mut total = 0_usize;
    loop {
        let read = reader.read(&mut chunk).await.map_err(|_| {
            Problem::new(StatusCode::BAD_REQUEST, "the body ended before it was complete")
        })?;
        if read == 0 {
            break;
        }
        total += read;
        if total <= limit {
            kept.extend_from_slice(&chunk[..read]);
        } else if total > discard_limit {
            break;
        }
    }
    if total > limit { Err(too_large()) } else { Ok(kept) }
}

/// Parses the bytes of a body. The parser bounds the depth, so that no input overflows a stack.
fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(bytes).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}"))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn hostile_json_is_malformed_and_harms_nothing() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        let deeper = "{\"a\":".repeat(1_000_000);
        let bad: [&[u8]; 8] = [
            b"",
            b"{",
            b"nul",
            b"\xff",
            br#"{"a": "\ud800"}"#,
            b"[1e999]",
            deep.as_bytes(),
            deeper.as_bytes(),
        ];
        for body in bad {
            let problem = parse(body).unwrap_err();
            assert_eq!(problem.status, StatusCode::BAD_REQUEST);
            assert!(problem.detail.starts_with("the body is not JSON: "), "{}", problem.detail);
        }
    }

    #[test]
    fn only_json_is_json() {
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/x+json"] {
            assert!(is_json(json), "{json}");
        }
        for other in ["text/json", "application/x-www-form-urlencoded", "", "application/jsonp"] {
            assert!(!is_json(other), "{other}");
        }
    }

    #[tokio::test]
    async fn the_limit_holds_without_a_content_length() {
        let read = |size: usize, announced| async move {
            let body = Body::from(vec![b' '; size]);
            read_limited(body, announced, 100_000).await.map(|bytes| bytes.len())
        };
        assert_eq!(read(100_000, 0).await, Ok(100_000));
        assert_eq!(read(100_001, 0).await.unwrap_err().status, 413);
        assert_eq!(read(2_000_000, 0).await.unwrap_err().status, 413);
        assert_eq!(read(0, usize::MAX).await.unwrap_err().status, 413);
    }
}
