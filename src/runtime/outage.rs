//! Stores that are away for a while: work in hand waits for them, and new work is not taken.

use std::time::Duration;

use ractor::ActorRef;
use tracing::warn;

use super::throttler::ThrottlerMsg;
use crate::{queue::QueueError, store::StoreError, telemetry::Chain};

const PAUSE: Duration = Duration::from_millis(500);

/// An error that may mean that nothing is wrong but that a store is away.
pub trait Outage: std::error::Error + 'static {
    /// Whether the same call may succeed later.
    fn is_outage(&self) -> bool;
}

impl Outage for StoreError {
    fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

impl Outage for QueueError {
    fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// Calls until the store answers, so that work already done is not done again.
///
/// # Errors
/// What the store answers when it is there.
pub async fn insist<T, E: Outage, F: Future<Output = Result<T, E>>>(
    throttler: &ActorRef<ThrottlerMsg>,
    mut call: impl FnMut() -> F,
) -> Result<T, E> {
    loop {
        match call().await {
            Err(error) if error.is_outage() => {
                warn!(error = %Chain(&error), "waiting for a store with work in hand");
                // A Throttler that is being restarted learns of it with the next call.
                let _ = throttler.cast(ThrottlerMsg::Down);
                tokio::time::sleep(PAUSE).await;
            }
            answer => return answer,
        }
    }
}
