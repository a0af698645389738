//! Reads a JSON body: within the size limit, with or without a `Content-Length`, as it is or by
//! gzip, and telling malformed (400) from invalid (422).

use std::io;

use async_compression::tokio::bufread::GzipDecoder;
use poem::{
    Body, Request, RequestBody, Result,
    http::StatusCode,
    http::header::{CONTENT_ENCODING, CONTENT_LENGTH},
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaMediaType, MetaRequest, Registry},
    types::Type,
};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};

use super::{
    errors::Problem,
    fields::{Fields, Invalid},
    json::Unambiguous,
    limits::{BODY_TIMEOUT, HttpConfig},
    memory::{Held, Memory, cost},
    types::JsonObject,
};
use crate::{
    heavy::{self, Weight},
    runtime::Burden,
};

/// How many times the limit is read and thrown away, so that a client that sends before it
/// listens gets its 413 instead of a closed connection.
const DISCARD_FACTOR: usize = 4;

/// What a JSON body can be read as.
pub trait FromBody: Sized + Send + 'static {
    /// What the OpenAPI document shows of it.
    type Schema: Type;

    /// The content types that the OpenAPI document shows.
    const CONTENT_TYPES: &'static [&'static str] = &["application/json"];

    /// Reads the parsed body.
    fn from_body(body: Value, config: &HttpConfig) -> Result<Self, Invalid>;
}

/// A JSON request body.
pub struct JsonBody<T> {
    /// What it says.
    pub value: T,
    /// What it weighs, with the room for it.
    pub burden: Burden,
}

/// A JSON request body that may be left out, which means the same as `null`.
pub struct OptionalJsonBody<T> {
    /// What it says.
    pub value: T,
    _burden: Burden,
}

/// Where nothing is said in a body: there is none, or an empty JSON object.
pub struct NoBody;

impl FromBody for NoBody {
    type Schema = JsonObject;

    fn from_body(body: Value, _config: &HttpConfig) -> Result<Self, Invalid> {
        if !body.is_null() {
            Fields::of(body, "")?.only(&[])?;
        }
        Ok(Self)
    }
}

impl<'a, T: FromBody> ApiExtractor<'a> for JsonBody<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];

    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::Schema::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(meta_of::<T>(true))
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> Result<Self> {
        if request.content_type().is_none() {
            return Err(not_json().into());
        }
        let (value, burden) = understand(read(request, body).await?, request).await?;
        Ok(Self { value, burden })
    }
}

impl<'a, T: FromBody> ApiExtractor<'a> for OptionalJsonBody<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];

    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::Schema::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(meta_of::<T>(false))
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> Result<Self> {
        let (value, _burden) = understand(read_optional(request, body).await?, request).await?;
        Ok(Self { value, _burden })
    }
}

impl<'a> ApiExtractor<'a> for NoBody {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];

    type ParamType = ();
    type ParamRawType = ();

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> Result<Self> {
        let (nothing, _) = understand(read_optional(request, body).await?, request).await?;
        Ok(nothing)
    }
}

fn meta_of<T: FromBody>(required: bool) -> MetaRequest {
    let media_type = |content_type: &&'static str| MetaMediaType {
        content_type,
        schema: T::Schema::schema_ref(),
    };
    MetaRequest {
        description: None,
        content: T::CONTENT_TYPES.iter().map(media_type).collect(),
        required,
    }
}

fn config_of(request: &Request) -> HttpConfig {
    request.data::<HttpConfig>().copied().unwrap_or_default()
}

fn memory_of(request: &Request) -> Memory {
    request.data::<Memory>().cloned().unwrap_or_else(|| Memory::new(usize::MAX))
}

/// The answer to a body that is not JSON by its own words, or does not say what it is.
pub fn not_json() -> Problem {
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "send the body as JSON, with the header Content-Type: application/json",
    )
}

/// Reads a body that need not be there; `null` if it is not.
async fn read_optional(request: &Request, body: &mut RequestBody) -> Result<Arrived> {
    let arrived = read(request, body).await?;
    match (arrived.bytes.is_empty(), request.content_type()) {
        (true, _) => Ok(Arrived { bytes: b"null".to_vec(), ..arrived }),
        (false, None) => Err(not_json().into()),
        (false, Some(_)) => Ok(arrived),
    }
}

/// The bytes of a body.
struct Arrived {
    bytes: Vec<u8>,
    _held: Held,
}

/// Reads what a body says; answers the room for it, too.
async fn understand<T: FromBody>(
    arrived: Arrived,
    request: &Request,
) -> Result<(T, Burden), Problem> {
    let (config, memory) = (config_of(request), memory_of(request));
    let weight = Weight::of(arrived.bytes.len());
    let is_light = weight == Weight::Light;
    let count = move || (cost(&arrived.bytes), arrived);
    let (cost, arrived) = if is_light { count() } else { heavy::apart(count).await };
    let held = memory.for_parsed(cost).await?;
    // The room goes with the work: that goes on when the client hangs up.
    let burden = Burden::new(weight, held);
    let understand = move || Ok((T::from_body(parse(&arrived.bytes)?, &config)?, burden));
    if is_light { understand() } else { heavy::apart(understand).await }
}

