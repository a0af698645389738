//! Reads the fields of a JSON object, and names the one that is wrong.

use std::fmt;

use serde_json::{Map, Value};

use super::names;
use crate::domain::{TenantId, tenant::TENANT_ID_MAX_CHARS};

/// A field that is not as it must be. Displays as `nodes[3].classes: must be …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The path of the field; empty for the body itself.
    pub field: String,
    /// What it must be.
    pub reason: String,
    /// Whether it is only too large.
    pub is_too_large: bool,
}

impl Invalid {
    /// The field at `path` is not what `reason` says it must be.
    pub fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        let field: String = path.into();
        let field = names::shortened(&field).into_owned();
        Self { field, reason: reason.into(), is_too_large: false }
    }

    /// The node at `path` has more than `most` bytes.
    pub fn too_large(path: impl Into<String>, most: usize) -> Self {
        let reason = format!("must have at most {most} bytes of JSON (VECMILL_NODE_BYTES)");
        Self { is_too_large: true, ..Self::new(path, reason) }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = if self.field.is_empty() { "body" } else { &self.field };
        write!(f, "{field}: {}", self.reason)
    }
}

/// The fields of one object that have not been read yet. `null` counts as absent.
pub struct Fields {
    path: String,
    values: Map<String, Value>,
}

impl Fields {
    /// The fields of `value`, which is at `path` in the body.
    pub fn of(value: Value, path: &str) -> Result<Self, Invalid> {
        match value {
            Value::Object(values) => Ok(Self { path: path.to_owned(), values }),
            _ => Err(Invalid::new(path, "must be an object")),
        }
    }

    /// Refuses fields that are not among `known`: they would be ignored, whatever they mean.
    pub fn only(self, known: &[&str]) -> Result<Self, Invalid> {
        match self.values.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(self),
            Some(name) => Err(Invalid::new(self.path(name), names::unknown(name, known))),
        }
    }

    /// The path of a field of this object.
    pub fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Takes a field that may hold anything.
    pub fn any(&mut self, name: &str) -> Option<Value> {
        self.values.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field that may hold anything, `null` too; `None` when it is absent.
    pub fn given(&mut self, name: &str) -> Option<Value> {
        self.values.remove(name)
    }

    /// Takes a field that must be there.
    pub fn required(&mut self, name: &str) -> Result<Value, Invalid> {
        self.any(name).ok_or_else(|| Invalid::new(self.path(name), "is missing"))
    }

    /// Takes a string.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, Invalid> {
        match self.any(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Invalid::new(self.path(name), "must be a string")),
        }
    }

    /// Takes `true` or `false`.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, Invalid> {
        match self.any(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(Invalid::new(self.path(name), "must be true or false")),
        }
    }

    /// Takes an integer, the nearest one from `min` to `max`.
    pub fn clamped(&mut self, name: &str, min: u64, max: u64) -> Result<Option<u64>, Invalid> {
        let Some(value) = self.any(name) else { return Ok(None) };
        match value.as_f64().filter(|number| number.fract() == 0.0) {
            // JSON knows one kind of number: `2.0` is the integer 2.
            Some(number) => Ok(Some(number.clamp(min as f64, max as f64) as u64)),
            None => Err(Invalid::new(self.path(name), "must be an integer")),
        }
    }

    /// Takes an array.
    pub fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, Invalid> {
        match self.any(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(_) => Err(Invalid::new(self.path(name), "must be an array")),
        }
    }

    /// Takes the name of a tenant; an empty one is none.
    pub fn tenant(&mut self, name: &str) -> Result<Option<TenantId>, Invalid> {
        let Some(tenant) = self.string(name)?.filter(|tenant| !tenant.is_empty()) else {
            return Ok(None);
        };
        read_tenant(&tenant).map(Some).map_err(|reason| Invalid::new(self.path(name), reason))
    }
}

/// Reads the name of a tenant; the error says what it must be.
pub fn read_tenant(name: &str) -> Result<TenantId, String> {
    TenantId::new(name).map_err(|_| {
        format!("must be 1 to {TENANT_ID_MAX_CHARS} characters without control characters")
    })
}

