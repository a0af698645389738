//! A redis-server of our own: started, watched, stopped.

mod damage;
mod socket;

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::{
    process::{Child, Command},
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tracing::{error, info, warn};

use crate::{
    data_dir::{self, DataDirError},
    telemetry::Chain,
};
use damage::Cause;
use socket::{Answer, Socket, ask};

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
    /// Somebody else listens where our server would.
    #[error("another user listens on {0}: remove that socket, or set REDIS_URL")]
    Stranger(PathBuf),
    /// No socket can be reached there.
    #[error(
        "the path of {0} is too long for a socket: set VECMILL_DATA_DIR to a directory with a \
         shorter one, or REDIS_URL"
    )]
    PathTooLong(PathBuf),
    /// The directory cannot be kept from others.
    #[error(transparent)]
    Directory(#[from] DataDirError),
    /// The server ends at once or does not answer.
    #[error("the private redis-server does not start{reason}; its log is {log}")]
    DoesNotStart {
        /// What it said last, after a colon; empty if it said nothing.
        reason: String,
        /// Where it says the rest.
        log: PathBuf,
    },
    /// Its data were written by a newer release.
    #[error(
        "the installed redis-server is older than the one that wrote {0}: install the newer one, \
         or remove the directory; jobs are made again from the database"
    )]
    TooOld(PathBuf),
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
    socket: Arc<Socket>,
    stop: oneshot::Sender<()>,
    watcher: JoinHandle<()>,
    /// Held as long as this process owns the directory.
    _lock: File,
}

/// What the server may be called, in the order of preference.
const SERVERS: [&str; 2] = ["redis-server", "valkey-server"];
const START_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// What a path may not hold where it is a part of a URL.
const NOT_IN_URL: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#');

