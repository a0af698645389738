//! Where the private server listens, and short talks with whoever does.

use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use super::PrivateRedisError;
use crate::data_dir;

/// What the socket is called in its directory.
pub(super) const NAME: &str = "redis.sock";
/// What fits into a socket address, less one.
const SOCKET_PATH_MAX: usize = 100;

/// What a server said to a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nobody listens on the socket.
    Nobody,
    /// Another user does: it was told nothing.
    Stranger,
    /// Somebody does, but is too busy to answer.
    Silence,
    /// The first bytes of the answer; none when the connection was closed.
    Bytes(Vec<u8>),
}

/// Sends one inline command.
pub(super) async fn ask(socket: &Path, command: &[u8]) -> Answer {
    let exchange = async {
        let Ok(mut stream) = UnixStream::connect(socket).await else { return Answer::Nobody };
        match (stream.peer_cred(), data_dir::own_user()) {
            (Ok(peer), Ok(own)) if peer.uid() == own => {}
            _ => return Answer::Stranger,
        }
        let mut answer = [0; 64];
        let read = match stream.write_all(command).await {
            Ok(()) => stream.read(&mut answer).await.unwrap_or(0),
            Err(_) => 0,
        };
        Answer::Bytes(answer[..read].to_vec())
    };
    timeout(Duration::from_secs(1), exchange).await.unwrap_or(Answer::Silence)
}

/// Where the private server is reached: always in its own directory, so that whoever has the
/// directory finds the server.
pub(super) struct Socket {
    path: PathBuf,
    /// A way to the directory that fits into a socket address, however long the path of it is. It
    /// is there as long as this is open.
    _way: Option<File>,
}

impl Socket {
    /// The socket of a server in this directory.
    ///
    /// # Errors
    /// The path is too long, and the system (other than Linux) has no shorter one for an open
    /// directory.
    pub(super) fn of(dir: &Path) -> Result<Self, PrivateRedisError> {
        let path = dir.join(NAME);
        if path.as_os_str().len() <= SOCKET_PATH_MAX {
            return Ok(Self { path, _way: None });
        }
        let failed = |source| PrivateRedisError::Io { path: dir.to_owned(), source };
        let way = File::open(dir).map_err(failed)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", way.as_raw_fd()));
        if !short.is_dir() {
            return Err(PrivateRedisError::PathTooLong(path));
        }
        Ok(Self { path: short.join(NAME), _way: Some(way) })
    }

    /// Its path, for this process.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
