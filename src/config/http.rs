//! Where the HTTP server listens, whom it answers, and how large a request may be.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rustix::process::{Resource, getrlimit};

use super::{
    ConfigError, HttpConfig,
    memory::memory,
    parse::{self, check},
};

/// Where it listens when nothing says so.
const DEFAULT_HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// See [`DEFAULT_HOST`].
const DEFAULT_PORT: u64 = 8000;
/// Bytes of a request body at most when nothing says so.
const DEFAULT_BODY_LIMIT: usize = 10 * 1024 * 1024;
/// Connections at most when nothing says so, and the process may open far more files.
const DEFAULT_CONNECTIONS_MAX: u64 = 10_000;
/// The values of `VECMILL_COMPAT`.
const COMPAT: [&str; 2] = ["none", "activekg"];

/// The variables and flags of the HTTP server; see [`super::Settings`].
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct HttpOptions {
    // Optional, because only an address that was set wins over HOST and PORT; so the help shows
    // the default in its own words.
    /// HTTP address
    #[arg(
        long,
        env = "VECMILL_BIND",
        hide_env = true,
        value_name = "ADDR",
        help = "HTTP address [env: VECMILL_BIND=] [default: 127.0.0.1:8000]"
    )]
    vecmill_bind: Option<String>,
    /// IP address to listen on, with VECMILL_COMPAT=activekg and without VECMILL_BIND
    #[arg(long, env = "HOST", value_name = "IP")]
    host: Option<String>,
    /// Port to listen on, with VECMILL_COMPAT=activekg and without VECMILL_BIND
    #[arg(long, env = "PORT", value_name = "PORT")]
    port: Option<String>,
    /// Names by which clients may call the server, besides its address and localhost
    #[arg(long, env = "VECMILL_ALLOWED_HOSTS", default_value = "", value_name = "NAME,…")]
    vecmill_allowed_hosts: String,
    /// Listen beyond this machine although there is no authentication
    #[arg(long, env = "VECMILL_INSECURE", default_value = "false", value_name = "BOOL")]
    vecmill_insecure: String,
    /// Authentication does not exist yet: true stops the start
    #[arg(long, env = "JWT_ENABLED", default_value = "false", value_name = "BOOL")]
    jwt_enabled: String,
    /// Authentication does not exist yet: on stops the start
    #[arg(long, env = "VECMILL_AUTH", default_value = "off", value_name = "off|on")]
    vecmill_auth: String,
    /// activekg: answer 200 instead of 202, obey HOST and PORT, ignore unknown fields of nodes
    #[arg(long, env = "VECMILL_COMPAT", default_value = "none", value_name = "NAME")]
    vecmill_compat: String,
    /// Bytes of a request body at most; 10485760 unless set
    #[arg(long, env = "VECMILL_BODY_LIMIT", value_name = "BYTES")]
    vecmill_body_limit: Option<String>,
    /// Another name of VECMILL_BODY_LIMIT
    #[arg(long, env = "MAX_REQUEST_SIZE_BYTES", value_name = "BYTES")]
    max_request_size_bytes: Option<String>,
    /// Bytes of a stored node at most: of its JSON together
    #[arg(long, env = "VECMILL_NODE_BYTES", default_value = "16777216", value_name = "BYTES")]
    vecmill_node_bytes: String,
    /// MiB that the bodies of requests may take together; a quarter of the memory unless set
    #[arg(long, env = "VECMILL_MEMORY_MB", value_name = "MIB")]
    vecmill_memory_mb: Option<String>,
    /// Connections at most; half of the files that the process may open, or 10000, unless set
    #[arg(long, env = "VECMILL_CONNECTIONS_MAX", value_name = "CONNECTIONS")]
    vecmill_connections_max: Option<String>,
    /// Nodes in one /nodes/batch request
    #[arg(long, env = "NODE_BATCH_MAX", default_value = "200", value_name = "NODES")]
    node_batch_max: String,
}

