//! Work of the CPU, off the threads that must not be kept from others.

use std::panic::resume_unwind;

/// Runs CPU-bound work as a blocking task; a panic goes on here.
pub(super) async fn off_async<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // Blocking tasks are cancelled only when the process ends.
            Err(_) => std::future::pending().await,
        },
    }
}
