//! Reads the fields of a JSON object, and names the one that is wrong.

use std::fmt;

use serde_json::{Map, Value};

use crate::domain::{TenantId, tenant::TENANT_ID_MAX_CHARS};

/// A field that is not as it must be. Displays as `nodes[3].classes: must be …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The path of the field; empty for the body itself.
    pub field: String,
    /// What it must be.
    pub reason: String,
}

impl Invalid {
    /// The field at `path` is not what `reason` says it must be.
    pub fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: path.into(), reason: reason.into() }
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

    /// Takes an integer from `min` to `max`.
    pub fn integer(&mut self, name: &str, min: u64, max: u64) -> Result<Option<u64>, Invalid> {
        let Some(value) = self.any(name) else { return Ok(None) };
        match value.as_u64().or_else(|| whole(value.as_f64()?)) {
            Some(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => Err(Invalid::new(
                self.path(name),
                format!("must be an integer from {min} to {max}"),
            )),
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

    /// Takes the name of a tenant.
    pub fn tenant(&mut self, name: &str) -> Result<Option<TenantId>, Invalid> {
        let Some(tenant) = self.string(name)? else { return Ok(None) };
        read_tenant(&tenant).map(Some).map_err(|reason| Invalid::new(self.path(name), reason))
    }
}

/// Reads the name of a tenant; the error says what it must be.
pub fn read_tenant(name: &str) -> Result<TenantId, String> {
    TenantId::new(name).map_err(|_| {
        format!("must be 1 to {TENANT_ID_MAX_CHARS} characters without control characters")
    })
}

/// JSON knows one kind of number: `2.0` is the integer 2.
fn whole(number: f64) -> Option<u64> {
    (number.fract() == 0.0 && (0.0..=9e15).contains(&number)).then_some(number as u64)
}

/// Refuses U+0000 in any string or key: Postgres can store it in neither text nor jsonb.
pub fn refuse_nul(value: &Value, path: &str) -> Result<(), Invalid> {
    let nul = |at: &str| Err(Invalid::new(at, "must not contain the character U+0000"));
    match value {
        Value::String(text) if text.contains('\0') => nul(path),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| refuse_nul(item, &format!("{path}[{index}]"))),
        Value::Object(fields) => fields.iter().try_for_each(|(name, field)| {
            if name.contains('\0') {
                return nul(path);
            }
            let dot = if path.is_empty() { "" } else { "." };
            refuse_nul(field, &format!("{path}{dot}{name}"))
        }),
        _ => Ok(()),
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
        let mut node = fields(json!({"a": 1, "b": "x", "c": {}, "d": 0, "e": 2.5, "t": "a\nb"}));
        let reasons = [
            node.string("a").unwrap_err(),
            node.boolean("b").unwrap_err(),
            node.array("c").unwrap_err(),
            node.integer("d", 1, 9).unwrap_err(),
            node.integer("e", 1, 9).unwrap_err(),
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
        let mut node = fields(json!({"a": null, "limit": 2.0}));
        assert_eq!(node.string("a"), Ok(None));
        assert_eq!(node.integer("limit", 1, 2000), Ok(Some(2)));
    }

    #[test]
    fn nul_is_found_at_any_depth_in_values_and_keys() {
        let at = |value: Value| refuse_nul(&value, "").err().map(|invalid| invalid.field);
        assert_eq!(at(json!({"props": {"a": [1, {"b": "x\0"}]}})), Some("props.a[1].b".into()));
        assert_eq!(at(json!({"props": {"a\0": 1}})), Some("props".into()));
        assert_eq!(at(json!({"props": {"a": "\u{1}", "b": null}})), None);
    }
}