impl HttpOptions {
    /// Checks every value.
    pub fn check(&self) -> Result<HttpConfig, ConfigError> {
        let wanted = [
            ("JWT_ENABLED", &self.jwt_enabled, check!(self.jwt_enabled, boolean)),
            ("VECMILL_AUTH", &self.vecmill_auth, check!(self.vecmill_auth, boolean)),
        ];
        if let Some((variable, value, _)) = wanted.into_iter().find(|(.., is_wanted)| *is_wanted) {
            let allowed = "there is no authentication yet; unset it, and let a proxy in front of \
                           this server tell who may call it";
            return Err(ConfigError::new(variable, value, allowed));
        }
        let activekg = check!(self.vecmill_compat, name, &COMPAT) == "activekg";
        let (bind, bind_variable) = self.bind(activekg)?;
        Ok(HttpConfig {
            bind,
            bind_variable,
            allowed_hosts: check!(self.vecmill_allowed_hosts, host_names),
            insecure: check!(self.vecmill_insecure, boolean),
            activekg,
            body_limit: self.body_limit()?,
            node_bytes: check!(self.vecmill_node_bytes, integer, 1024..=1 << 30) as usize,
            batch_max: check!(self.node_batch_max, integer, 1..=10_000) as usize,
            connections_max: self.connections_max()?,
            memory: memory(given(&self.vecmill_memory_mb))?,
        })
    }

    /// Shells set `HOST` to the name of the machine: it is read only where it was asked for.
    /// Answers also which variable says so.
    fn bind(&self, activekg: bool) -> Result<(SocketAddr, &'static str), ConfigError> {
        if let Some(address) = &self.vecmill_bind {
            return Ok((parse::address("VECMILL_BIND", address)?, "VECMILL_BIND"));
        }
        let (host, port) = match activekg {
            true => (given(&self.host), given(&self.port)),
            false => (None, None),
        };
        let variable = if host.is_some() { "HOST" } else { "VECMILL_BIND" };
        let host = host.map_or(Ok(DEFAULT_HOST), |host| parse::ip("HOST", host))?;
        let port =
            port.map_or(Ok(DEFAULT_PORT), |port| parse::integer("PORT", port, 0..=65_535))?;
        Ok((SocketAddr::new(host, port as u16), variable))
    }

    fn connections_max(&self) -> Result<usize, ConfigError> {
        let Some(given) = given(&self.vecmill_connections_max) else {
            let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
            return Ok((files / 2).clamp(1, DEFAULT_CONNECTIONS_MAX) as usize);
        };
        let connections = parse::integer("VECMILL_CONNECTIONS_MAX", given, 1..=1_000_000)?;
        Ok(connections as usize)
    }

    fn body_limit(&self) -> Result<usize, ConfigError> {
        let names = [
            ("VECMILL_BODY_LIMIT", &self.vecmill_body_limit),
            ("MAX_REQUEST_SIZE_BYTES", &self.max_request_size_bytes),
        ];
        let mut limit = None;
        for (variable, value) in names {
            let Some(value) = given(value) else { continue };
            let bytes = parse::integer(variable, value, 1024..=1 << 30)? as usize;
            if let Some(other) = limit.filter(|other| *other != bytes) {
                let allowed = format!("VECMILL_BODY_LIMIT says {other}; set one of the two");
                return Err(ConfigError::new(variable, value, allowed));
            }
            limit = Some(bytes);
        }
        Ok(limit.unwrap_or(DEFAULT_BODY_LIMIT))
    }
}

/// An empty value is none.
fn given(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|value| !value.is_empty())
}

impl HttpConfig {
    /// Refuses an address that strangers can reach while anybody who reaches it may do anything.
    ///
    /// # Errors
    /// The address is beyond loopback, and `VECMILL_INSECURE` is not set.
    pub fn refuse_exposure(&self) -> Result<(), ConfigError> {
        if self.insecure || self.is_local() {
            return Ok(());
        }
        let allowed = "there is no authentication, and others could reach this address; use \
                       127.0.0.1, or set VECMILL_INSECURE=true if something else keeps them out";
        Err(ConfigError::new(self.bind_variable, &self.bind.to_string(), allowed))
    }

    /// Whether only programs of this machine reach it.
    pub fn is_local(&self) -> bool {
        self.bind.ip().to_canonical().is_loopback()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Settings};
    use super::*;

    fn http(changes: &[(&str, &str)]) -> HttpConfig {
        Settings::with(changes).map(|config: Config| config.http).unwrap()
    }

    fn refusal(changes: &[(&str, &str)]) -> String {
        Settings::with(changes).err().unwrap().to_string()
    }

