//! A redis-server of our own: started, watched, stopped.

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::{Child, Command},
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tracing::{error, info, warn};

/// Why the private server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum PrivateRedisError {
    /// No server is installed.
    #[error(
        "neither redis-server nor valkey-server is installed: install one \
         (apt-get install redis-server), or set REDIS_URL to a server that runs"
    )]
    NotInstalled,
    /// Another process uses the directory.
    #[error(
        "the data directory {0} is in use by another vecmill process: stop it, or set \
         VECMILL_DATA_DIR to another directory"
    )]
    InUse(PathBuf),
    /// A server that another process left behind does not end.
    #[error("a redis-server that an earlier process left in {0} does not end: stop it by hand")]
    StillThere(PathBuf),
    /// The server ends at once or does not answer.
    #[error("the private redis-server does not start; its log is {0}")]
    DoesNotStart(PathBuf),
    /// A file cannot be written.
    #[error("cannot prepare {path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// A running private server; [`stop`](Self::stop) ends it.
pub struct PrivateRedis {
    socket: PathBuf,
    stop: oneshot::Sender<()>,
    watcher: JoinHandle<()>,
    /// Held as long as this process owns the directory.
    _lock: File,
}

const START_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// What fits into a socket address, less one.
const SOCKET_PATH_MAX: usize = 100;

impl PrivateRedis {
    /// Takes the directory, ends a server that a killed process left there, and starts one on
    /// its data.
    pub async fn start(data_dir: &Path) -> Result<Self, PrivateRedisError> {
        let dir = data_dir.join("redis");
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| PrivateRedisError::Io { path, source }
        };
        fs::create_dir_all(&dir).map_err(failed(&dir))?;
        let dir = dir.canonicalize().map_err(failed(&dir))?;
        let lock_path = dir.join("lock");
        let lock = File::create(&lock_path).map_err(failed(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PrivateRedisError::InUse(dir)),
            Err(TryLockError::Error(source)) => {
                return Err(PrivateRedisError::Io { path: lock_path, source });
            }
        }
        let socket = socket_path(&dir);
        if end_server(&dir, &socket).await? {
            info!("ended a redis-server that an earlier process left behind");
        }
        let mut child = spawn(&dir, &socket).await?;
        wait_until_ready(&mut child, &dir, &socket).await?;
        info!(pid = child.id(), "private redis-server started");

        let (stop, stopped) = oneshot::channel();
        let watcher = tokio::spawn(watch(child, dir, socket.clone(), stopped));
        Ok(Self { socket, stop, watcher, _lock: lock })
    }

    /// The address for [`Queue::connect`](super::Queue::connect).
    pub fn url(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    /// Ends the server; its data are on disk afterwards.
    pub async fn stop(self) {
        // The watcher is gone only if it panicked; then there is nothing to tell.
        let _ = self.stop.send(());
        let _ = self.watcher.await;
    }
}

/// Restarts the server whenever it ends, until told to stop it.
async fn watch(
    mut child: Child,
    dir: PathBuf,
    socket: PathBuf,
    mut stopped: oneshot::Receiver<()>,
) {
    loop {
        tokio::select! {
            _ = &mut stopped => {
                if let Err(error) = end_server(&dir, &socket).await {
                    warn!(%error, "the private redis-server does not heed SHUTDOWN");
                }
                if timeout(STOP_DEADLINE, child.wait()).await.is_err() {
                    warn!("the private redis-server does not end; killing it");
                    // It may have ended by itself at last.
                    let _ = child.kill().await;
                }
                return;
            }
            status = child.wait() => {
                error!(status = ?status.ok(), "the private redis-server ended; restarting it");
            }
        }
        loop {
            match spawn(&dir, &socket).await {
                Ok(restarted) => {
                    child = restarted;
                    break;
                }
                Err(error) => error!(%error, "cannot restart the private redis-server"),
            }
            if timeout(RESTART_PAUSE, &mut stopped).await.is_ok() {
                return;
            }
        }
        info!(pid = child.id(), "private redis-server restarted");
        // A server that ends at once must not keep a core busy.
        sleep(RESTART_PAUSE).await;
    }
}

