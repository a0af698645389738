//! An Embedder: one OS thread that runs the model, and the actor that stands for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::dispatcher::DispatcherMsg;
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
}

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
}

/// The thread, and the number that results are marked with.
pub struct EmbedderState {
    slot: usize,
    thread: BackendThread,
}

impl Actor for Embedder {
    type Msg = EmbedderMsg;
    type State = EmbedderState;
    type Arguments = EmbedderArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let thread =
            BackendThread::spawn(&format!("embedder-{}", arguments.slot), arguments.backend)?;
        Ok(EmbedderState { slot: arguments.slot, thread })
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
        }
    }
}
