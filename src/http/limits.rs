//! How large a request, and what is in it, may be.

use std::time::Duration;

/// Labels of one node at most.
pub const CLASSES_MAX: usize = 10;
/// Characters of one label at most.
pub const CLASS_MAX_CHARS: usize = 100;
/// Rows of a listing at most; who asks for more gets so many.
pub const LIST_MAX: u64 = 1000;
/// Rows of a listing when the client does not say.
pub const LIST_DEFAULT: u64 = 100;
/// Rows that a listing may pass over; who wants to go further goes by cursor.
pub const OFFSET_MAX: u64 = 50_000;
/// Versions of a node that are shown at most.
pub const VERSIONS_MAX: u64 = 100;
/// Versions of a node when the client does not say.
pub const VERSIONS_DEFAULT: u64 = 10;
/// Nodes of one requeue or refresh at most, and when the client does not say.
pub const REQUEUE_MAX: u64 = 2000;
/// A body that has not arrived after this time is given up.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// What an operator may set of the HTTP layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpConfig {
    /// Bytes of a request body at most.
    pub body_limit: usize,
    /// Bytes of the JSON of a node at most.
    pub node_bytes: usize,
    /// Nodes of one `POST /nodes/batch` at most, and of any call that embeds before it answers.
    pub batch_max: usize,
    /// Whether to answer as clients of ActiveKG expect: 200 instead of 202, and fields of nodes
    /// that are not known are ignored.
    pub activekg: bool,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            body_limit: 10 * 1024 * 1024,
            node_bytes: 16 * 1024 * 1024,
            batch_max: 200,
            activekg: false,
        }
    }
}