impl PrivateRedis {
    /// Takes the directory, ends a server that a killed process left there, and starts one on
    /// its data.
    pub async fn start(data_dir: &Path) -> Result<Self, PrivateRedisError> {
        let dir = data_dir.join("redis");
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| PrivateRedisError::Io { path, source }
        };
        data_dir::private(&dir, false)?;
        let dir = dir.canonicalize().map_err(failed(&dir))?;
        let lock_path = dir.join("lock");
        let lock = data_dir::private_file(&lock_path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PrivateRedisError::InUse(dir)),
            Err(TryLockError::Error(source)) => {
                return Err(PrivateRedisError::Io { path: lock_path, source });
            }
        }
        let socket = Arc::new(Socket::of(&dir)?);
        if end_server(&dir, socket.path()).await? {
            info!("ended a redis-server that an earlier process left behind");
        }
        data_dir::tighten(&dir)?;
        let child = start_server(&dir, socket.path()).await?;
        info!(pid = child.id(), "private redis-server started");

        let (stop, stopped) = oneshot::channel();
        let watcher = tokio::spawn(watch(child, dir, Arc::clone(&socket), stopped));
        Ok(Self { socket, stop, watcher, _lock: lock })
    }

    /// The address for [`Queue::connect`](super::Queue::connect).
    pub fn url(&self) -> String {
        let path = self.socket.path().display().to_string();
        format!("unix:{}", utf8_percent_encode(&path, NOT_IN_URL))
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
    socket: Arc<Socket>,
    mut stopped: oneshot::Receiver<()>,
) {
    loop {
        tokio::select! {
            _ = &mut stopped => {
                if let Err(error) = end_server(&dir, socket.path()).await {
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
            let restarted = tokio::select! {
                restarted = start_server(&dir, socket.path()) => restarted,
                _ = &mut stopped => return,
            };
            match restarted {
                Ok(restarted) => {
                    child = restarted;
                    break;
                }
                Err(error) => {
                    error!(error = %Chain(&error), "cannot restart the private redis-server");
                }
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

/// Starts a server and waits until it answers. Data that it cannot read are put aside.
async fn start_server(dir: &Path, socket: &Path) -> Result<Child, PrivateRedisError> {
    let log = dir.join("redis.log");
    let mut put_aside = false;
    loop {
        let logged = damage::length(&log);
        let mut child = spawn(dir)?;
        match wait_until_ready(&mut child, socket).await {
            Ready::Yes => return Ok(child),
            Ready::Stranger => return Err(PrivateRedisError::Stranger(dir.join(socket::NAME))),
            Ready::No => {}
        }
        let said = damage::written_since(&log, logged);
        match Cause::of(&said) {
            Cause::Damage if !put_aside => {
                put_aside = true;
                let aside = damage::put_aside(dir)
                    .map_err(|source| PrivateRedisError::Io { path: dir.to_owned(), source })?;
                warn!(
                    ?aside,
                    reason = damage::last_words(&said),
                    "the data of the private redis-server are damaged: put aside; the sweep makes \
                     the jobs again from the database"
                );
            }
            Cause::TooOld => return Err(PrivateRedisError::TooOld(dir.to_owned())),
            _ => {
                let reason = damage::last_words(&said);
                let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
                return Err(PrivateRedisError::DoesNotStart { reason, log });
            }
        }
    }
}

fn spawn(dir: &Path) -> Result<Child, PrivateRedisError> {
    let server = SERVERS.iter().find_map(|name| in_path(name));
    let server = server.ok_or(PrivateRedisError::NotInstalled)?;
    // A shell, because only the process itself can say that its files are for nobody else.
    Command::new("/bin/sh")
        .args(["-c", r#"umask 077; exec "$0" "$@""#])
        .arg(&server)
        .current_dir(dir)
        .args(["--port", "0", "--unixsocketperm", "700", "--daemonize", "no"])
        .args(["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""])
        .args(["--maxmemory-policy", "noeviction", "--logfile", "redis.log"])
        .arg("--dir")
        .arg(dir)
        .args(["--unixsocket", socket::NAME])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C is for us alone; we end the server when our own work is down.
        .process_group(0)
        // Should this process end without [`PrivateRedis::stop`]: what the server was told is in
        // its file by the time it answers.
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| PrivateRedisError::Io { path: server, source })
}

/// Where a program is, as a shell would find it.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let is_program = |file: &PathBuf| {
        file.metadata().is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0)
    };
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(is_program)
}

/// Whether a server is ready.
enum Ready {
    Yes,
    /// It ended, or does not answer in time.
    No,
    /// Somebody else is, in its place.
    Stranger,
}

async fn wait_until_ready(child: &mut Child, socket: &Path) -> Ready {
    let deadline = Instant::now() + START_DEADLINE;
    while Instant::now() < deadline {
        match ask(socket, b"PING\r\n").await {
            Answer::Bytes(answer) if answer == b"+PONG\r\n" => return Ready::Yes,
            Answer::Stranger => return Ready::Stranger,
            _ => {}
        }
        if matches!(child.try_wait(), Ok(Some(_))) {
            break;
        }
        sleep(POLL).await;
    }
    Ready::No
}

/// Asks a server on the socket to write its data and end. Returns whether there was one.
///
/// # Errors
/// It is still there at the deadline: a second server on its files would spoil them.
async fn end_server(dir: &Path, socket: &Path) -> Result<bool, PrivateRedisError> {
    let deadline = Instant::now() + STOP_DEADLINE;
    let mut found = false;
    // A server that still loads its data refuses, and is asked again.
    loop {
        match ask(socket, b"PING\r\n").await {
            Answer::Nobody => return Ok(found),
            Answer::Stranger => return Err(PrivateRedisError::Stranger(dir.join(socket::NAME))),
            _ => {}
        }
        if Instant::now() > deadline {
            return Err(PrivateRedisError::StillThere(dir.to_owned()));
        }
        found = true;
        ask(socket, b"SHUTDOWN\r\n").await;
        sleep(POLL).await;
    }
}
