//! Stores that are away for a while.

use crate::{
    queue::QueueError,
    store::{Store, StoreError},
};

/// An error that may mean that nothing is wrong but that a store is away.
pub trait Outage: std::error::Error + Send + Sized + 'static {
    /// Whether the same call may succeed later.
    fn is_outage(&self) -> bool;

    /// Whether the same work may be done in smaller parts.
    fn took_too_long(&self) -> bool {
        false
    }

    /// The same, or what it is the consequence of.
    fn blamed(self, _store: &Store) -> impl Future<Output = Self> + Send {
        std::future::ready(self)
    }
}

impl Outage for StoreError {
    fn is_outage(&self) -> bool {
        self.is_unavailable()
    }

    fn took_too_long(&self) -> bool {
        self.took_too_long()
    }

    async fn blamed(self, store: &Store) -> Self {
        store.blame(self).await
    }
}

impl Outage for QueueError {
    fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}
