//! Where Redis is: what `REDIS_URL` says.

use std::fmt::Display;

use fred::types::config::{Config, Server, ServerConfig, TlsConnector};
use percent_encoding::percent_decode_str;
use url::Url;

use super::QueueError;
use crate::tls;

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26_379;
/// The parameters of a URL. The first means what it means to redis-py.
const DB: &str = "db";
const SERVICE: &str = "sentinelServiceName";
const NODE: &str = "node";
const SENTINEL_USER: &str = "sentinelUsername";
const SENTINEL_PASSWORD: &str = "sentinelPassword";

/// A checked `REDIS_URL`. Holds passwords, and shows none.
#[derive(Clone)]
pub(super) struct Address {
    server: ServerConfig,
    username: Option<String>,
    password: Option<String>,
    database: Option<u8>,
    tls: bool,
    place: String,
}

impl Address {
    /// Reads `redis://`, `rediss://`, `redis-sentinel://`, `rediss-sentinel://` or `unix:`.
    ///
    /// # Errors
    /// What is wrong with the URL, without any value in it: each may be a part of a password.
    pub(super) fn parse(url: &str) -> Result<Self, QueueError> {
        // `unix:/path` and `unix:///path` name the same socket; a URL needs the longer form.
        let short = url.strip_prefix("unix:/").filter(|rest| !rest.starts_with('/'));
        let long = short.map(|path| format!("unix:///{path}"));
        let url = Url::parse(long.as_deref().unwrap_or(url)).map_err(|_| {
            invalid("use redis://, rediss://, redis-sentinel://, rediss-sentinel:// or unix:")
        })?;
        let (tls, sentinel) = match url.scheme() {
            "redis" => (false, false),
            "rediss" => (true, false),
            "redis-sentinel" => (false, true),
            "rediss-sentinel" => (true, true),
            "unix" => return Self::of_socket(&url),
            _ => return Err(invalid("its scheme is none of ours")),
        };
        // What follows the host was meant to be a part of the password, and must not be named.
        let follows = [url.path(), url.query().unwrap_or_default()];
        if url.fragment().is_some() || follows.iter().any(|part| part.contains('@')) {
            return Err(invalid("a character in it ends the user name or the password"));
        }
        let allowed: &[&str] = match sentinel {
            true => &[DB, SERVICE, NODE, SENTINEL_USER, SENTINEL_PASSWORD],
            false => &[DB],
        };
        check_parameters(&url, allowed)?;
        let port = url.port().unwrap_or(if sentinel { SENTINEL_PORT } else { PORT });
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = decoded(host.ok_or_else(|| invalid("it names no host"))?);
        let place = format!("{host}:{port}");
        let first = server(&host, port);
        let server = if sentinel {
            let mut hosts = vec![first];
            for node in parameters(&url, NODE) {
                hosts.push(sentinel_node(&node)?);
            }
            let service_name = parameters(&url, SERVICE).next().ok_or_else(|| {
                invalid(format!("the parameter {SERVICE} is missing: it names the primary"))
            })?;
            ServerConfig::Sentinel {
                hosts,
                service_name,
                username: parameters(&url, SENTINEL_USER).next(),
                password: parameters(&url, SENTINEL_PASSWORD).next(),
            }
        } else {
            ServerConfig::Centralized { server: first }
        };
        let database = database(&url, url.path().trim_start_matches('/'))?;
        Ok(Self { server, tls, place, ..Self::with_user(&url, database) })
    }

    fn of_socket(url: &Url) -> Result<Self, QueueError> {
        check_parameters(url, &[DB])?;
        let path = decoded(url.path());
        if path.trim_matches('/').is_empty() {
            return Err(invalid("it names no socket"));
        }
        let database = database(url, "")?;
        let server = ServerConfig::new_unix_socket(&path);
        Ok(Self { server, place: path, ..Self::with_user(url, database) })
    }

    fn with_user(url: &Url, database: Option<u8>) -> Self {
        let given = |value: &str| Some(decoded(value)).filter(|value| !value.is_empty());
        Self {
            server: ServerConfig::default(),
            username: given(url.username()),
            password: url.password().and_then(given),
            database,
            tls: false,
            place: String::new(),
        }
    }

    /// Host and port, or the socket, and the variable that says so.
    pub(super) fn place(&self) -> String {
        format!("{} (REDIS_URL)", self.place)
    }

    /// How many servers may be asked where Redis is.
    pub(super) fn hosts(&self) -> usize {
        match &self.server {
            ServerConfig::Sentinel { hosts, .. } => hosts.len(),
            _ => 1,
        }
    }

    /// What the library needs. `turn` chooses which sentinel is asked first: one that is silent
    /// must not be asked for ever.
    ///
    /// # Errors
    /// TLS is wanted, and cannot be had.
    pub(super) fn config(&self, turn: usize) -> Result<Config, QueueError> {
        let mut server = self.server.clone();
        if let ServerConfig::Sentinel { hosts, .. } = &mut server {
            let first = turn % hosts.len();
            hosts.rotate_left(first);
        }
        let tls = match self.tls {
            true => {
                let config =
                    tls::client_config().map_err(|error| QueueError::Setup(error.to_string()))?;
                Some(TlsConnector::from(config).into())
            }
            false => None,
        };
        Ok(Config {
            server,
            username: self.username.clone(),
            password: self.password.clone(),
            database: self.database,
            tls,
            fail_fast: true,
            ..Config::default()
        })
    }
}

