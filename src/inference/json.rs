//! The JSON files of a model.

use std::{fs, io, path::Path};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::LoadError;

/// Reads a file that must be there.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    read_optional(path)?.ok_or_else(|| LoadError::Missing { path: path.to_owned() })
}

/// Reads a file, or gives `None` when there is no such file. A member that is `null` is as absent.
pub(super) fn read_optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LoadError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LoadError::Read { path: path.to_owned(), source }),
    };
    let failed = |source| LoadError::Json { path: path.to_owned(), source };
    let mut value: Value = serde_json::from_str(&text).map_err(failed)?;
    drop_nulls(&mut value);
    serde_json::from_value(value).map(Some).map_err(failed)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
