//! Directories and files that only this user may look into: texts and names of tenants are in them.
//! To be used inside a runtime.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use tokio::net::UnixStream;

/// What others may do with a file is none of these.
const OTHERS: u32 = 0o077;
/// Of the files in a data directory, those of SQLite.
const DATABASE: &str = "vecmill.db";
const DATABASE_FILES: [&str; 4] =
    [DATABASE, "vecmill.db-wal", "vecmill.db-shm", "vecmill.db-journal"];

/// Why a directory or a file cannot be kept from others.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Its owner could read everything, and exchange it.
    #[error(
        "{path} belongs to user {owner}, and this process runs as user {own}: give it to the user \
         that Vecmill runs as, or set VECMILL_DATA_DIR to another directory"
    )]
    NotOurs {
        /// The directory or file.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// Our own.
        own: u32,
    },
    /// It would lead somewhere else.
    #[error("{0} is a symbolic link: put a {1} in its place")]
    Link(PathBuf, &'static str),
    /// It is not what it must be.
    #[error("{0} is no directory: set VECMILL_DATA_DIR to another one")]
    NoDirectory(PathBuf),
    /// The system says no.
    #[error("cannot prepare {path}")]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Makes the data directory fit for use: it and all of our files in it are this user's alone, those
/// of an earlier release too. With `with_database`, its database is there afterwards.
///
/// # Errors
/// It belongs to another user, or a file of ours is a symbolic link.
pub fn prepare(dir: &Path, with_database: bool) -> Result<(), DataDirError> {
    private(dir, true)?;
    for name in DATABASE_FILES {
        tighten(&dir.join(name))?;
    }
    if with_database {
        private_file(&dir.join(DATABASE))?;
    }
    Ok(())
}

/// Makes a directory of our own, or sees that it is one: for this user alone. A link to it is
/// followed only if `through_links`.
///
/// # Errors
/// It belongs to another user, or is none.
pub fn private(dir: &Path, through_links: bool) -> Result<(), DataDirError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).or_else(|source| {
        // What stands in the way is named below.
        match dir.symlink_metadata() {
            Ok(_) => Ok(()),
            Err(_) => Err(failed(dir)(source)),
        }
    })?;
    let found = dir.symlink_metadata().map_err(failed(dir))?;
    if found.is_symlink() && !through_links {
        return Err(DataDirError::Link(dir.to_owned(), "directory"));
    }
    let found = dir.metadata().map_err(failed(dir))?;
    if !found.is_dir() {
        return Err(DataDirError::NoDirectory(dir.to_owned()));
    }
    restrict(dir, &found)
}

/// Opens a file of our own for writing, as it is or new; never through a link.
///
/// # Errors
/// It is a link, or belongs to another user.
pub fn private_file(path: &Path) -> Result<File, DataDirError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .map_err(|source| match path.is_symlink() {
            true => DataDirError::Link(path.to_owned(), "file"),
            false => failed(path)(source),
        })?;
    restrict(path, &file.metadata().map_err(failed(path))?)?;
    Ok(file)
}

/// Takes from others what they may do with a file of ours, and with all that is in a directory of
/// ours; what is not there needs nothing.
///
/// # Errors
/// It is a link, or belongs to another user.
pub fn tighten(path: &Path) -> Result<(), DataDirError> {
    let found = match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => {
            return Err(DataDirError::Link(path.to_owned(), "file"));
        }
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed(path)(source)),
    };
    restrict(path, &found)?;
    if found.is_dir() {
        for entry in fs::read_dir(path).map_err(failed(path))? {
            tighten(&entry.map_err(failed(path))?.path())?;
        }
    }
    Ok(())
}

/// The id of the user that this process runs as: of whoever is at the other end of a connection to
/// itself.
///
/// # Errors
/// The system lets us have no sockets.
pub fn own_user() -> io::Result<u32> {
    let (own, _) = UnixStream::pair()?;
    Ok(own.peer_cred()?.uid())
}

fn restrict(path: &Path, found: &fs::Metadata) -> Result<(), DataDirError> {
    let (owner, own) = (found.uid(), own_user().map_err(failed(path))?);
    if owner != own {
        return Err(DataDirError::NotOurs { path: path.to_owned(), owner, own });
    }
    if found.mode() & OTHERS != 0 {
        let mode = Permissions::from_mode(found.mode() & !OTHERS & 0o7777);
        fs::set_permissions(path, mode).map_err(failed(path))?;
    }
    Ok(())
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { path, source }
}
