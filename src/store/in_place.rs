//! Work of the CPU within a transaction.

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::block_in_place,
};

/// Runs CPU-bound work here, while another thread takes over what this one has to do besides.
pub(super) fn in_place<R>(work: impl FnOnce() -> R) -> R {
    let has_others = Handle::try_current()
        .is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if has_others { block_in_place(work) } else { work() }
}
