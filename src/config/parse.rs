//! One parser a kind of value; each error says what is allowed.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

/// A value that is not allowed: one line that names the variable, the value and what is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={value:?} is not allowed: {allowed}")]
pub struct ConfigError {
    variable: String,
    value: String,
    allowed: String,
}

impl ConfigError {
    /// `value` must hold no secret.
    pub fn new(variable: &str, value: &str, allowed: impl Into<String>) -> Self {
        Self { variable: variable.into(), value: value.into(), allowed: allowed.into() }
    }
}

/// Delays: from none to a day.
pub(super) const SECONDS: RangeInclusive<f64> = 0.0..=86_400.0;

/// The parser of one setting: `check!(self.field, parser, arguments…)` gives it the name of
/// the variable, which is the field's in capitals.
macro_rules! check {
    ($self:ident . $field:ident, $parser:ident $(, $argument:expr)*) => {
        $crate::config::parse::$parser(&stringify!($field).to_uppercase(), &$self.$field $(, $argument)*)?
    };
}
pub(super) use check;

pub(super) fn boolean(variable: &str, value: &str) -> Result<bool, ConfigError> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(ConfigError::new(variable, value, "use true or false")),
    }
}

pub(super) fn integer(
    variable: &str,
    value: &str,
    range: RangeInclusive<u64>,
) -> Result<u64, ConfigError> {
    value.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        ConfigError::new(
            variable,
            value,
            format!("use a whole number from {} to {}", range.start(), range.end()),
        )
    })
}

pub(super) fn seconds(
    variable: &str,
    value: &str,
    range: RangeInclusive<f64>,
) -> Result<Duration, ConfigError> {
    value
        .parse()
        .ok()
        .filter(|number| range.contains(number))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| {
            ConfigError::new(
                variable,
                value,
                format!("use a number of seconds from {} to {}", range.start(), range.end()),
            )
        })
}

pub(super) fn non_empty(variable: &str, value: &str) -> Result<String, ConfigError> {
    if value.is_empty() {
        return Err(ConfigError::new(variable, value, "it must not be empty"));
    }
    Ok(value.to_owned())
}

/// The name of a key in Redis. One with a space at its end, or a line break that a file brought
/// along, is another key that nobody else looks at.
pub(super) fn key(variable: &str, value: &str) -> Result<String, ConfigError> {
    if value != value.trim() || value.chars().any(char::is_control) {
        let allowed = "use a name without control characters, nor spaces at its ends";
        return Err(ConfigError::new(variable, value, allowed));
    }
    non_empty(variable, value)
}

pub(super) fn directory(variable: &str, value: &str) -> Result<PathBuf, ConfigError> {
    non_empty(variable, value).map(PathBuf::from)
}

pub(super) fn address(variable: &str, value: &str) -> Result<SocketAddr, ConfigError> {
    value.parse().map_err(|_| {
        ConfigError::new(variable, value, "use an IP address and a port, such as 127.0.0.1:8000")
    })
}

/// The address of an interface; `localhost` is the loopback one.
pub(super) fn ip(variable: &str, value: &str) -> Result<IpAddr, ConfigError> {
    if value == "localhost" {
        return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    value.parse().map_err(|_| {
        ConfigError::new(variable, value, "use an IP address, such as 127.0.0.1 or 0.0.0.0")
    })
}

/// Names of hosts, separated by commas, in lower case.
pub(super) fn host_names(variable: &str, value: &str) -> Result<Vec<String>, ConfigError> {
    let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                || name.parse::<IpAddr>().is_ok();
            let allowed = "use names of hosts without a port, separated by commas";
            let error = || ConfigError::new(variable, value, allowed);
            let plain = || name.trim_end_matches('.').to_ascii_lowercase();
            is_name.then(plain).ok_or_else(error)
        })
        .collect()
}

/// Whether the backend is `hash`.
pub(super) fn backend(variable: &str, value: &str) -> Result<bool, ConfigError> {
    match value {
        "candle" | "sentence-transformers" => Ok(false),
        "hash" => Ok(true),
        _ => Err(ConfigError::new(variable, value, "use candle, sentence-transformers or hash")),
    }
}

pub(super) fn device(variable: &str, value: &str) -> Result<String, ConfigError> {
    let numbered =
        value.strip_prefix("cuda:").is_some_and(|number| number.parse::<usize>().is_ok());
    if matches!(value, "auto" | "cpu" | "cuda") || numbered {
        return Ok(value.to_owned());
    }
    Err(ConfigError::new(variable, value, "use cpu, cuda, cuda:N or auto"))
}

/// One of a few names.
pub(super) fn name(variable: &str, value: &str, names: &[&str]) -> Result<String, ConfigError> {
    if names.contains(&value) {
        return Ok(value.to_owned());
    }
    Err(ConfigError::new(variable, value, format!("use one of {}", names.join(", "))))
}

pub(super) fn redis_url(variable: &str, value: &str) -> Result<String, ConfigError> {
    const SCHEMES: [&str; 5] =
        ["redis://", "rediss://", "redis-sentinel://", "rediss-sentinel://", "unix:"];
    secret_with_scheme(variable, value, &SCHEMES)
}

pub(super) fn dsn(variable: &str, value: &str) -> Result<String, ConfigError> {
    let scheme = value.split_once("://").map_or("", |(scheme, _)| scheme);
    // Libraries of Python name their driver behind a plus sign.
    let family = scheme.split('+').next().unwrap_or_default();
    let first = value.split('=').next().unwrap_or_default().trim();
    let has_keywords = scheme.is_empty() || scheme.contains('=');
    let is_keyword = first.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    if matches!(family, "postgresql" | "postgres")
        || has_keywords && value.contains('=') && !first.is_empty() && is_keyword
    {
        return Ok(value.to_owned());
    }
    secret_with_scheme(variable, value, &["postgresql://", "postgres://", "sqlite://", "host=…"])
}

fn secret_with_scheme(
    variable: &str,
    value: &str,
    schemes: &[&str],
) -> Result<String, ConfigError> {
    if schemes.iter().any(|scheme| value.starts_with(scheme)) {
        return Ok(value.to_owned());
    }
    // The value may hold a password: only its scheme is repeated.
    let scheme = value.split_once("://").map_or("", |(scheme, _)| scheme);
    let shown = format!("{scheme}:…");
    Err(ConfigError::new(variable, &shown, format!("use one of {}", schemes.join(", "))))
}
