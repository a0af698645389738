//! What the Dispatcher understands, and the tasks whose results come back to it as such messages.

use std::future::Future;

use ractor::{ActorRef, RpcReplyPort};
use tracing::Instrument;

use super::{
    batch::Batch,
    embedder::{EmbedResult, EmbedderMsg},
    prepare::{Look, Prepared},
    room::Load,
    throttler::ThrottlerMsg,
};

/// What the Dispatcher understands.
pub enum DispatcherMsg {
    /// Look for work, if there is room for it.
    Fill,
    /// A look into the queue came back.
    Looked(Look),
    /// Claimed entries were read and tokenised.
    Prepared {
        /// What they were taken for when they were claimed.
        estimate: Load,
        /// What became of them.
        prepared: Prepared,
    },
    /// There may be work again after a time without.
    Woken,
    /// A batch came back from an Embedder.
    Embedded {
        /// Which Embedder.
        slot: usize,
        /// The number of the batch.
        id: u64,
        /// What it brought.
        result: EmbedResult,
    },
    /// Vectors were stored, and their jobs let go.
    Stored {
        /// How many batches of a model they were of.
        batches: usize,
        /// What was in them.
        load: Load,
    },
    /// The jobs of a batch were let go, but for those of the batches that come back.
    Finished {
        /// What they were.
        load: Load,
        /// Batches to embed again.
        again: Vec<Batch>,
    },
    /// An Embedder takes batches from now on.
    EmbedderUp(usize, ActorRef<EmbedderMsg>),
    /// An Embedder is gone, and why.
    EmbedderLost(usize, String),
    /// There is another Throttler.
    ThrottlerUp(ActorRef<ThrottlerMsg>),
    /// Take no more work; answer when none is in hand.
    Drain(RpcReplyPort<()>),
    /// Give back all work in hand, done or not; answer when that is tried.
    LetGo(RpcReplyPort<()>),
    /// A step panicked.
    StepPanicked,
}

/// Runs a step as a task; its message comes back, or that it panicked.
pub fn step(
    myself: &ActorRef<DispatcherMsg>,
    future: impl Future<Output = DispatcherMsg> + Send + 'static,
) {
    let myself = myself.clone();
    let task = tokio::spawn(future.in_current_span());
    tokio::spawn(async move {
        let message = task.await.unwrap_or(DispatcherMsg::StepPanicked);
        // A Dispatcher that is gone has let go of its leases.
        let _ = myself.cast(message);
    });
}
