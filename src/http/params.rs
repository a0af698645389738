//! Path and query parameters, read strictly: a value that is not understood is 422.

use std::str::FromStr;

use poem::{Request, RequestBody, Result};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaParamIn, MetaSchema, MetaSchemaRef},
    types::ToJSON,
};
use uuid::Uuid;

use super::{
    errors::Problem,
    fields::{Invalid, read_tenant},
    limits::{LIST_DEFAULT, LIST_MAX, OFFSET_MAX, VERSIONS_DEFAULT, VERSIONS_MAX},
};
use crate::domain::{NodeStatus, TenantId, node::UnknownStatus, tenant::TENANT_ID_MAX_CHARS};

/// The value of a parameter.
pub trait Parameter: Sized + Send + Sync {
    /// Its name in the path or the query.
    const NAME: &'static str;

    /// What the OpenAPI document says of its values.
    fn schema() -> MetaSchema;

    /// Reads a value; the error says what it must be.
    fn read(raw: &str) -> Result<Self, String>;

    /// Whether a value counts as none.
    fn is_none(_raw: &str) -> bool {
        false
    }
}

/// An optional query parameter.
pub struct Query<T>(pub Option<T>);

/// A query parameter that must be there.
pub struct RequiredQuery<T>(pub T);

/// A path parameter.
pub struct Path<T>(pub T);

fn read<T: Parameter>(raw: &str) -> Result<T, Problem> {
    T::read(raw).map_err(|reason| Invalid::new(T::NAME, reason).into())
}

impl<'a, T: Parameter> ApiExtractor<'a> for Query<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];

    type ParamType = ();
    type ParamRawType = ();

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Query)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        Some(MetaSchemaRef::Inline(Box::new(T::schema())))
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> Result<Self> {
        Ok(Self(find(request)?))
    }
}

/// The value of a parameter in the query.
fn find<T: Parameter>(request: &Request) -> Result<Option<T>, Problem> {
    let pairs: Vec<(String, String)> = request.params().unwrap_or_default();
    let mut values = pairs.iter().filter(|(name, _)| name == T::NAME).map(|(_, raw)| raw);
    let first = values.next();
    if values.next().is_some() {
        return Err(Invalid::new(T::NAME, "must be given once").into());
    }
    first.filter(|raw| !T::is_none(raw)).map(|raw| read(raw)).transpose()
}

impl<'a, T: Parameter> ApiExtractor<'a> for RequiredQuery<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];
    const PARAM_IS_REQUIRED: bool = true;

    type ParamType = ();
    type ParamRawType = ();

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Query)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        Some(MetaSchemaRef::Inline(Box::new(T::schema())))
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> Result<Self> {
        let missing = || Problem::from(Invalid::new(T::NAME, "is missing"));
        Ok(Self(find(request)?.ok_or_else(missing)?))
    }
}

impl<'a, T: Parameter> ApiExtractor<'a> for Path<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];
    const PARAM_IS_REQUIRED: bool = true;

    type ParamType = ();
    type ParamRawType = ();

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Path)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        Some(MetaSchemaRef::Inline(Box::new(T::schema())))
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        options: ExtractParamOptions<()>,
    ) -> Result<Self> {
        let raw = request.raw_path_param(options.name).unwrap_or_default();
        Ok(Self(read(raw)?))
    }
}

/// Reads an integer, the nearest one from `min` to `max`.
fn clamped(raw: &str, min: u64, max: u64) -> Result<u64, String> {
    let digits = raw.strip_prefix('-').unwrap_or(raw);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("must be an integer".to_owned());
    }
    // What no 64 bits hold is beyond the bound on its side.
    let beyond = if digits == raw { max } else { min };
    Ok(raw
        .parse::<i64>()
        .map_or(beyond, |number| u64::try_from(number).unwrap_or(min))
        .clamp(min, max))
}

/// No bounds: a value beyond them is taken as the nearest one.
fn clamped_schema(default: u64) -> MetaSchema {
    MetaSchema { default: default.to_json(), ..MetaSchema::new_with_format("integer", "int64") }
}

/// Rows of a listing.
pub struct Limit(pub u64);

impl Parameter for Limit {
    const NAME: &'static str = "limit";

    fn schema() -> MetaSchema {
        clamped_schema(LIST_DEFAULT)
    }

    fn read(raw: &str) -> Result<Self, String> {
        clamped(raw, 1, LIST_MAX).map(Self)
    }
}

/// Versions of a node.
pub struct VersionsLimit(pub u64);

impl Parameter for VersionsLimit {
    const NAME: &'static str = "limit";

    fn schema() -> MetaSchema {
        clamped_schema(VERSIONS_DEFAULT)
    }

    fn read(raw: &str) -> Result<Self, String> {
        clamped(raw, 1, VERSIONS_MAX).map(Self)
    }
}

/// Rows to pass over.
pub struct Offset(pub u64);

impl Parameter for Offset {
    const NAME: &'static str = "offset";