/// Refuses U+0000 in any string or key: Postgres can store it in neither text nor jsonb.
pub fn refuse_nul(value: &Value, path: &str) -> Result<(), Invalid> {
    let Some(inner) = nul_in(value) else { return Ok(()) };
    let inner = if path.is_empty() { inner.trim_start_matches('.') } else { &inner };
    Err(Invalid::new(format!("{path}{inner}"), "must not contain the character U+0000"))
}

/// The path of the first U+0000 in a value, made on the way back from it only.
fn nul_in(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => text.contains('\0').then(String::new),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(index, item)| Some(format!("[{index}]{}", nul_in(item)?))),
        Value::Object(fields) => fields.iter().find_map(|(name, field)| {
            if name.contains('\0') {
                return Some(String::new());
            }
            Some(format!(".{}{}", names::shortened(name), nul_in(field)?))
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::of(value, "nodes[3]").unwrap()
    }

    #[test]
    fn the_wrong_field_is_named_by_its_path() {
        let mut node = fields(json!({"a": 1, "b": "x", "c": {}, "d": "1", "e": 2.5, "t": "a\nb"}));
        let reasons = [
            node.string("a").unwrap_err(),
            node.boolean("b").unwrap_err(),
            node.array("c").unwrap_err(),
            node.clamped("d", 1, 9).unwrap_err(),
            node.clamped("e", 1, 9).unwrap_err(),
            node.tenant("t").unwrap_err(),
            node.required("f").unwrap_err(),
        ];
        let names: Vec<_> = reasons.iter().map(|invalid| invalid.field.as_str()).collect();
        let at = ["a", "b", "c", "d", "e", "t", "f"].map(|name| format!("nodes[3].{name}"));
        assert_eq!(names, at);
        assert_eq!(Fields::of(json!([]), "").err().unwrap().to_string(), "body: must be an object");
    }

    #[test]
    fn null_is_absent_and_two_point_zero_is_two() {
        let mut node = fields(json!({"a": null, "limit": 2.0, "t": ""}));
        assert_eq!(node.string("a"), Ok(None));
        assert_eq!(node.tenant("t"), Ok(None));
        assert_eq!(node.clamped("limit", 1, 2000), Ok(Some(2)));
    }

    #[test]
    fn a_number_out_of_bounds_is_taken_as_the_nearest_one() {
        for (given, taken) in [
            (json!(0), 1),
            (json!(-7), 1),
            (json!(1), 1),
            (json!(2001), 2000),
            (json!(u64::MAX), 2000),
            (json!(1e300), 2000),
        ] {
            let mut node = fields(json!({"limit": given}));
            assert_eq!(node.clamped("limit", 1, 2000), Ok(Some(taken)), "{given}");
        }
    }

    #[test]
    fn a_field_that_would_be_ignored_is_refused_by_its_beginning() {
        let refusal = |name: &str| {
            let mut object = Map::new();
            object.insert(name.to_owned(), json!(1));
            fields(Value::Object(object)).only(&["classes", "tenant_id"]).err().unwrap()
        };
        assert_eq!(refusal("tenantId").field, "nodes[3].tenantId");
        assert!(refusal("tenantId").reason.contains("did you mean tenant_id?"));
        assert!(refusal(&"k".repeat(3_000_000)).to_string().len() < 400);
        assert!(fields(json!({"classes": 1})).only(&["classes"]).is_ok());
    }

    #[test]
    fn nul_is_found_at_any_depth_in_values_and_keys() {
        let at = |value: Value| refuse_nul(&value, "").err().map(|invalid| invalid.field);
        assert_eq!(at(json!({"props": {"a": [1, {"b": "x\0"}]}})), Some("props.a[1].b".into()));
        assert_eq!(at(json!({"props": {"a\0": 1}})), Some("props".into()));
        assert_eq!(at(json!({"props": {"a": "\u{1}", "b": null}})), None);
        let long = json!({"k".repeat(3_000_000): "\0"});
        assert!(at(long).unwrap().chars().count() <= 201);
    }
}
