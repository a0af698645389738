//! Tenants, and the scope that every query carries.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest tenant id accepted, in characters.
pub const TENANT_ID_MAX_CHARS: usize = 200;

/// The name of a tenant; never empty, at most [`TENANT_ID_MAX_CHARS`] characters, free of
/// control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(String);

/// Why a string is no tenant id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("tenant_id must be 1 to {TENANT_ID_MAX_CHARS} characters without control characters")]
pub struct InvalidTenantId;

impl TenantId {
    /// Checks and wraps a tenant name.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidTenantId> {
        let name = name.into();
        let chars = name.chars().count();
        if chars == 0 || chars > TENANT_ID_MAX_CHARS || name.chars().any(char::is_control) {
            return Err(InvalidTenantId);
        }
        Ok(Self(name))
    }

    /// The name as it stands in Redis keys and database rows.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TenantId {
    /// The tenant of a write that names none: `default`.
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TenantId {
    type Error = InvalidTenantId;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(name)
    }
}

impl From<TenantId> for String {
    fn from(tenant: TenantId) -> Self {
        tenant.0
    }
}

/// Whose rows a query may see. There is no default: each caller says which it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantScope {
    /// Every tenant: the operator's view.
    All,
    /// One tenant alone.
    One(TenantId),
}

impl TenantScope {
    /// The scope of a read or admin call: an absent tenant means all of them.
    pub fn from_optional(tenant: Option<TenantId>) -> Self {
        tenant.map_or(Self::All, Self::One)
    }

    /// The scope of a write: an absent tenant means `default`.
    pub fn of_write(tenant: Option<TenantId>) -> Self {
        Self::One(tenant.unwrap_or_default())
    }

    /// The one tenant of this scope, if it has one.
    pub fn tenant(&self) -> Option<&TenantId> {
        match self {
            Self::All => None,
            Self::One(tenant) => Some(tenant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_keys_are_refused() {
        for bad in ["", "a\0b", "a\nb", &"x".repeat(TENANT_ID_MAX_CHARS + 1)] {
            assert_eq!(TenantId::new(bad), Err(InvalidTenantId), "{bad:?}");
        }
        assert_eq!(TenantId::new("größe 1").map(|t| t.to_string()), Ok("größe 1".into()));
    }
}
