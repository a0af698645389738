//! Connections to Redis: addresses, time-outs, reconnecting.

use std::time::Duration;

use fred::{
    clients::Client,
    interfaces::{ClientLike, EventInterface},
    types::{
        Builder,
        config::{Config, ReconnectPolicy, ServerConfig},
    },
};
use socket2::TcpKeepalive;
use tracing::{info, warn};

use super::{Keys, Queue, QueueError, load, scripts::Scripts};
use crate::config::QueueConfig;

/// How long a command may take, reconnecting included.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long sent data may stay unanswered before the connection is given up.
const VANISHED_AFTER: Duration = Duration::from_secs(10);
/// `BLMOVE` and `RPOP` with a count, the newest commands used, came with this release.
const OLDEST_SERVER: (u64, u64) = (6, 2);

impl Queue {
    /// Connects, checks the server's version and loads the scripts. From then on a lost
    /// connection is made again for ever; commands fail meanwhile.
    ///
    /// `url` is `redis://`, `rediss://`, `redis-sentinel://` or `unix:<path>`.
    pub async fn connect(url: &str, config: &QueueConfig) -> Result<Self, QueueError> {
        let client = client(url, Some(COMMAND_TIMEOUT))?;
        // A blocking command delays all others on its connection.
        let waiter = client_for_blocking(url)?;
        for client in [&client, &waiter] {
            client.init().await.map_err(QueueError::Unavailable)?;
            log_connection(client);
        }
        let info: String = client.info(Some(fred::types::InfoKind::Server)).await?;
        check_version(&info)?;
        let scripts = Scripts::new();
        load(&client, &scripts).await?;
        Ok(Self { client, waiter, keys: Keys::new(config), scripts, dlq_max: config.dlq_max })
    }
}

fn client_for_blocking(url: &str) -> Result<Client, QueueError> {
    client(url, None)
}

fn client(url: &str, command_timeout: Option<Duration>) -> Result<Client, QueueError> {
    let mut config = match url.strip_prefix("unix:") {
        // `unix:/path` and `unix:///path` name the same socket.
        Some(path) => Config {
            server: ServerConfig::new_unix_socket(path.replacen("///", "/", 1)),
            ..Config::default()
        },
        // The library's message would repeat the address, which may hold a password.
        None => Config::from_url(url).map_err(|_| {
            QueueError::Setup(
                "REDIS_URL is not valid: use redis://, rediss://, redis-sentinel:// or unix:"
                    .into(),
            )
        })?,
    };
    config.fail_fast = true;
    let mut builder = Builder::from_config(config);
    builder
        .with_connection_config(|connection| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            // A script whose answer was lost must not run twice behind our back: a claim would
            // overwrite its own leases.
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = 100_000;
            connection.auto_client_setname = true;
            // A server that vanished without closing the connection: the kernel gives it up.
            connection.tcp.user_timeout = Some(VANISHED_AFTER);
            connection.tcp.keepalive = Some(TcpKeepalive::new().with_time(VANISHED_AFTER));
        })
        .with_performance_config(|performance| {
            performance.default_command_timeout = command_timeout.unwrap_or_default();
        })
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 2_000, 2));
    builder.build().map_err(|error| QueueError::Setup(format!("REDIS_URL: {}", error.details())))
}

fn log_connection(client: &Client) {
    client.on_error(|(error, _)| async move {
        warn!(error = error.details(), "connection to Redis lost");
        Ok(())
    });
    client.on_reconnect(|_| async {
        info!("connected to Redis again");
        Ok(())
    });
}

fn check_version(info: &str) -> Result<(), QueueError> {
    // Valkey reports the Redis release that it is compatible with in the same field.
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
    let mut numbers = version.unwrap_or_default().split('.').map(|part| part.trim().parse());
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Ok(());
    };
    if (major, minor) < OLDEST_SERVER {
        return Err(QueueError::Setup(format!(
            "the Redis server is version {major}.{minor}; Vecmill needs 6.2 or newer, or Valkey"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_are_too_old_are_refused() {
        assert!(check_version("redis_version:6.0.16\r\n").is_err());
        for fine in ["redis_version:6.2.0", "redis_version:7.0.15", "redis_version:7.2.4", ""] {
            assert!(check_version(fine).is_ok(), "{fine}");
        }
    }

    #[test]
    fn a_bad_address_is_not_repeated() {
        let error = client("redis://:secret@host:notaport", None).err().unwrap().to_string();
        assert!(error.contains("REDIS_URL") && !error.contains("secret"), "{error}");
    }
}
