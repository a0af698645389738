//! Where the private server listens, and short talks with whoever does.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use crate::data_dir::{self, DataDirError};

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

/// In the directory itself, or in a directory of this user's alone when that path is too long for
/// a socket address.
pub(super) fn socket_path(dir: &Path) -> Result<PathBuf, DataDirError> {
    let here = dir.join("redis.sock");
    if here.as_os_str().len() <= SOCKET_PATH_MAX {
        return Ok(here);
    }
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let user = data_dir::own_user().map_err(|source| {
        let path = here.clone();
        DataDirError::Io { path, source }
    })?;
    let own = format!("vecmill-{user}");
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let bases = runtime.into_iter().chain([env::temp_dir(), PathBuf::from("/tmp")]);
    let mut sockets = bases
        .filter(|base| base.is_dir())
        .map(|base| base.join(&own).join(format!("{name}.sock")))
        .filter(|socket| socket.as_os_str().len() <= SOCKET_PATH_MAX);
    let socket = sockets.next().unwrap_or(here);
    if let Some(own) = socket.parent().filter(|own| *own != dir) {
        data_dir::private(own, false)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_directory_still_has_a_socket_in_a_private_place() {
        let long = PathBuf::from(format!("/{}", "d/".repeat(80)));
        let socket = socket_path(&long).unwrap();
        assert!(socket.as_os_str().len() <= SOCKET_PATH_MAX);
        let mode =
            std::os::unix::fs::MetadataExt::mode(&socket.parent().unwrap().metadata().unwrap());
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(socket_path(Path::new("/d")).unwrap(), Path::new("/d/redis.sock"));
        assert_ne!(socket, socket_path(&long.join("other")).unwrap());
    }
}
