//! From a DSN to the servers that it names: libpq's URI and keyword forms, and what drivers of other
//! languages make of them.
//!
//! No error repeats a value: any of them may hold a password.

use std::{str::FromStr, time::Duration};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sea_orm::sqlx::{ConnectOptions as _, postgres::PgConnectOptions};

use super::parameters::Parameters;

/// The servers of one Postgres, in the order in which they are tried.
pub(super) struct Servers {
    /// One at least.
    pub(super) all: Vec<Server>,
    /// How long one of them may take until the connection stands.
    pub(super) connect_timeout: Duration,
}

/// A server, and how to reach it.
#[derive(Clone)]
pub(super) struct Server {
    /// Host and port, or a socket: what an operator knows it by.
    pub(super) name: String,
    pub(super) options: PgConnectOptions,
}

/// Whether the DSN is one of Postgres, in whichever form.
pub(super) fn is_postgres(dsn: &str) -> bool {
    let scheme = dsn.split_once("://").map(|(scheme, _)| scheme);
    match scheme {
        Some(scheme) if !scheme.contains('=') => is_postgres_scheme(scheme),
        _ => is_keyword_form(dsn),
    }
}

/// `postgresql`, `postgres`, or one of these with the name of a driver, as in
/// `postgresql+psycopg2`.
fn is_postgres_scheme(scheme: &str) -> bool {
    matches!(scheme.split('+').next(), Some("postgresql" | "postgres"))
}

/// `host=… dbname=…`.
fn is_keyword_form(dsn: &str) -> bool {
    let name = dsn.trim_start().split_once('=').map(|(name, _)| name.trim_end());
    name.is_some_and(|name| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    })
}

/// Reads a DSN. The error says what to change, and holds no value.
pub(super) fn parse(dsn: &str) -> Result<Servers, String> {
    let pairs = match dsn.split_once("://") {
        Some((scheme, rest)) if is_postgres_scheme(scheme) => uri(rest)?,
        _ => keywords(dsn)?,
    };
    let mut parameters = Parameters::default();
    for (name, value) in pairs {
        parameters.set(&name, value)?;
    }
    servers(&parameters)
}

/// What most often is wrong with a URI.
const ENCODE: &str = "percent-encode special characters in the user name and password";

type Pairs = Vec<(String, String)>;

/// `user:password@host:port,host:port/database?name=value&…`, each part of which may be missing.
fn uri(rest: &str) -> Result<Pairs, String> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if query.contains('@') && !rest.contains('@') {
        return Err(ENCODE.to_owned());
    }
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (user, hosts),
        None => ("", authority),
    };
    let (user, password) = match user.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (user, None),
    };
    let mut pairs = Pairs::new();
    let mut add = |name: &str, value: &str| -> Result<(), String> {
        if !value.is_empty() {
            pairs.push((name.to_owned(), decode(value)?));
        }
        Ok(())
    };
    add("user", user)?;
    add("password", password.unwrap_or_default())?;
    let (hosts, ports) = hosts_and_ports(hosts)?;
    add("host", &hosts)?;
    add("port", &ports)?;
    add("dbname", database)?;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair
            .split_once('=')
            .ok_or("each parameter behind the question mark needs a value: name=value")?;
        pairs.push((decode(name)?, decode(value)?));
    }
    Ok(pairs)
}

/// The hosts and the ports of `host:port,host:port`, as two lists.
fn hosts_and_ports(list: &str) -> Result<(String, String), String> {
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for host in list.split(',') {
        let (host, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or("an IPv6 address lacks its ]")?;
                (host, port.strip_prefix(':').unwrap_or(port))
            }
            None => host.split_once(':').unwrap_or((host, "")),
        };
        hosts.push(host);
        ports.push(port);
    }
    let ports = if ports.iter().all(|port| port.is_empty()) { Vec::new() } else { ports };
    Ok((hosts.join(","), ports.join(",")))
}

fn decode(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| ENCODE.to_owned())
}