/// Reads a body to its end, decoded.
async fn read(request: &Request, body: &mut RequestBody) -> Result<Arrived> {
    let memory = memory_of(request);
    let limit = config_of(request).body_limit.min(memory.most());
    let is_gzip = is_gzip(request)?;
    let announced = request.header(CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
    // What is not announced, or stands for more, may be as large as may be.
    let most = announced.filter(|_| !is_gzip).unwrap_or(limit).min(limit);
    let held = memory.for_arrival(most).await?;
    let (announced, body) = (announced.unwrap_or(0), body.take()?);
    let bytes = tokio::time::timeout(BODY_TIMEOUT, read_limited(body, is_gzip, announced, limit));
    let bytes = bytes.await.unwrap_or_else(|_| {
        let seconds = BODY_TIMEOUT.as_secs();
        Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not arrive within {seconds} seconds; send it faster"),
        ))
    })?;
    Ok(Arrived { bytes, _held: held })
}

/// # Errors
/// 415: the body is encoded in another way.
fn is_gzip(request: &Request) -> Result<bool, Problem> {
    let encodings = request.headers().get_all(CONTENT_ENCODING).iter();
    let encodings: Vec<&[u8]> = encodings.map(|encoding| encoding.as_bytes()).collect();
    match encodings.as_slice() {
        [] => Ok(false),
        [one] if one.eq_ignore_ascii_case(b"identity") => Ok(false),
        [one] if one.eq_ignore_ascii_case(b"gzip") || one.eq_ignore_ascii_case(b"x-gzip") => {
            Ok(true)
        }
        _ => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "this Content-Encoding is not understood; send the body as it is, or by gzip",
        )),
    }
}

/// Whether a `Content-Type` says JSON: `application/json` or `application/<x>+json`.
pub fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence
        .strip_prefix("application/")
        .is_some_and(|kind| kind == "json" || kind.ends_with("+json"))
}

/// Reads a body of at most `limit` bytes, as they are when they are decoded: no more than that is
/// kept, whatever an encoding stands for.
async fn read_limited(
    body: Body,
    is_gzip: bool,
    announced: usize,
    limit: usize,
) -> Result<Vec<u8>, Problem> {
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
    let mut sent = body.into_async_read().take(discard_limit as u64 + 1);
    let kept = if is_gzip {
        let mut decoder = GzipDecoder::new(BufReader::new(&mut sent));
        // What follows the first part is not to be passed over in silence.
        decoder.multiple_members(true);
        read_kept(&mut decoder, announced, limit, discard_limit).await
    } else {
        read_kept(&mut sent, announced, limit, discard_limit).await
    };
    // What is left there was not looked at.
    if sent.limit() == 0 {
        return Err(too_large());
    }
    let incomplete = match is_gzip {
        true => "the body is not gzip, or ended before it was complete",
        false => "the body ended before it was complete",
    };
    kept.map_err(|_| Problem::new(StatusCode::BAD_REQUEST, incomplete))?.ok_or_else(too_large)
}

/// Reads to the end, or to `discard_limit`; `None` if there is more than `limit`, of which no more
/// is kept.
async fn read_kept(
    reader: &mut (impl AsyncRead + Unpin),
    announced: usize,
    limit: usize,
    discard_limit: usize,
) -> io::Result<Option<Vec<u8>>> {
    let mut kept = Vec::with_capacity(announced.min(limit));
    let mut chunk = vec![0; 16 * 1024];
    let mut total = 0_usize;
    loop {
        let read = reader.read(&mut chunk).await?;
        total += read;
        if read == 0 || total > discard_limit {
            return Ok(Some(kept).filter(|_| total <= limit));
        }
        if total <= limit {
            kept.extend_from_slice(&chunk[..read]);
        }
        // Few bytes may stand for many, which are all there at once.
        tokio::task::coop::consume_budget().await;
    }
}

/// What some programs write before a text to say that it is UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Parses the bytes of a body. The parser bounds the depth, so that no input overflows a stack.
fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let body: Result<Unambiguous, _> = serde_json::from_slice(bytes);
    body.map(|body| body.0).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}"))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::AsyncWriteExt;

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
            read_limited(body, false, announced, 100_000).await.map(|bytes| bytes.len())
        };
        assert_eq!(read(100_000, 0).await, Ok(100_000));
        assert_eq!(read(100_001, 0).await.unwrap_err().status, 413);
        assert_eq!(read(2_000_000, 0).await.unwrap_err().status, 413);
        assert_eq!(read(0, usize::MAX).await.unwrap_err().status, 413);
    }

    #[tokio::test]
    async fn gzip_that_stands_for_nothing_is_bounded_too() {
        let mut encoder = async_compression::tokio::write::GzipEncoder::new(Vec::new());
        encoder.shutdown().await.unwrap();
        let empty = encoder.into_inner();
        let read =
            async |parts: usize| read_limited(Body::from(empty.repeat(parts)), true, 0, 1000).await;
        let most = 1000 * DISCARD_FACTOR / empty.len();
        assert_eq!(read(most).await, Ok(Vec::new()));
        for parts in [most + 1, 100 * most] {
            assert_eq!(read(parts).await.unwrap_err().status, 413, "{parts} parts");
        }
    }
}
