//! Places in a listing, as clients carry them from one answer to the next request.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use poem_openapi::registry::MetaSchema;
use serde_json::Value;
use uuid::Uuid;

use super::{fields::Invalid, limits::OFFSET_MAX, params::Parameter};
use crate::store::{Cursor, Position};

/// What a cursor holds: how many nodes are to be passed over, behind which node, and when that was
/// created.
type Parts = (u64, Option<Uuid>, Option<String>);

/// What is wrong with any other text.
const RULE: &str = "must be the next_cursor of an earlier answer; begin again without it";

/// The place as an opaque text.
pub fn written(cursor: &Cursor) -> String {
    let after = cursor.after.as_ref();
    let id = after.map(|position| position.id);
    let created_at = after.and_then(|position| position.created_at.clone());
    let parts: Parts = (cursor.skip, id, created_at);
    // Plain data always serialises.
    BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&parts).unwrap_or_default())
}

/// The place that a text stands for.
pub fn read(text: &str) -> Result<Cursor, String> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| RULE)?;
    let (skip, id, created_at): Parts = serde_json::from_slice(&bytes).map_err(|_| RULE)?;
    let is_odd = skip > OFFSET_MAX
        || (id.is_none() && created_at.is_some())
        // Postgres can store it in no text.
        || created_at.as_ref().is_some_and(|time| time.contains('\0'));
    if is_odd {
        return Err(RULE.to_owned());
    }
    Ok(Cursor { after: id.map(|id| Position { created_at, id }), skip })
}

/// The field `cursor` of an order; an empty one is none.
pub fn field(value: Option<Value>) -> Result<Option<Cursor>, Invalid> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) => {
            read(&text).map(Some).map_err(|reason| Invalid::new("cursor", reason))
        }
        Some(_) => Err(Invalid::new("cursor", RULE)),
    }
}

/// Where a page begins.
pub struct PageCursor(pub Cursor);

impl Parameter for PageCursor {
    const NAME: &'static str = "cursor";

    fn schema() -> MetaSchema {
        MetaSchema::new("string")
    }

    fn read(raw: &str) -> Result<Self, String> {
        read(raw).map(Self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_place_is_read_as_it_was_written() {
        let id = Uuid::from_u128(7);
        let created_at = Some("2026-01-02T03:04:05.678901+00:00".to_owned());
        for after in
            [None, Some(Position { created_at, id }), Some(Position { created_at: None, id })]
        {
            let cursor = Cursor { after, skip: 3 };
            let text = written(&cursor);
            assert_eq!(read(&text).unwrap(), cursor);
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            assert!(text.bytes().all(is_plain), "{text}");
        }
    }

    #[test]
    fn any_other_text_is_refused() {
        let encoded = |json: &str| BASE64_URL_SAFE_NO_PAD.encode(json);
        for bad in [
            String::new(),
            "x".to_owned(),
            "?".to_owned(),
            encoded("[]"),
            encoded("[0,null,\"2026-01-02T03:04:05Z\"]"),
            encoded("[-1,null,null]"),
            encoded("[50001,null,null]"),
            encoded("[0,\"00000000-0000-0000-0000-000000000007\",\"\\u0000\"]"),
        ] {
            assert_eq!(read(&bad), Err(RULE.to_owned()), "{bad}");
        }
        assert!(field(Some(Value::from(7))).is_err());
        assert_eq!(field(None).unwrap(), None);
    }
}
