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
    limits::{LIST_DEFAULT, LIST_MAX, OFFSET_MAX},
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
}

/// An optional query parameter.
pub struct Query<T>(pub Option<T>);

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
        let pairs: Vec<(String, String)> = request.params().unwrap_or_default();
        let mut values = pairs.iter().filter(|(name, _)| name == T::NAME).map(|(_, raw)| raw);
        let first = values.next();
        if values.next().is_some() {
            return Err(Problem::from(Invalid::new(T::NAME, "must be given once")).into());
        }
        Ok(Self(first.map(|raw| read(raw)).transpose()?))
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

/// Reads an integer from 0 or 1 up to `max`.
fn integer(raw: &str, min: u64, max: u64) -> Result<u64, String> {
    u64::from_str(raw)
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| format!("must be an integer from {min} to {max}"))
}

fn integer_schema(min: u64, max: u64, default: u64) -> MetaSchema {
    MetaSchema {
        minimum: Some(min as f64),
        maximum: Some(max as f64),
        default: default.to_json(),
        ..MetaSchema::new_with_format("integer", "int64")
    }
}

/// Rows of a listing.
pub struct Limit(pub u64);

impl Parameter for Limit {
    const NAME: &'static str = "limit";

    fn schema() -> MetaSchema {
        integer_schema(1, LIST_MAX, LIST_DEFAULT)
    }

    fn read(raw: &str) -> Result<Self, String> {
        integer(raw, 1, LIST_MAX).map(Self)
    }
}

/// Rows to pass over.
pub struct Offset(pub u64);

impl Parameter for Offset {
    const NAME: &'static str = "offset";

    fn schema() -> MetaSchema {
        integer_schema(0, OFFSET_MAX, 0)
    }

    fn read(raw: &str) -> Result<Self, String> {
        integer(raw, 0, OFFSET_MAX).map(Self)
    }
}

/// Python clients write `True`.
fn boolean(raw: &str) -> Result<bool, String> {
    match raw.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("must be true or false".to_owned()),
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
            min_length: Some(1),
            max_length: Some(TENANT_ID_MAX_CHARS),
            pattern: Some(r"^[^\u0000-\u001f\u007f-\u009f]+$".to_owned()),
            ..MetaSchema::new("string")
        }
    }

    fn read(raw: &str) -> Result<Self, String> {
        read_tenant(raw)
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
        for bad in ["0", "1001", "-1", "", "1.5", "x", "99999999999999999999999"] {
            assert!(Limit::read(bad).is_err(), "{bad}");
        }
        assert!(Offset::read("1000000001").is_err());
        assert!(NodeStatus::read("all").is_err());
        assert!(HasEmbedding::read("1").is_err());
        assert!(<TenantId as Parameter>::read("a\0b").is_err());
        assert_eq!(<Uuid as Parameter>::read("42"), Err("must be a UUID".into()));
        assert!(matches!(HasEmbedding::read("False"), Ok(HasEmbedding(false))));
        assert!(matches!(Limit::read("1000"), Ok(Limit(1000))));
    }
}
