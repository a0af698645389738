//! The first connection: is it a server that can be used, and may we use it?

use std::sync::atomic::AtomicU64;

use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::{ClientLike, KeysInterface, ListInterface, LuaInterface},
    types::{InfoKind, Value, lists::LMoveDirection},
};

use tokio::sync::OnceCell;

use super::{
    Keys, Queue, QueueError,
    address::Address,
    link::{Link, Recipe},
    scripts::Scripts,
};
use crate::config::QueueConfig;

/// `BLMOVE` and `RPOP` with a count, the newest commands used, came with this release.
const OLDEST_SERVER: (u64, u64) = (6, 2);

impl Queue {
    /// Connects, checks the server's version and what it lets us do, and loads the scripts. From
    /// then on a connection that is lost or leads nowhere is made again for ever; commands fail
    /// meanwhile.
    ///
    /// `url` is `redis://`, `rediss://`, `redis-sentinel://`, `rediss-sentinel://` or
    /// `unix:<path>`.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] may pass; everything else must be mended.
    pub async fn connect(url: &str, config: &QueueConfig) -> Result<Self, QueueError> {
        let address = Address::parse(url)?;
        let (keys, scripts) = (Keys::new(config), Scripts::new());
        let recipe = |blocking| Recipe {
            address: address.clone(),
            write: scripts.write.clone(),
            write_key: keys.probe.clone(),
            blocking,
        };
        let commands = Link::connect(recipe(false)).await?;
        let waiter_recipe = recipe(true);
        let (waiter, dlq_max) = (OnceCell::new(), config.dlq_max);
        let unread = AtomicU64::default();
        let queue = Self { commands, waiter, waiter_recipe, keys, scripts, dlq_max, unread };
        queue.check_server().await.map_err(|error| error.at(&address.place()))?;
        Ok(queue)
    }

    /// Whether a URL can be used, as far as it tells by itself.
    ///
    /// # Errors
    /// [`QueueError::Setup`] says what is wrong with it, and repeats no value.
    pub fn check_url(url: &str) -> Result<(), QueueError> {
        Address::parse(url).map(drop)
    }

    async fn check_server(&self) -> Result<(), QueueError> {
        // Many servers keep this command from all but their operators.
        match self
            .commands
            .call(async |client: Client| client.info(Some(InfoKind::Server)).await)
            .await
        {
            Ok(info) => check_version(info)?,
            Err(QueueError::Refused(_)) => {}
            Err(error) => return Err(error),
        }
        self.load().await?;
        self.check_permissions().await
    }

    /// Loads all scripts, so that the first jobs do not wait for it.
    async fn load(&self) -> Result<(), QueueError> {
        for script in self.scripts.all() {
            let source = script.lua().cloned().unwrap_or_default();
            self.commands.call(async |client| client.script_load::<(), _>(source).await).await?;
        }
        Ok(())
    }

    async fn check_permissions(&self) -> Result<(), QueueError> {
        self.check_scripts_permissions().await?;
        forbids(&self.forbidden_outside_scripts().await?)
    }

    /// Whether this user may do what the scripts do.
    ///
    /// # Errors
    /// [`QueueError::Setup`] names the commands or keys that are forbidden.
    pub(super) async fn check_scripts_permissions(&self) -> Result<(), QueueError> {
        let probe = self.keys.probe.as_str();
        let (script, none) = (&self.scripts.permissions, Vec::<String>::new());
        let mut args = vec![Value::from(probe)];
        args.extend(
            self.keys.for_scripts.iter().map(|key| Value::from(key.as_str_lossy().as_ref())),
        );
        for prefix in [&self.keys.pending_prefix, &self.keys.tenant_prefix] {
            args.push(format!("{prefix}:probe").into());
        }
        let ask = async |client| script.evalsha_with_reload(&client, none, args).await;
        let forbidden: Vec<String> = self.commands.call(ask).await?;
        forbids(&forbidden)
    }

    /// Which of the commands that are sent by themselves are forbidden.
    async fn forbidden_outside_scripts(&self) -> Result<Vec<String>, QueueError> {
        let probe = self.keys.probe.as_str();
        let get = async |client: Client| client.mget::<Value, _>(probe).await;
        let scan = async |client: Client| client.scan_page("0", probe, Some(1), None).await;
        let wait = async |client| wait_for_nothing(client, probe).await;
        let mut forbidden = Vec::new();
        for (name, answer) in [
            ("MGET", self.commands.call(get).await),
            ("SCAN", self.commands.call::<Value, _>(scan).await),
            ("BLMOVE", self.commands.call(wait).await),
        ] {
            match answer {
                Ok(_) => {}
                Err(QueueError::Refused(_)) => forbidden.push(format!("the command {name}")),
                Err(error) => return Err(error),
            }
        }
        Ok(forbidden)
    }
}

fn forbids(what: &[String]) -> Result<(), QueueError> {
    if what.is_empty() {
        return Ok(());
    }
    Err(QueueError::Setup(format!(
        "Redis forbids this user {}; the README says what it must be allowed (ACL SETUSER)",
        what.join(", ")
    )))
}

/// The command that waits, on a key that nobody fills.
async fn wait_for_nothing(client: Client, key: &str) -> Result<Value, Error> {
    let (from, to) = (LMoveDirection::Right, LMoveDirection::Right);
    match client.blmove(key, key, from, to, 0.01).await {
        Err(error) if *error.kind() == ErrorKind::Timeout => Ok(Value::Null),
        answer => answer,
    }
}

fn check_version(info: String) -> Result<(), QueueError> {
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
        let check = |info: &str| check_version(info.to_owned());
        assert!(check("redis_version:6.0.16\r\n").is_err());
        for fine in ["redis_version:6.2.0", "redis_version:7.0.15", "redis_version:7.2.4", ""] {
            assert!(check(fine).is_ok(), "{fine}");
        }
    }
}