    fn schema() -> MetaSchema {
        MetaSchema {
            minimum: Some(0.0),
            maximum: Some(OFFSET_MAX as f64),
            default: 0.to_json(),
            ..MetaSchema::new_with_format("integer", "int64")
        }
    }

    fn read(raw: &str) -> Result<Self, String> {
        let offset = u64::from_str(raw).ok().filter(|offset| *offset <= OFFSET_MAX);
        let rule = "must be an integer from 0 to";
        offset.map(Self).ok_or_else(|| format!("{rule} {OFFSET_MAX}; use cursor to go further"))
    }
}

/// Python clients write `True`, and some `1`.
fn boolean(raw: &str) -> Result<bool, String> {
    match raw.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("must be true or false (also 1, yes, on, 0, no, off)".to_owned()),
    }
}

/// With or without a vector.
pub struct HasEmbedding(pub bool);

impl Parameter for HasEmbedding {
    const NAME: &'static str = "has_embedding";

    fn schema() -> MetaSchema {
        MetaSchema::new("boolean")
    }

    fn read(raw: &str) -> Result<Self, String> {
        boolean(raw).map(Self)
    }
}

/// Whether the vector is wanted.
pub struct IncludeEmbedding(pub bool);

impl Parameter for IncludeEmbedding {
    const NAME: &'static str = "include_embedding";

    fn schema() -> MetaSchema {
        MetaSchema { default: false.to_json(), ..MetaSchema::new("boolean") }
    }

    fn read(raw: &str) -> Result<Self, String> {
        boolean(raw).map(Self)
    }
}

impl Parameter for NodeStatus {
    const NAME: &'static str = "status";

    fn schema() -> MetaSchema {
        MetaSchema {
            enum_items: Self::ALL.iter().map(|status| status.as_str().into()).collect(),
            ..MetaSchema::new("string")
        }
    }

    fn read(raw: &str) -> Result<Self, String> {
        raw.parse().map_err(|unknown: UnknownStatus| unknown.to_string())
    }
}

impl Parameter for TenantId {
    const NAME: &'static str = "tenant_id";

    fn schema() -> MetaSchema {
        MetaSchema {
            max_length: Some(TENANT_ID_MAX_CHARS),
            pattern: Some(r"^[^\u0000-\u001f\u007f-\u009f]*$".to_owned()),
            ..MetaSchema::new("string")
        }
    }

    fn read(raw: &str) -> Result<Self, String> {
        read_tenant(raw)
    }

    fn is_none(raw: &str) -> bool {
        raw.is_empty()
    }
}

/// The id that a node has in another program.
pub struct ExternalId(pub String);

impl Parameter for ExternalId {
    const NAME: &'static str = "external_id";

    fn schema() -> MetaSchema {
        MetaSchema {
            min_length: Some(1),
            pattern: Some(r"^[^\u0000]+$".to_owned()),
            ..MetaSchema::new("string")
        }
    }

    fn read(raw: &str) -> Result<Self, String> {
        match raw.is_empty() || raw.contains('\0') {
            true => Err("must be a text without the character U+0000".to_owned()),
            false => Ok(Self(raw.to_owned())),
        }
    }
}

impl Parameter for Uuid {
    const NAME: &'static str = "id";

    fn schema() -> MetaSchema {
        MetaSchema::new_with_format("string", "uuid")
    }

    fn read(raw: &str) -> Result<Self, String> {
        raw.parse().map_err(|_| "must be a UUID".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_or_unknown_are_refused() {
        for bad in ["", "-", "1.5", "x", "1x", "+1"] {
            assert!(Limit::read(bad).is_err(), "{bad}");
        }
        assert!(Offset::read("50001").is_err());
        assert!(NodeStatus::read("all").is_err());
        assert!(HasEmbedding::read("2").is_err() && HasEmbedding::read("").is_err());
        assert!(<TenantId as Parameter>::read("a\0b").is_err());
        assert_eq!(<Uuid as Parameter>::read("42"), Err("must be a UUID".into()));
        assert!(ExternalId::read("").is_err() && ExternalId::read("a\0").is_err());
    }

    #[test]
    fn a_limit_beyond_its_bounds_is_the_nearest_one() {
        let limit = |raw| Limit::read(raw).map(|limit| limit.0);
        for (raw, taken) in [
            ("1000", 1000),
            ("1001", 1000),
            ("0", 1),
            ("-1", 1),
            ("007", 7),
            ("99999999999999999999999", 1000),
            ("-99999999999999999999999", 1),
        ] {
            assert_eq!(limit(raw), Ok(taken), "{raw}");
        }
        assert!(matches!(VersionsLimit::read("101"), Ok(VersionsLimit(100))));
    }

    #[test]
    fn yes_and_no_have_many_names() {
        for (raws, wanted) in [
            (["true", "True", "1", "YES", "on"], true),
            (["false", "FALSE", "0", "no", "Off"], false),
        ] {
            for raw in raws {
                let read = HasEmbedding::read(raw).map(|value| value.0);
                assert_eq!(read, Ok(wanted), "{raw}");
            }
        }
    }
}
