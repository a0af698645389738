//! Why a server did not start, by its own log; and files that it cannot read.
//!
//! What is in the files can be made again from the database. So files that are damaged are put
//! aside, and the server starts empty; no other failure moves anything.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// What a server writes of a file that it cannot make sense of.
const DAMAGED: [&str; 5] = [
    "reading the append only file",
    "FATAL AOF MANIFEST FILE ERROR",
    "Internal error in RDB reading",
    "Wrong signature trying to load DB from file",
    "RDB CRC error",
];
/// What stands beside that where the file is in good order.
const NOT_DAMAGED: [&str; 5] = [
    "No space left",
    "Permission denied",
    "Input/output error",
    "Cannot allocate memory",
    "Too many open files",
];
/// What it writes of a file that a newer release wrote.
const NEWER: &str = "Can't handle RDB format";
/// A part that the manifest names is gone.
const PART_GONE: [&str; 2] = ["Unable to obtain the AOF file", "No such file or directory"];
/// Where servers keep their data, from 7.0 on and before.
const FILES: [&str; 2] = ["appendonlydir", "appendonly.aof"];
/// How much of a log is read.
const LOG_MAX: u64 = 64 << 10;

/// Why a server ended at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its files are damaged.
    Damage,
    /// Its files were written by a newer release.
    TooOld,
    /// Something else.
    Other,
}

impl Cause {
    /// By what the server wrote to its log.
    pub(super) fn of(log: &str) -> Self {
        let says = |words: &&str| log.contains(*words);
        if log.contains(NEWER) {
            Self::TooOld
        } else if NOT_DAMAGED.iter().any(says) {
            Self::Other
        } else if DAMAGED.iter().any(says) || PART_GONE.iter().all(says) {
            Self::Damage
        } else {
            Self::Other
        }
    }
}

/// How long a log is now.
pub(super) fn length(log: &Path) -> u64 {
    log.metadata().map_or(0, |log| log.len())
}

/// What was written to a log since it was so long.
pub(super) fn written_since(log: &Path, length: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(log)?;
        file.seek(SeekFrom::Start(length))?;
        let mut written = Vec::new();
        file.take(LOG_MAX).read_to_end(&mut written)?;
        Ok(written)
    };
    // Without a log nothing is known.
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// The last line of a log that is a warning or worse, without what stands before its words.
pub(super) fn last_words(log: &str) -> Option<&str> {
    log.lines().rev().find_map(|line| Some(line.split_once(" # ")?.1.trim()))
}

/// Puts the files of a server aside. Answers where they are now.
pub(super) fn put_aside(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut aside = Vec::new();
    for name in FILES {
        let damaged = dir.join(format!("{name}.damaged-{}", now.as_millis()));
        match fs::rename(dir.join(name), &damaged) {
            Ok(()) => aside.push(damaged),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_told_from_other_failures() {
        for (log, cause) in [
            (
                "1:M 27 Nov # Bad file format reading the append only file appendonly.aof.1.incr.aof: \
                 make a backup",
                Cause::Damage,
            ),
            ("1:M # \n*** FATAL AOF MANIFEST FILE ERROR ***\n", Cause::Damage),
            ("1:M # Unknown command 'NOPE' reading the append only file a.aof", Cause::Damage),
            (
                "1:M # Unable to obtain the AOF file a.aof length. stat: No such file or directory",
                Cause::Damage,
            ),
            (
                "1:M # Can't handle RDB format version 99\n1:M # Unrecoverable error reading the \
                 append only file a.rdb: Invalid argument",
                Cause::TooOld,
            ),
            (
                "1:M # Unrecoverable error reading the append only file a: Permission denied",
                Cause::Other,
            ),
            ("1:M # Failed opening Unix socket: bind: Address already in use", Cause::Other),
            ("", Cause::Other),
        ] {
            assert_eq!(Cause::of(log), cause, "{log}");
        }
    }

    #[test]
    fn the_last_warning_is_the_reason() {
        let log = "1:M 27 Nov 2026 13:44:51.236 * Loading\n1:M 27 Nov 2026 # It fails\n1:M * bye\n";
        assert_eq!(last_words(log), Some("It fails"));
        assert_eq!(last_words("1:M * fine"), None);
    }
}