async fn spawn(dir: &Path, socket: &Path) -> Result<Child, PrivateRedisError> {
    for server in ["redis-server", "valkey-server"] {
        let child = Command::new(server)
            .current_dir(dir)
            .args(["--port", "0", "--unixsocketperm", "700", "--daemonize", "no"])
            .args(["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""])
            .args(["--maxmemory-policy", "noeviction", "--logfile", "redis.log"])
            .arg("--dir")
            .arg(dir)
            .arg("--unixsocket")
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C is for us alone; we end the server when our own work is down.
            .process_group(0)
            // Should this process end without [`PrivateRedis::stop`]: what the server was told is
            // in its file by the time it answers.
            .kill_on_drop(true)
            .spawn();
        match child {
            Ok(child) => return Ok(child),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => {
                return Err(PrivateRedisError::Io { path: PathBuf::from(server), source });
            }
        }
    }
    Err(PrivateRedisError::NotInstalled)
}

async fn wait_until_ready(
    child: &mut Child,
    dir: &Path,
    socket: &Path,
) -> Result<(), PrivateRedisError> {
    let deadline = Instant::now() + START_DEADLINE;
    while Instant::now() < deadline {
        if ask(socket, b"PING\r\n").await == Answer::Bytes(b"+PONG\r\n".to_vec()) {
            return Ok(());
        }
        if matches!(child.try_wait(), Ok(Some(_))) {
            break;
        }
        sleep(POLL).await;
    }
    Err(PrivateRedisError::DoesNotStart(dir.join("redis.log")))
}

/// Asks a server on the socket to write its data and end. Returns whether there was one.
///
/// # Errors
/// It is still there at the deadline: a second server on its files would spoil them.
async fn end_server(dir: &Path, socket: &Path) -> Result<bool, PrivateRedisError> {
    let deadline = Instant::now() + STOP_DEADLINE;
    let mut found = false;
    // A server that still loads its data refuses, and is asked again.
    while ask(socket, b"PING\r\n").await != Answer::Nobody {
        if Instant::now() > deadline {
            return Err(PrivateRedisError::StillThere(dir.to_owned()));
        }
        found = true;
        ask(socket, b"SHUTDOWN\r\n").await;
        sleep(POLL).await;
    }
    Ok(found)
}

/// What a server said to a command.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Nobody listens on the socket.
    Nobody,
    /// Somebody does, but is too busy to answer.
    Silence,
    /// The first bytes of the answer; none when the connection was closed.
    Bytes(Vec<u8>),
}

/// Sends one inline command.
async fn ask(socket: &Path, command: &[u8]) -> Answer {
    let exchange = async {
        let Ok(mut stream) = UnixStream::connect(socket).await else { return Answer::Nobody };
        let mut answer = [0; 64];
        let read = match stream.write_all(command).await {
            Ok(()) => stream.read(&mut answer).await.unwrap_or(0),
            Err(_) => 0,
        };
        Answer::Bytes(answer[..read].to_vec())
    };
    timeout(Duration::from_secs(1), exchange).await.unwrap_or(Answer::Silence)
}

/// In the directory itself, or under the system's temporary directory when that path is too
/// long for a socket address.
fn socket_path(dir: &Path) -> PathBuf {
    let here = dir.join("redis.sock");
    if here.as_os_str().len() <= SOCKET_PATH_MAX {
        return here;
    }
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    std::env::temp_dir().join(format!("vecmill-{name}.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_directory_still_has_a_socket() {
        let long = PathBuf::from(format!("/{}", "d/".repeat(80)));
        assert!(socket_path(&long).as_os_str().len() <= SOCKET_PATH_MAX);
        assert_eq!(socket_path(Path::new("/d")), Path::new("/d/redis.sock"));
        assert_ne!(socket_path(&long), socket_path(&long.join("other")));
    }
}
