//! The parameters of a Postgres DSN: those that are honoured, those that change nothing here, and
//! those that cannot be honoured and must not be passed over in silence.

use std::{path::Path, time::Duration};

use sea_orm::sqlx::postgres::{PgConnectOptions, PgSslMode};

/// How long a server may take until a connection stands, unless the DSN says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What servers show of us, unless the DSN says otherwise.
const APPLICATION_NAME: &str = "vecmill";

/// What a DSN says.
#[derive(Default)]
pub(super) struct Parameters {
    /// A list with commas, as the following two.
    pub(super) host: Option<String>,
    pub(super) hostaddr: Option<String>,
    pub(super) port: Option<String>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) dbname: Option<String>,
    pub(super) connect_timeout: Timeout,
    application_name: Option<String>,
    fallback_application_name: Option<String>,
    options: Vec<(String, String)>,
    statement_cache_capacity: Option<usize>,
    ssl_mode: Option<SslMode>,
    ssl_root_cert: Option<String>,
    ssl_cert: Option<String>,
    ssl_key: Option<String>,
}

/// A connect time-out with the default of this program.
#[derive(Clone, Copy)]
pub(super) struct Timeout(Duration);

impl Default for Timeout {
    fn default() -> Self {
        Self(CONNECT_TIMEOUT)
    }
}

impl From<Timeout> for Duration {
    fn from(timeout: Timeout) -> Self {
        timeout.0
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    fn named(name: &str) -> Option<Self> {
        match name {
            "disable" => Some(Self::Disable),
            // Tries without TLS first, and with it then; the other order connects as well.
            "allow" | "prefer" => Some(Self::Prefer),
            "require" => Some(Self::Require),
            "verify-ca" => Some(Self::VerifyCa),
            "verify-full" => Some(Self::VerifyFull),
            _ => None,
        }
    }
}

impl Parameters {
    /// Takes one parameter; a later one of the same name wins. The error names the parameter and
    /// never its value.
    pub(super) fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        let is = |allowed: &[&str]| allowed.contains(&value.as_str());
        match name {
            "host" | "socket" => self.host = Some(value),
            "hostaddr" => self.hostaddr = Some(value),
            "port" => self.port = Some(value),
            "user" => self.user = Some(value),
            "password" => self.password = Some(value),
            "dbname" | "database" => self.dbname = Some(value),
            "application_name" => self.application_name = Some(value),
            "fallback_application_name" => self.fallback_application_name = Some(value),
            "connect_timeout" => self.connect_timeout = seconds(&value)?,
            "options" => self.options.extend(server_options(&value)?),
            "statement-cache-capacity" | "statement_cache_capacity" => {
                let capacity = value.parse().map_err(|_| format!("{name} must be a number"))?;
                self.statement_cache_capacity = Some(capacity);
            }
            "sslmode" | "ssl-mode" | "ssl" | "requiressl" => {
                self.ssl_mode = ssl_mode(name, &value)?.or(self.ssl_mode);
            }
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => self.ssl_root_cert = Some(value),
            "sslcert" | "ssl-cert" => self.ssl_cert = Some(value),
            "sslkey" | "ssl-key" => self.ssl_key = Some(value),
            // Every connection must lead to a server that takes writes.
            "target_session_attrs" if is(&["any", "read-write", "primary"]) => {}
            "client_encoding" if is(&["auto"]) || is_utf8(&value) => {}
            "gssencmode" | "channel_binding" if is(&["disable", "prefer"]) => {}
            "sslcertmode" if is(&["allow"]) => {}
            "sslnegotiation" if is(&["postgres"]) => {}
            "replication" if is(&["false", "off", "no", "0"]) => {}
            "ssl_min_protocol_version" if is(&["", "TLSv1", "TLSv1.1", "TLSv1.2"]) => {}
            "ssl_max_protocol_version" if is(&["", "TLSv1.3"]) => {}
            "load_balance_hosts" if is(&["disable", "random"]) => {}
            // Of a system, of a library or of a way to log in that is not ours.
            "keepalives"
            | "keepalives_idle"
            | "keepalives_interval"
            | "keepalives_count"
            | "tcp_user_timeout"
            | "sslcompression"
            | "sslsni"
            | "krbsrvname"
            | "gsslib"
            | "gssdelegation" => {}
            _ => match name.strip_prefix("options[").and_then(|name| name.strip_suffix(']')) {
                Some(option) => self.options.push((option.to_owned(), value)),
                None => return Err(not_understood(name)),
            },
        }
        Ok(())
    }

    /// The options of a server with all that the DSN says of it, its host and port excepted.
    pub(super) fn apply(&self, mut options: PgConnectOptions) -> Result<PgConnectOptions, String> {
        if let Some(user) = &self.user {
            options = options.username(user);
        }
        if let Some(password) = &self.password {
            options = options.password(password);
        }
        if let Some(database) = &self.dbname {
            options = options.database(database);
        }
        let names = [&self.application_name, &self.fallback_application_name];
        let name = names.into_iter().flatten().next().map_or(APPLICATION_NAME, String::as_str);
        if self.application_name.is_some() || options.get_application_name().is_none() {
            options = options.application_name(name);
        }
        if !self.options.is_empty() {
            options = options.options(self.options.iter().map(|(name, value)| (name, value)));
        }
        if let Some(capacity) = self.statement_cache_capacity {
            options = options.statement_cache_capacity(capacity);
        }
        self.apply_tls(options)
    }

