//! An Embedder: one OS thread that runs the model, and the actor that stands for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinHandle;

use super::steps::DispatcherMsg;
use crate::inference::{BackendThread, EmbedError, EmbeddingBackend, Encoding};

/// What an Embedder understands.
pub enum EmbedderMsg {
    /// Embed these texts and tell the Dispatcher.
    Embed {
        /// The number of the batch.
        id: u64,
        /// The texts.
        encodings: Vec<Encoding>,
        /// Who wants to know.
        reply_to: ActorRef<DispatcherMsg>,
    },
    /// The thread ended; the actor fails with it.
    ThreadLost,
    /// The batch in hand takes too long; the actor fails.
    ThreadHangs,
}

/// A model that does not come back. Its thread cannot be ended, and stays until the process does.
#[derive(Debug, thiserror::Error)]
#[error("the model did not answer within {0:?}")]
pub struct ModelHangs(Duration);

/// Vectors of a batch, or why there are none, and how long that took.
pub struct EmbedResult {
    /// One vector a text.
    pub vectors: Result<Vec<Vec<f32>>, EmbedError>,
    /// Time from submission to answer.
    pub took: Duration,
}

/// The actor.
pub struct Embedder;

/// Which embedder it is, and what it runs.
pub struct EmbedderArguments {
    /// Its number, which the Dispatcher knows it by.
    pub slot: usize,
    /// The model.
    pub backend: Arc<dyn EmbeddingBackend>,
    /// The longest that it may take for a batch.
    pub batch_timeout: Duration,
}

/// The thread, and the number that results are marked with.
pub struct EmbedderState {
    slot: usize,
    thread: Arc<BackendThread>,
    batch_timeout: Duration,
    watch: JoinHandle<()>,
}

impl Drop for EmbedderState {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Actor for Embedder {
    type Msg = EmbedderMsg;
    type State = EmbedderState;
    type Arguments = EmbedderArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let EmbedderArguments { slot, backend, batch_timeout } = arguments;
        let thread = Arc::new(BackendThread::spawn(&format!("embedder-{slot}"), backend)?);
        let watched = Arc::clone(&thread);
        let watch = tokio::spawn(async move {
            watched.hangs(batch_timeout).await;
            // An actor that is gone has failed already.
            let _ = myself.cast(EmbedderMsg::ThreadHangs);
        });
        Ok(EmbedderState { slot, thread, batch_timeout, watch })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            EmbedderMsg::Embed { id, encodings, reply_to } => {
                let submitted = Instant::now();
                let answer = state.thread.submit(encodings);
                let slot = state.slot;
                tokio::spawn(async move {
                    // An actor that is gone has a successor that knows of the batch.
                    let _ = match answer.await {
                        Ok(vectors) => {
                            let result = EmbedResult { vectors, took: submitted.elapsed() };
                            reply_to.cast(DispatcherMsg::Embedded { slot, id, result }).is_ok()
                        }
                        Err(_) => myself.cast(EmbedderMsg::ThreadLost).is_ok(),
                    };
                });
                Ok(())
            }
            EmbedderMsg::ThreadLost => Err("the inference thread panicked".into()),
            EmbedderMsg::ThreadHangs => Err(ModelHangs(state.batch_timeout).into()),
        }
    }
}