fn invalid(why: impl Display) -> QueueError {
    QueueError::Setup(format!(
        "REDIS_URL is not valid: {why}; in a user name or password, percent-encode every character \
         but letters and digits"
    ))
}

fn decoded(value: &str) -> String {
    percent_decode_str(value).decode_utf8_lossy().into_owned()
}

fn server(host: &str, port: u16) -> Server {
    // A certificate names an IPv6 address without its brackets.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    Server { tls_server_name: Some(name.into()), ..Server::new(host, port) }
}

fn parameters(url: &Url, name: &str) -> impl Iterator<Item = String> {
    url.query_pairs().filter(move |(known, _)| known == name).map(|(_, value)| value.into_owned())
}

fn check_parameters(url: &Url, allowed: &[&str]) -> Result<(), QueueError> {
    for (name, _) in url.query_pairs() {
        if !allowed.contains(&name.as_ref()) {
            let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
            let name = if is_name { name.as_ref() } else { "…" };
            let allowed = allowed.join(", ");
            return Err(invalid(format!("the parameter {name} is not known; known are {allowed}")));
        }
    }
    Ok(())
}

/// The number of the database, from the path or from the parameter.
fn database(url: &Url, path: &str) -> Result<Option<u8>, QueueError> {
    let mut found = None;
    for number in parameters(url, DB).chain((!path.is_empty()).then(|| path.to_owned())) {
        let number = number
            .parse::<u8>()
            .map_err(|_| invalid("the database must be a number from 0 to 255"))?;
        if found.is_some_and(|found| found != number) {
            return Err(invalid("it names two databases"));
        }
        found = Some(number);
    }
    Ok(found)
}

fn sentinel_node(node: &str) -> Result<Server, QueueError> {
    node.rsplit_once(':')
        .and_then(|(host, port)| Some(server(host, port.parse().ok()?)))
        .filter(|server| !server.host.is_empty())
        .ok_or_else(|| invalid(format!("the parameter {NODE} must be a host and a port")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Config {
        Address::parse(url).unwrap().config(0).unwrap()
    }

    #[test]
    fn a_database_is_named_in_the_path_or_as_redis_py_does() {
        for (url, database) in [
            ("redis://h", None),
            ("redis://h/", None),
            ("redis://h/2", Some(2)),
            ("redis://h?db=2", Some(2)),
            ("rediss://h/2?db=2", Some(2)),
            ("redis-sentinel://h?sentinelServiceName=s&db=2", Some(2)),
            ("unix:/run/redis.sock?db=2", Some(2)),
            ("unix:///run/redis.sock", None),
        ] {
            assert_eq!(config(url).database, database, "{url}");
        }
        for url in ["redis://h/1?db=2", "redis://h/x", "redis://h/256", "redis://h?db="] {
            assert!(Address::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn names_and_passwords_are_decoded() {
        let config = config("redis://us%40er:p%2Fs%3As%23%25%20@h:1/3");
        assert_eq!(config.username.as_deref(), Some("us@er"));
        assert_eq!(config.password.as_deref(), Some("p/s:s#% "));
        assert_eq!(config.server, ServerConfig::Centralized { server: server("h", 1) });
    }

    #[test]
    fn no_part_of_a_password_is_repeated() {
        for url in [
            "redis://:hun/ter2@h:6379/0",
            "redis://:hun#ter2@h:6379/0",
            "redis://:hun?ter2@h:6379/0",
            "redis://u:12#34hunter2@h:6379",
            "redis://u:12/34hunter2@h:6379",
            "redis://u:12?hunter2@h:6379",
            "redis://:hunter2@h:notaport",
            "redis://:hunter2@h?ssl_hunter=hunter2",
            "redis://:hunter2@h?db=hunter2",
            "redis-sentinel://:hunter2@h?sentinelServiceName=s&node=hunter2",
            "redis://",
        ] {
            let error = Address::parse(url).err().unwrap_or_else(|| panic!("{url}")).to_string();
            assert!(error.contains("REDIS_URL") && error.contains("percent-encode"), "{error}");
            assert!(!error.contains("ter2") && !error.contains("34"), "{error}");
        }
    }

    #[test]
    fn an_unknown_parameter_is_named() {
        let error = Address::parse("redis://h?socket_timeout=5").err().unwrap().to_string();
        assert!(error.contains("socket_timeout") && error.contains("known are db"), "{error}");
    }

    #[test]
    fn every_sentinel_comes_first_once() {
        let url = "redis-sentinel://a?sentinelServiceName=s&node=b:2&node=c:3";
        let address = Address::parse(url).unwrap();
        assert_eq!(address.hosts(), 3);
        let first = |turn| match address.config(turn).unwrap().server {
            ServerConfig::Sentinel { hosts, .. } => hosts[0].to_string(),
            other => panic!("{other:?}"),
        };
        let asked = [0, 1, 2, 3].map(first);
        assert_eq!(asked, ["a:26379", "b:2", "c:3", "a:26379"]);
    }

    #[test]
    fn an_ipv6_address_is_named_without_brackets_in_a_certificate() {
        let ServerConfig::Centralized { server } = config("rediss://[::1]:1").server else {
            panic!("it is one server");
        };
        assert_eq!((&*server.host, server.tls_server_name.as_deref()), ("[::1]", Some("::1")));
    }
}
