//! Work of the CPU within a transaction.

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::block_in_place,
};

/// How much work a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// So little that nobody waits for it.
    Light,
    /// So much that others on this thread would wait.
    Heavy,
}

/// Runs work on what is of this weight.
pub(super) fn by_weight<R>(weight: Weight, work: impl FnOnce() -> R) -> R {
    match weight {
        Weight::Light => work(),
        Weight::Heavy => in_place(work),
    }
}

/// Runs CPU-bound work here, while another thread takes over what this one has to do besides.
pub(super) fn in_place<R>(work: impl FnOnce() -> R) -> R {
    let has_others = Handle::try_current()
        .is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if has_others { block_in_place(work) } else { work() }
}
