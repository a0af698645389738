//! Heavy work on values: parsing, comparing and writing what may be many megabytes, so that others on
//! the same thread would wait.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::OnceLock,
    thread::available_parallelism,
};

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::oneshot,
    task::block_in_place,
};

/// How much work a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// So little that nobody waits for it.
    Light,
    /// So much that others on the same thread would wait.
    Heavy,
}

/// Bytes of JSON that are parsed and looked through in about 100 µs.
const LIGHT: usize = 8 << 10;

impl Weight {
    /// Of a value of so many bytes of JSON.
    pub fn of(bytes: usize) -> Self {
        if bytes <= LIGHT { Self::Light } else { Self::Heavy }
    }

    /// Does work on what is of this weight.
    pub fn work<R>(self, work: impl FnOnce() -> R) -> R {
        match self {
            Self::Light => work(),
            Self::Heavy => in_place(work),
        }
    }
}

/// Threads at most, whatever the machine. Few: an allocator keeps some memory for each thread that ever
/// did such work, and blocking tasks would spread it over hundreds.
const MOST_THREADS: usize = 4;

/// Does the work on one of a few threads of its own, after that of others who came before; a panic goes
/// on here. Work that nobody waits for any more is not begun.
pub async fn apart<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    let Some(pool) = pool() else { return work() };
    let (done, result) = oneshot::channel();
    pool.spawn(move || {
        if done.is_closed() {
            return;
        }
        // Whoever waited may have left. What is half-changed by a panic is dropped with it.
        let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
    });
    match result.await {
        Ok(result) => result.unwrap_or_else(|panic| resume_unwind(panic)),
        // It is always sent; the threads end with the process.
        Err(_) => std::future::pending().await,
    }
}

/// Does the work here and at once, as is right under a lock, while another thread takes over what this
/// one has to do besides.
pub fn in_place<R>(work: impl FnOnce() -> R) -> R {
    let has_others = Handle::try_current()
        .is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if has_others { block_in_place(work) } else { work() }
}

/// None if the system has no threads to give.
fn pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let threads = available_parallelism().map_or(1, |cores| cores.get().min(MOST_THREADS));
        let name = |number| format!("vecmill-heavy-{number}");
        ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build().ok()
    });
    pool.as_ref()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_panic_reaches_whoever_waits_and_harms_nobody_else() {
        let failed = tokio::spawn(apart(|| panic!("planned"))).await;
        assert!(failed.unwrap_err().is_panic());
        assert_eq!(apart(|| 1).await, 1);
        let failed = tokio::spawn(async { in_place(|| panic!("planned")) }).await;
        assert!(failed.unwrap_err().is_panic());
        let text = String::from("borrowed");
        assert_eq!(in_place(|| text.len()), 8);
    }
}