    #[test]
    fn host_and_port_count_only_where_they_are_asked_for() {
        let bind = |changes: &[_]| http(changes).bind.to_string();
        let (host, port) = (("HOST", "0.0.0.0"), ("PORT", "9000"));
        let compat = ("VECMILL_COMPAT", "activekg");
        assert_eq!(bind(&[]), "127.0.0.1:8000");
        assert_eq!(bind(&[host, port]), "127.0.0.1:8000");
        assert_eq!(bind(&[("HOST", "build-7"), ("PORT", "")]), "127.0.0.1:8000");
        assert_eq!(bind(&[host, port, compat]), "0.0.0.0:9000");
        assert_eq!(bind(&[port, compat]), "127.0.0.1:9000");
        assert_eq!(bind(&[("HOST", "::"), compat]), "[::]:8000");
        assert_eq!(bind(&[("HOST", "localhost"), ("PORT", ""), compat]), "127.0.0.1:8000");
        let explicit = ("VECMILL_BIND", "127.0.0.1:8000");
        assert_eq!(bind(&[host, port, compat, explicit]), "127.0.0.1:8000");
        assert!(refusal(&[("HOST", "build-7"), compat]).contains("HOST=\"build-7\""));
        assert!(refusal(&[("PORT", "http"), compat]).contains("PORT=\"http\""));
    }

    #[test]
    fn the_body_limit_has_two_names_that_must_agree() {
        let (ours, theirs) = ("VECMILL_BODY_LIMIT", "MAX_REQUEST_SIZE_BYTES");
        assert_eq!(http(&[]).body_limit, 10_485_760);
        assert_eq!(http(&[(ours, "2048")]).body_limit, 2048);
        assert_eq!(http(&[(theirs, "4096")]).body_limit, 4096);
        assert_eq!(http(&[(theirs, "4096"), (ours, "4096")]).body_limit, 4096);
        assert_eq!(http(&[(theirs, ""), (ours, "")]).body_limit, 10_485_760);
        let error = refusal(&[(theirs, "4096"), (ours, "2048")]);
        assert!(error.contains("MAX_REQUEST_SIZE_BYTES=\"4096\""), "{error}");
        assert!(error.contains("VECMILL_BODY_LIMIT says 2048"), "{error}");
        assert!(refusal(&[(theirs, "10MB")]).contains(theirs));
    }

    #[test]
    fn names_of_hosts_are_names() {
        let hosts = |value| http(&[("VECMILL_ALLOWED_HOSTS", value)]).allowed_hosts;
        assert_eq!(hosts(""), [""; 0]);
        assert_eq!(hosts("Vec.Example, box.local,"), ["vec.example", "box.local"]);
        for bad in ["https://a.example", "a.example:80", "a b", "*"] {
            let error = refusal(&[("VECMILL_ALLOWED_HOSTS", bad)]);
            assert!(error.contains("VECMILL_ALLOWED_HOSTS"), "{error}");
        }
    }

    #[test]
    fn an_address_that_others_reach_must_be_meant() {
        for (bind, is_local) in [
            ("127.0.0.1:0", true),
            ("127.9.9.9:80", true),
            ("[::1]:80", true),
            ("0.0.0.0:80", false),
            ("[::]:80", false),
            ("192.0.2.7:80", false),
        ] {
            let refused = http(&[("VECMILL_BIND", bind)]).refuse_exposure();
            assert_eq!(refused.is_ok(), is_local, "{bind}");
            let insecure = http(&[("VECMILL_BIND", bind), ("VECMILL_INSECURE", "true")]);
            assert_eq!(insecure.refuse_exposure(), Ok(()), "{bind}");
        }
        let refused = http(&[("HOST", "0.0.0.0"), ("VECMILL_COMPAT", "activekg")]);
        let refused = refused.refuse_exposure().unwrap_err().to_string();
        assert!(refused.contains("HOST=") && !refused.contains("VECMILL_BIND"), "{refused}");
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        assert!(refusal(&[("JWT_ENABLED", "true")]).contains("no authentication"));
        assert!(refusal(&[("VECMILL_COMPAT", "ActiveKG2")]).contains("none, activekg"));
        assert!(!http(&[("JWT_ENABLED", "false"), ("VECMILL_COMPAT", "none")]).activekg);
    }
}
