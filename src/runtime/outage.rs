//! Stores that are away for a while.

use crate::{queue::QueueError, store::StoreError};

/// An error that may mean that nothing is wrong but that a store is away.
pub trait Outage: std::error::Error + 'static {
    /// Whether the same call may succeed later.
    fn is_outage(&self) -> bool;
}

impl Outage for StoreError {
    fn is_outage(&self) -> bool {
        self.is_unavailable()
    }
}

impl Outage for QueueError {
    fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}