    fn apply_tls(&self, mut options: PgConnectOptions) -> Result<PgConnectOptions, String> {
        if options.get_host().starts_with('/') || options.get_socket().is_some() {
            return Ok(options.ssl_mode(PgSslMode::Disable));
        }
        let root = match self.ssl_root_cert.as_deref() {
            // The public authorities, which the library knows anyway.
            Some("system") => None,
            Some(file) => Some(file.to_owned()),
            None if std::env::var_os("PGSSLROOTCERT").is_some() => None,
            None => std::env::var("SSL_CERT_FILE").ok().filter(|file| Path::new(file).is_file()),
        };
        let mode = match self.ssl_mode {
            // As libpq does: who names an authority wants it asked.
            Some(SslMode::Require) if self.ssl_root_cert.is_some() => Some(SslMode::VerifyCa),
            mode => mode,
        };
        if mode == Some(SslMode::VerifyFull) && self.hostaddr.is_some() {
            return Err("hostaddr cannot be used with sslmode=verify-full: use host".to_owned());
        }
        if mode == Some(SslMode::Disable) {
            return Ok(options.ssl_mode(PgSslMode::Disable));
        }
        let files =
            [("sslrootcert", &root), ("sslcert", &self.ssl_cert), ("sslkey", &self.ssl_key)];
        for (name, file) in files {
            if let Some(Err(error)) = file.as_ref().map(std::fs::File::open) {
                return Err(format!("the file of {name} cannot be read: {error}"));
            }
        }
        if let Some(file) = root {
            options = options.ssl_root_cert(file);
        }
        if let Some(file) = &self.ssl_cert {
            options = options.ssl_client_cert(file);
        }
        if let Some(file) = &self.ssl_key {
            options = options.ssl_client_key(file);
        }
        Ok(match mode {
            None | Some(SslMode::Disable) => options,
            Some(SslMode::Prefer) => options.ssl_mode(PgSslMode::Prefer),
            Some(SslMode::Require) => options.ssl_mode(PgSslMode::Require),
            Some(SslMode::VerifyCa) => options.ssl_mode(PgSslMode::VerifyCa),
            Some(SslMode::VerifyFull) => options.ssl_mode(PgSslMode::VerifyFull),
        })
    }
}

/// Whether the name is one of the encoding that we speak.
fn is_utf8(encoding: &str) -> bool {
    let letters: String = encoding.chars().filter(char::is_ascii_alphanumeric).collect();
    letters.eq_ignore_ascii_case("utf8") || letters.eq_ignore_ascii_case("unicode")
}

fn seconds(value: &str) -> Result<Timeout, String> {
    let seconds: u64 =
        value.parse().map_err(|_| "connect_timeout must be a whole number of seconds")?;
    // As libpq does: 0 is no limit of the caller's, and one second is too short to be meant.
    Ok(if seconds == 0 { Timeout::default() } else { Timeout(Duration::from_secs(seconds.max(2))) })
}

/// The mode that one of the names of the setting asks for; none if it asks for nothing.
fn ssl_mode(name: &str, value: &str) -> Result<Option<SslMode>, String> {
    if name == "sslmode" || name == "ssl-mode" {
        return SslMode::named(value).map(Some).ok_or_else(|| {
            format!("{name} must be disable, allow, prefer, require, verify-ca or verify-full")
        });
    }
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Ok(Some(SslMode::Require)),
        "false" | "off" | "no" if name == "ssl" => Ok(Some(SslMode::Disable)),
        "0" => Ok(None),
        // As asyncpg has it.
        mode if name == "ssl" => SslMode::named(mode).map(Some).ok_or_else(|| {
            "ssl must be true, false or a mode such as require or verify-full".to_owned()
        }),
        _ => Err(format!("{name} must be 0 or 1")),
    }
}

/// The settings in `-c name=value --name=value`.
fn server_options(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut words = words_of(text).into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            Some("") => words.next().unwrap_or_default(),
            Some(setting) => setting.to_owned(),
            None => String::new(),
        };
        let (name, value) = setting
            .split_once('=')
            .ok_or("options must be settings of the server: -c name=value")?;
        settings.push((name.to_owned(), value.to_owned()));
    }
    Ok(settings)
}

/// The words of a text in which a backslash takes the meaning from what follows it.
fn words_of(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, words.last_mut()) {
            ('\\', Some(word)) => word.extend(characters.next()),
            (space, _) if space.is_whitespace() => words.push(String::new()),
            (other, Some(word)) => word.push(other),
            (_, None) => {}
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn not_understood(name: &str) -> String {
    const KNOWN: [&str; 22] = [
        "channel_binding",
        "client_encoding",
        "gssencmode",
        "load_balance_hosts",
        "max_protocol_version",
        "min_protocol_version",
        "passfile",
        "replication",
        "require_auth",
        "requirepeer",
        "scram_client_key",
        "scram_server_key",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcertmode",
        "sslcrl",
        "sslcrldir",
        "sslkeylogfile",
        "sslnegotiation",
        "sslpassword",
        "target_session_attrs",
    ];
    if KNOWN.contains(&name) {
        return format!("the parameter {name} cannot be honoured with that value: remove it");
    }
    // What is no name may be the half of a password with a special character in it.
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.[]".contains(c));
    let shown = if is_name && name.len() <= 40 { name } else { "with special characters" };
    format!("the parameter {shown} is not known: remove it, or percent-encode what it is part of")
}
