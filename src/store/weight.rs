//! Large values are worked on where nobody waits.

use crate::heavy;

/// How much work a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// So little that nobody waits for it.
    Light,
    /// So much that others on this thread would wait.
    Heavy,
}

impl Weight {
    /// Does work on what is of this weight.
    pub(super) fn work<R>(self, work: impl FnOnce() -> R) -> R {
        match self {
            Self::Light => work(),
            Self::Heavy => heavy::in_place(work),
        }
    }
}
