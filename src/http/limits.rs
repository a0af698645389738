//! How large a request, and what is in it, may be.

use std::time::Duration;

/// Labels of one node at most.
pub const CLASSES_MAX: usize = 10;
/// Characters of one label at most.
pub const CLASS_MAX_CHARS: usize = 100;
/// Rows of a listing at most.
pub const LIST_MAX: u64 = 1000;
/// Rows of a listing when the client does not say.
pub const LIST_DEFAULT: u64 = 50;
/// Rows that a listing may pass over; far above what a client can page through.
pub const OFFSET_MAX: u64 = 1_000_000_000;
/// Nodes of one requeue at most, and when the client does not say.
pub const REQUEUE_MAX: u64 = 2000;
/// A body that has not arrived after this time is given up.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// What an operator may set of the HTTP layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpConfig {
    /// Bytes of a request body at most.
    pub body_limit: usize,
    /// Nodes of one `POST /nodes/batch` at most.
    pub batch_max: usize,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { body_limit: 8 * 1024 * 1024, batch_max: 200 }
    }
}