/// `name = value name = 'value with spaces, \' and \\'`.
fn keywords(dsn: &str) -> Result<Pairs, String> {
    let mut pairs = Pairs::new();
    let mut rest = dsn.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or("a parameter lacks its value")?;
        let (value, after) = keyword_value(after.trim_start())?;
        pairs.push((name.trim_end().to_owned(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// A value, and what follows it.
fn keyword_value(text: &str) -> Result<(String, &str), String> {
    let quoted = text.starts_with('\'');
    let text = text.strip_prefix('\'').unwrap_or(text);
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            space if !quoted && space.is_whitespace() => return Ok((value, &text[at..])),
            other => value.push(other),
        }
    }
    if quoted { Err("a quoted value lacks its closing quote".to_owned()) } else { Ok((value, "")) }
}

fn servers(parameters: &Parameters) -> Result<Servers, String> {
    let hosts: Vec<&str> = match (&parameters.hostaddr, &parameters.host) {
        (Some(list), _) | (None, Some(list)) => list.split(',').collect(),
        (None, None) => vec![""],
    };
    let ports: Vec<&str> = parameters.port.as_deref().unwrap_or_default().split(',').collect();
    if ports.len() > 1 && ports.len() != hosts.len() {
        return Err("there must be one port, or as many as hosts".to_owned());
    }
    let mut all = Vec::with_capacity(hosts.len());
    for (at, host) in hosts.iter().enumerate() {
        let port = match ports.get(at).or(ports.first()).copied().unwrap_or_default() {
            "" => None,
            port => Some(
                port.parse::<u16>()
                    .ok()
                    .filter(|&port| port > 0)
                    .ok_or("the port must be a number from 1 to 65535")?,
            ),
        };
        all.push(server(parameters, host, port)?);
    }
    Ok(Servers { all, connect_timeout: parameters.connect_timeout.into() })
}

fn server(parameters: &Parameters, host: &str, port: Option<u16>) -> Result<Server, String> {
    let mut options = match parameters.password {
        Some(_) => PgConnectOptions::new_without_pgpass(),
        None => with_password_file(parameters, host, port),
    };
    let host = if host.is_empty() {
        PgConnectOptions::new_without_pgpass().get_host().to_owned()
    } else {
        host.to_owned()
    };
    options = options.host(&host);
    if let Some(port) = port {
        options = options.port(port);
    }
    options = parameters.apply(options)?.disable_statement_logging();
    let name = match options.get_host() {
        directory if directory.starts_with('/') => {
            format!("{directory}/.s.PGSQL.{}", options.get_port())
        }
        address if address.contains(':') => format!("[{address}]:{}", options.get_port()),
        host => format!("{host}:{}", options.get_port()),
    };
    Ok(Server { name, options })
}

/// Options with the password that `~/.pgpass` has for the server, if there is one: the library looks
/// for it only when it reads a URL.
fn with_password_file(parameters: &Parameters, host: &str, port: Option<u16>) -> PgConnectOptions {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let defaults = PgConnectOptions::new_without_pgpass();
    let host = match host {
        "" => defaults.get_host(),
        host => host,
    };
    let host = match host {
        address if address.contains(':') && !address.starts_with('/') => format!("[{address}]"),
        directory if directory.starts_with('/') => "localhost".to_owned(),
        host => host.to_owned(),
    };
    let user = parameters.user.as_deref().map(|user| encode(user) + "@").unwrap_or_default();
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let database = parameters.dbname.as_deref().map(encode).unwrap_or_default();
    let authority = format!("{user}{host}{port}");
    PgConnectOptions::from_str(&format!("postgres://{authority}/{database}"))
        .unwrap_or_else(|_| PgConnectOptions::new())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sea_orm::sqlx::postgres::PgSslMode;

    use super::*;

    fn names(dsn: &str) -> Vec<String> {
        parse(dsn).unwrap().all.into_iter().map(|server| server.name).collect()
    }

    fn first(dsn: &str) -> PgConnectOptions {
        parse(dsn).unwrap().all.remove(0).options
    }

    fn error(dsn: &str) -> String {
        parse(dsn).err().unwrap_or_else(|| panic!("{dsn} is taken"))
    }

    #[test]
    fn every_form_names_the_same_server() {
        for dsn in [
            "postgresql://u%40x:p%2Fw@db.example:6432/na%20me",
            "postgres://u%40x:p%2Fw@db.example:6432/na%20me",
            "postgresql+psycopg2://u%40x:p%2Fw@db.example:6432/na%20me",
            "postgresql+asyncpg://u%40x:p%2Fw@db.example:6432/na%20me",
            "postgres+psycopg://u%40x:p%2Fw@db.example:6432/na%20me",
            "postgresql:///na%20me?host=db.example&port=6432&user=u%40x&password=p%2Fw",
            "postgresql://?host=db.example&port=6432&user=u%40x&password=p%2Fw&dbname=na%20me",
            "host=db.example port=6432 user=u@x password=p/w dbname='na me'",
            "  dbname = na\\ me host=db.example port=6432 user = 'u@x' password='p/w'",
        ] {
            assert!(is_postgres(dsn), "{dsn}");
            let options = first(dsn);
            assert_eq!(names(dsn), ["db.example:6432"], "{dsn}");
            assert_eq!(options.get_username(), "u@x", "{dsn}");
            assert_eq!(options.get_database(), Some("na me"), "{dsn}");
        }
        assert!(error("postgresql://u:p?ss=w@h/db").contains("percent-encode"));
        for dsn in ["sqlite://x.db", "mysql://h/d", "nonsense", "sqlite://x=y", ""] {
            assert!(!is_postgres(dsn), "{dsn}");
        }
    }

    #[test]
    fn sockets_lists_and_ipv6_are_understood() {
        assert_eq!(
            names("postgresql://u:p@/db?host=/cloudsql/a:b:c"),
            ["/cloudsql/a:b:c/.s.PGSQL.5432"]
        );
        assert_eq!(names("postgresql://u@%2Frun%2Fpg/db"), ["/run/pg/.s.PGSQL.5432"]);
        assert_eq!(names("postgresql://a:1,b:2,c/db"), ["a:1", "b:2", "c:5432"]);
        assert_eq!(names("host=a,b port=1 user=u"), ["a:1", "b:1"]);
        assert_eq!(names("postgresql://[::1]:9,[fe80::1]/db"), ["[::1]:9", "[fe80::1]:5432"]);
        assert!(error("host=a,b,c port=1,2").contains("as many as hosts"));
        assert!(error("postgresql://h:port/db").contains("from 1 to 65535"));
    }

    #[test]
    fn what_is_not_understood_is_named_without_its_value() {
        for (parameter, value) in [
            ("sslpassword", "hunter2"),
            ("passwort", "hunter2"),
            ("service", "hunter2"),
            ("sslmode", "hunter2"),
            ("ssl", "hunter2"),
            ("connect_timeout", "hunter2"),
            ("target_session_attrs", "standby"),
            ("channel_binding", "require"),
            ("options", "hunter2"),
            ("client_encoding", "latin1"),
        ] {
            for dsn in [
                format!("postgresql://u:geheim@h/db?{parameter}={value}"),
                format!("host=h password=geheim {parameter}={value}"),
            ] {
                let error = error(&dsn);
                assert!(error.contains(parameter), "{parameter}: {error}");
                assert!(!error.contains("hunter2") && !error.contains("geheim"), "{error}");
            }
        }
    }

    #[test]
    fn known_parameters_are_taken() {
        let dsn = "postgresql://u@h/db?connect_timeout=7&target_session_attrs=read-write\
                   &keepalives_idle=30&gssencmode=disable&application_name=mine\
                   &options=-c%20geqo%3Doff%20--jit=off&load_balance_hosts=disable";
        assert_eq!(parse(dsn).unwrap().connect_timeout, Duration::from_secs(7));
        assert_eq!(first(dsn).get_application_name(), Some("mine"));
        assert_eq!(first(dsn).get_options(), Some("-c geqo=off -c jit=off"));
        assert_eq!(first("postgresql://u@h/db").get_application_name(), Some("vecmill"));
    }

    #[test]
    fn tls_is_never_weaker_than_asked_for() {
        let mode = |dsn: &str| format!("{:?}", first(dsn).get_ssl_mode());
        let is = |mode: PgSslMode| format!("{mode:?}");
        for on in ["ssl=true", "ssl=1", "ssl=require", "sslmode=require", "requiressl=1"] {
            assert_eq!(mode(&format!("postgresql://h/d?{on}")), is(PgSslMode::Require), "{on}");
        }
        assert_eq!(mode("postgresql://h/d?ssl=verify-full"), is(PgSslMode::VerifyFull));
        assert_eq!(mode("postgresql://h/d?sslmode=disable"), is(PgSslMode::Disable));
        // As libpq does: an authority is named to be asked.
        let with_root = "postgresql://h/d?sslmode=require&sslrootcert=/dev/null";
        assert_eq!(mode(with_root), is(PgSslMode::VerifyCa));
        // Nobody listens on a socket.
        assert_eq!(mode("postgresql:///d?host=/run&sslmode=require"), is(PgSslMode::Disable));
    }
}
